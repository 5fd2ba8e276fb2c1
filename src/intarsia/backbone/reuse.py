"""Trunk reuse: what the layers under a task's lowest module put out is the same in every epoch and for every task, so it is
computed once for each row and kept.

    below = lowest_layer(backbone, task.sites.values())
    trunk = ReusedTrunk(backbone, below=below, limit=2**30)
    trunk.fill(source.load(key)[0] for key in source.plan(0))       # optional: ahead, in full batches
    loss = bank.loss(trunk.with_states(batch), labels, task=...)    # the layers below `below` do not run

Stored states travel in the batch, one entry a row, so whoever picks or sorts rows takes their states along.

What "exact" means. Matrix products may differ in their last bits with the shape of a batch, so a row is always computed in one
shape: so many rows, each padded to the next multiple of eight tokens. Its states then depend on the row alone, not on which rows
were asked for with it, in which order or when; a resumed run, another epoch and another task of the same backbone meet the very
same bits. A run that computes its trunk anew in each batch differs from that by the rounding of its batches' shapes, as it
does from itself with other batches.

B rows, T tokens, L tokens of one row, D width of the residual stream.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from intarsia.backbone.hooks import first_argument
from intarsia.errors import BackboneError, ConfigError, UnsupportedError
from intarsia.sites import Site

if TYPE_CHECKING:
    from intarsia.backbone.backbone import Backbone

ENTRY = "states_below_"
"""A batch's entry `states_below_3`, (B, T, D), stands in for layers 0, 1 and 2."""
LENGTH_STEP = 8
ROWS = {"cpu": 8}
ROWS_ELSEWHERE = 64
Row = dict[str, Tensor]


def lowest_layer(backbone: Backbone, sites: Iterable[Site]) -> int:
    """How many of the bottom layers no module at these sites touches: 0 where one is in the embeddings or moves positions, all
    layers for a head alone. 0 for encoder-decoders, whose decoder layers read the encoder as well as each other."""
    if len(backbone.family.stacks) != 1:
        return 0
    return max(0, min((site.layer for site in sites), default=len(layers_of(backbone))))


def layers_of(backbone: Backbone) -> Sequence[nn.Module]:
    """The layers of a backbone with one stack, lowest first."""
    return list(backbone.base.get_submodule(backbone.family.stacks[0].layers))  # type: ignore[arg-type]


class ReusedTrunk:
    """The states that enter layer `below`, for every row that was met. The backbone must be out of training mode meanwhile."""

    def __init__(self, backbone: Backbone, *, below: int, limit: int, folder: Path | None = None) -> None:
        """limit: bytes of states that are kept; rows beyond it are computed each time. folder: where they lie in a file that
        goes away with this object; None: in the memory of the backbone's device.

        ConfigError where `below` is not 1 to the number of layers. UnsupportedError for encoder-decoders, and where the layers
        do not hand one tensor of states from each to the next.
        """
        if len(backbone.family.stacks) != 1:
            raise UnsupportedError(
                "the trunk of an encoder-decoder is not reused: its layers pass more than one tensor on"
            )
        self.backbone, self.below, self.limit, self.folder = backbone, below, limit, folder
        self.layers = layers_of(backbone)
        if not 1 <= below <= len(self.layers):
            raise ConfigError(f"below must be 1 to the backbone's {len(self.layers)} layers, got {below}")
        self.used = 0
        """Bytes kept."""
        self._rows: dict[bytes, Tensor] = {}
        self._file: Tensor | None = None

    def __len__(self) -> int:
        """Rows kept."""
        return len(self._rows)

    def with_states(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch with the states of its rows; what is missing is computed, and kept where there is room.

        batch: (B, T) tensors and an attention_mask, padded on either side; or one entry a row (images). On the CPU it is read
        without waiting for a GPU.
        """
        rows, mask = _rows_of(batch)
        keys = [_key(row) for row in rows]
        found = {key: self._rows[key] for key in keys if key in self._rows}
        missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in found}
        for part in self._parts(missing):
            found |= self._computed({key: missing[key] for key in part})
        states = torch.cat([found[key] for key in keys]).to(self.backbone.device, non_blocking=True)
        if mask is None:
            return {**batch, f"{ENTRY}{self.below}": states.view(len(rows), -1, states.shape[-1])}
        # Zeros at padding: no state of a real token reads it. The places are found on the mask's own device.
        places = mask.flatten().nonzero().squeeze(1).to(states.device, non_blocking=True)
        out = states.new_zeros(mask.numel(), states.shape[-1]).index_copy_(0, places, states)
        return {**batch, f"{ENTRY}{self.below}": out.view(*mask.shape, -1)}

    def fill(self, batches: Iterable[Mapping[str, Tensor]]) -> int:
        """Computes ahead the rows of these batches, in full batches of like length, until all are kept or some had no room.
        Returns how many were kept."""
        waiting: dict[int, dict[bytes, Row]] = {}
        before = len(self)
        for batch in batches:
            for row in _rows_of(batch)[0]:
                key = _key(row)
                if key in self._rows:
                    continue
                alike = waiting.setdefault(self._padded(row), {})
                alike[key] = row
                if len(alike) == self._count:
                    self._computed(waiting.pop(self._padded(row)))
                    if key not in self._rows:
                        return len(self) - before
        for alike in waiting.values():
            if not self._computed(alike).keys() <= self._rows.keys():
                break
        return len(self) - before

    # -- computing -----------------------------------------------------------------------------------------------------

    @property
    def _count(self) -> int:
        return ROWS.get(self.backbone.device.type, ROWS_ELSEWHERE)

    def _padded(self, row: Row) -> int:
        """To how many tokens a row is padded; 0 for rows without tokens (images), which are all of one shape."""
        if "attention_mask" not in row:
            return 0
        length = len(row["attention_mask"])
        return min(-(-length // LENGTH_STEP) * LENGTH_STEP, max(length, self.backbone.max_length))

    def _parts(self, missing: Mapping[bytes, Row]) -> Iterator[list[bytes]]:
        alike: dict[int, list[bytes]] = {}
        for key, row in missing.items():
            alike.setdefault(self._padded(row), []).append(key)
        for keys in alike.values():
            yield from (keys[at : at + self._count] for at in range(0, len(keys), self._count))

    @torch.no_grad()
    def _computed(self, rows: Mapping[bytes, Row]) -> dict[bytes, Tensor]:
        """The states (L, D) of up to `_count` rows of like length, always computed in the one shape."""
        if self.backbone.model.training:
            raise ConfigError("a reused trunk has no dropout; train with backbone_dropout false, or do not reuse it")
        each = list(rows.values())
        each += each[:1] * (self._count - len(each))
        length = self._padded(each[0])
        batch = {
            name: torch.stack([_stretched(row[name], length if "attention_mask" in row else 0) for row in each])
            for name in each[0]
        }
        caught: list[Tensor] = []

        def catch(_module: nn.Module, _args: tuple, y: Any) -> None:
            if caught or not isinstance(y, Tensor):
                kind = self.backbone.config.model_type
                raise UnsupportedError(
                    f"the trunk of {kind!r} is not reused: its layers do not hand on one tensor each"
                )
            caught.append(y)

        hook = self.layers[self.below - 1].register_forward_hook(catch)
        try:
            with _instead(self.layers[self.below :], lambda *args, **kwargs: first_argument(args, kwargs)):
                self.backbone.features(batch)
        finally:
            hook.remove()
        states = caught[0].detach()[: len(rows)]
        lengths = [len(row["attention_mask"]) if "attention_mask" in row else states.shape[1] for row in rows.values()]
        return self._kept(dict(zip(rows, lengths, strict=True)), states)

    def _kept(self, lengths: Mapping[bytes, int], states: Tensor) -> dict[bytes, Tensor]:
        """Each row's part of the padded states (B, T, D), in one piece of memory, and remembered while there is room."""
        flat = torch.cat([own[:length] for own, length in zip(states, lengths.values(), strict=True)])
        room = self.used + flat.nbytes <= self.limit
        if room and self.folder is not None:
            flat = self._written(flat)
        found = dict(zip(lengths, flat.split(list(lengths.values())), strict=True))
        if room:
            self.used += flat.nbytes
            self._rows |= found
        return found

    def _written(self, flat: Tensor) -> Tensor:
        """A copy that lies in the file."""
        if self._file is None:
            assert self.folder is not None
            self._file = _mapped(self.folder, self.limit // flat.element_size(), flat.dtype)
        start = self.used // flat.element_size()
        return self._file[start : start + flat.numel()].view(flat.shape).copy_(flat)


# -- what happens within a call of the model ---------------------------------------------------------------------------


@contextmanager
def standing_in(backbone: Backbone, batch: dict[str, Tensor]) -> Iterator[None]:
    """Takes stored states out of a batch, if it has any. Meanwhile the layers that they stand for give them, and do not run."""
    name = next((name for name in batch if name.startswith(ENTRY)), None)
    if name is None:
        yield
        return
    states, below = batch.pop(name), int(name.removeprefix(ENTRY))
    with _instead(layers_of(backbone)[:below], lambda *_args, **_kwargs: states):
        yield


@contextmanager
def _instead(layers: Sequence[nn.Module], forward: Callable[..., Tensor]) -> Iterator[None]:
    """These modules' forward meanwhile. On the objects themselves: the class, the hooks and the state_dict stay."""
    before = [layer.__dict__.get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.__dict__["forward"] = forward
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            if old is None:
                layer.__dict__.pop("forward", None)
            else:
                layer.__dict__["forward"] = old


def _rows_of(batch: Mapping[str, Tensor]) -> tuple[list[Row], Tensor | None]:
    """Each row's own tensors without padding, on the CPU, and the mask (B, T) of real tokens, None where there is none."""
    if any(name.startswith(ENTRY) for name in batch):
        raise BackboneError("the batch holds states already; call with_states once")
    here = {name: tensor.cpu() for name, tensor in batch.items()}
    ids = here.get("input_ids")
    if ids is None:
        return [{name: tensor[i] for name, tensor in here.items()} for i in range(len(next(iter(here.values()))))], None
    mask = here.setdefault("attention_mask", torch.ones_like(ids)).bool()
    rows = [{name: tensor[i][own] for name, tensor in here.items()} for i, own in enumerate(mask)]
    return rows, mask


def _key(row: Row) -> bytes:
    """What a row is, by content: the same for any task, split or order of the rows."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in row.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.digest()


def _stretched(values: Tensor, length: int) -> Tensor:
    return nn.functional.pad(values, (0, length - len(values))) if length else values


def _mapped(folder: Path, count: int, dtype: torch.dtype) -> Tensor:
    """(count,) values in a file without a name: whatever happens to the process, nothing of it stays behind."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix="trunk.")
        os.close(handle)
        try:
            return torch.from_file(name, shared=True, size=count, dtype=dtype)
        finally:
            os.unlink(name)
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"cannot keep {count * dtype.itemsize:,} bytes of states in {folder}: {error}") from None
