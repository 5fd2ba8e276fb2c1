"""Passes of mixed rows as CUDA graphs: all rows one behind the other, without padding, each with its own task's tensors.

What differs from batch to batch (tokens, where rows begin, where their tasks lie) is numbers in tensors that stay where they are;
so one graph serves all batches of about one size whose tasks have the same forms, and the host sends one launch instead of
several hundred. Graphs are made when they are first wanted, in a tenth of a second each.

B rows, T columns of the caller's batch, L columns of the packed one, G rows that it has room for, D width of the states.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from intarsia.addressed import AddressedRoute, readable
from intarsia.backbone import Backbone
from intarsia.backbone.packed import Segments, packed
from intarsia.errors import UnsupportedError
from intarsia.ops import ALIGN, NOBODY, Rows, fused, gathered, offsets_from
from intarsia.routing import Resident, Route
from intarsia.sites import Role
from intarsia.staged import Staged
from intarsia.storage import Form, Stored

LONGEST = 256
"""Tokens of a row beyond which kernels for long sequences are the better ones, and launches matter less."""
_KEPT = 64
"""Graphs; the least recently used go."""
_LEAST = 256
"""Columns of the smallest pass: fewer would not be faster."""


class Packed(NamedTuple):
    """A batch's tokens and virtual tokens, row by row; n of them."""

    ids: np.ndarray
    """(n,); -1 - j: virtual token j."""
    types: np.ndarray | None
    positions: np.ndarray
    """(n,), counted from 0 in each row."""
    lengths: np.ndarray
    """(B,), prompts included."""
    back: np.ndarray
    """(B * T,): the column whose state is read for each token; a row's first for padding."""


def pack_rows(
    ids: np.ndarray,
    mask: np.ndarray,
    types: np.ndarray | None,
    prompts: np.ndarray,
    places: Sequence[str],
    *,
    after: bool,
) -> Packed:
    """ids, mask, types: (B, T); prompts: (B,) virtual tokens of each row; places: where they stand ("" for none). after: a last
    token's state is read after a prompt that follows it (decoders)."""
    longest = mask.shape[1]
    real = np.flatnonzero(mask)
    tokens = np.arange(len(real))
    lengths = mask.sum(1).astype(np.int64)
    ids, types = ids.ravel()[real], None if types is None else types.ravel()[real]
    columns = tokens
    inserted = np.where(np.asarray(places) == "template", 0, prompts)
    if inserted.any():
        ends = np.cumsum(lengths)
        cut = {"start": ends - lengths, "after-first": ends - lengths + 1, "end": ends}
        begins = np.array([cut.get(place, ends)[row] for row, place in enumerate(places)])
        where = np.repeat(begins, inserted)
        virtual = -1 - (np.arange(len(where)) - np.repeat(np.cumsum(inserted) - inserted, inserted))
        order = np.argsort(where, kind="stable")
        columns = tokens + np.searchsorted(where, tokens, side="right")
        ids = np.insert(ids, where[order], virtual[order])
        types = None if types is None else np.insert(types, where, 0)
        if after:
            last = np.asarray(places) == "end"
            columns[ends[last] - 1] += inserted[last]
        lengths = lengths + inserted
    starts = np.cumsum(lengths) - lengths
    back = np.repeat(starts, longest)
    back[real] = columns
    positions = np.arange(len(ids)) - np.repeat(starts, lengths)
    return Packed(ids, types, positions, lengths, back)


class _Key(NamedTuple):
    """What batches have in common that one graph can serve."""

    columns: int
    rows: int
    longest: int
    types: bool
    entered: bool
    """Whether there are prompts, so that embeddings go in instead of tokens."""
    forms: tuple[Form, ...]


class _Pass:
    """One shape of pass: its tensors, and on a GPU the graph that runs over them."""

    def __init__(self, backbone: Backbone, key: _Key, anchor: Tensor, out: Tensor) -> None:
        """out: (at least L, D), where the states go."""
        self.backbone, self.key, self.out = backbone, key, out
        device = backbone.device
        integers = {
            "ids": (1, key.columns),
            "positions": (1, key.columns),
            "owner": (key.columns,),
            "starts": (key.rows + 1,),
            "offsets": (key.rows + 1,),
            "forms": (key.rows + 1,),
        }
        if key.types:
            integers["types"] = (1, key.columns)
        self.staged = Staged(integers, torch.int64, device)
        here = self.here = self.staged.there
        self.mask = torch.ones(1, key.columns, dtype=torch.int64, device=device)
        self.embedded: Tensor | None = None
        self.rows = Rows(anchor, here["offsets"], here["forms"], here["starts"], here["owner"], key.longest)
        self.segments = Segments(here["starts"], key.longest, here["starts"], key.longest)
        self.replay: Callable[[], None] | None = None
        self._route: AddressedRoute | None = None
        """The graph's, whose tensors it reads."""

    def fill(self, packed_: Packed, offsets: Sequence[int], forms: Sequence[int], moved: np.ndarray) -> None:
        """The next batch. moved: (B,), what is added to the positions of each row."""
        there, used, count = self.staged.next(), len(packed_.ids), len(packed_.lengths)
        for name, values, spare in (("ids", packed_.ids, 0), ("types", packed_.types, 0)):
            if name in there and values is not None:
                there[name][0, :used], there[name][0, used:] = np.maximum(values, 0), spare
        there["positions"][0, :used] = packed_.positions + np.repeat(moved, packed_.lengths)
        there["positions"][0, used:] = 0
        there["owner"][:used], there["owner"][used:] = np.repeat(np.arange(count), packed_.lengths), self.key.rows
        there["starts"][0] = 0
        there["starts"][1 : count + 1], there["starts"][count + 1 :] = np.cumsum(packed_.lengths), used
        for name, given, spare in (("offsets", offsets, 0), ("forms", forms, NOBODY)):
            there[name][:count], there[name][count:] = given, spare
        self.staged.send()

    def route(self, flats: Sequence[Tensor | None] = ()) -> AddressedRoute:
        """Of the rows. flats: each one's, which kernels do without."""
        return AddressedRoute([], 0, self.key.forms, self.rows._replace(flats=flats))

    def run(self, under: Callable[[Route], AbstractContextManager[None]], route: AddressedRoute) -> None:
        """The model over the packed rows."""
        batch = {"position_ids": self.here["positions"], "attention_mask": self.mask}
        if self.embedded is None:
            batch["input_ids"] = self.here["ids"]
        else:
            batch["inputs_embeds"] = self.embedded
        if self.key.types:
            batch["token_type_ids"] = self.here["types"]
        with packed(self.backbone, self.segments), under(route):
            self.out[: self.key.columns].copy_(self.backbone.features(batch)[0])

    def capture(
        self, under: Callable[[Route], AbstractContextManager[None]], stream: torch.cuda.Stream, pool: Any
    ) -> None:
        """Once to compile the kernels, and once for the graph."""
        route = self._route = self.route()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.run(under, route)
        graph = torch.cuda.CUDAGraph()
        # Others may bring tasks to the device meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self.run(under, route)
        torch.cuda.current_stream().wait_stream(stream)
        self.replay = graph.replay


class Graphs:
    """The passes of one bank's mixed rows, where its backbone allows them."""

    def __init__(self, backbone: Backbone, under: Callable[[Route], AbstractContextManager[None]]) -> None:
        """under: routes the model's calls meanwhile."""
        self.backbone, self._under = backbone, under
        self._passes: OrderedDict[_Key, _Pass] = OrderedDict()
        self._refused: set[_Key] = set()
        """What the model does that packed rows do not know (ModernBERT's window, for long rows), found out by running it."""
        self._able = (
            any(site.role is Role.KV for site in backbone.sites)
            and backbone.kind != "encoder-decoder"
            and backbone.family.gives_input_embeddings
            and backbone.counts_positions
        )
        self._first_position = backbone.first_position
        with torch.inference_mode(False):
            self._anchor = torch.zeros(ALIGN, dtype=backbone.dtype, device=backbone.device)
            self._out = torch.zeros(0, backbone.hidden, dtype=backbone.dtype, device=backbone.device)
        self._on_gpu = backbone.device.type == "cuda"
        self._able = self._able and (fused(self._anchor) or not self._on_gpu)
        self._stream = torch.cuda.Stream() if self._on_gpu else None
        self._pool = torch.cuda.graph_pool_handle() if self._on_gpu else None

    def features(self, batch: Mapping[str, Tensor], rows: Sequence[Resident | None]) -> Tensor | None:
        """As Backbone.features, (B, T, D), with each row's task; None where it has to be done otherwise."""
        if not self._able or torch.is_grad_enabled() or not readable(rows):
            return None
        if not {"input_ids"} <= batch.keys() <= {"input_ids", "attention_mask", "token_type_ids"}:
            return None
        ids, mask, types = _on_cpu(batch)
        forms = [row.form if isinstance(row, Stored) else None for row in rows]
        prompts = [_prompt(form) for form in forms]
        decoder = self.backbone.kind == "decoder"
        virtual, places = np.array([length for length, _ in prompts]), [place for _, place in prompts]
        made = pack_rows(ids, mask, types, virtual, places, after=decoder)
        if made.lengths.max() > LONGEST or not made.lengths.min():
            return None
        key = _Key(
            _rounded(len(made.ids)),
            _power(len(made.lengths)),
            64 * -(-int(made.lengths.max()) // 64),
            made.types is not None,
            bool((made.ids < 0).any()),
            tuple(sorted({form for form in forms if form is not None}, key=id)),
        )
        if key in self._refused:
            return None
        try:
            with torch.inference_mode(False), torch.no_grad():
                states = self._pass(key, made, rows, forms)
                return states.index_select(0, self._back(made)).view(*mask.shape, -1)
        except UnsupportedError:
            self._refused.add(key)
            return None

    def _pass(self, key: _Key, made: Packed, rows: Sequence[Resident | None], forms: Sequence[Form | None]) -> Tensor:
        """The states of all columns."""
        found = self._passes.get(key)
        one = found or _Pass(self.backbone, key, self._anchor, self._room(key.columns))
        number = {form: index for index, form in enumerate(key.forms)} | {None: NOBODY}
        flats = [row.flat if isinstance(row, Stored) else None for row in rows]
        moved = np.array([self._first_position + (0 if form is None else form.offset) for form in forms])
        offsets = offsets_from(self._anchor, flats)
        one.fill(made, offsets, [number[form] for form in forms], moved)
        if key.entered:
            self._enter(one, made, flats, forms)
        if not self._on_gpu:
            one.run(self._under, one.route(flats))
            return one.out
        if one.replay is None:
            assert self._stream is not None
            assert self._pool is not None
            one.capture(self._under, self._stream, self._pool)
        self._passes[key] = one
        self._passes.move_to_end(key)
        if len(self._passes) > _KEPT:
            self._passes.popitem(last=False)
        assert one.replay is not None
        one.replay()
        return one.out

    def _enter(self, one: _Pass, made: Packed, flats: Sequence[Tensor | None], forms: Sequence[Form | None]) -> None:
        """Embeddings of the tokens, and the prompts' vectors in their columns."""
        embedded = self.backbone.base.get_input_embeddings()(one.here["ids"])  # type: ignore[operator]
        virtual = np.flatnonzero(made.ids < 0)
        owner = np.repeat(np.arange(len(made.lengths)), made.lengths)[virtual]
        for form in {form for form in forms if form is not None and _prompt(form)[0]}:
            own = [row for row in range(len(forms)) if forms[row] is form]
            columns = virtual[np.isin(owner, own)]
            turn = np.searchsorted(own, np.repeat(np.arange(len(made.lengths)), made.lengths)[columns])
            source = turn * _prompt(form)[0] + (-1 - made.ids[columns])
            stored = [flat for row in own if (flat := flats[row]) is not None]
            vectors = _prompts_of(form, stored).flatten(0, 1)
            picked = vectors.index_select(0, self._sent(source)).to(embedded.dtype)
            embedded[0].index_copy_(0, self._sent(columns), picked)
        if one.embedded is None:
            one.embedded = embedded.clone()
        else:
            one.embedded.copy_(embedded)

    def _back(self, made: Packed) -> Tensor:
        return self._sent(made.back)

    def _sent(self, index: np.ndarray) -> Tensor:
        sent = torch.from_numpy(np.ascontiguousarray(index))
        return (sent.pin_memory() if self._on_gpu else sent).to(self.backbone.device, non_blocking=True)

    def _room(self, columns: int) -> Tensor:
        if len(self._out) < columns:  # graphs that have the old one keep it
            self._out = torch.zeros(columns, self._out.shape[1], dtype=self._out.dtype, device=self._out.device)
        return self._out


def _prompt(form: Form | None) -> tuple[int, str]:
    """Virtual tokens, and where they stand."""
    prompt = None if form is None else form.prompt
    return (0, "") if prompt is None else (prompt.length, prompt.place)


def _prompts_of(form: Form, flats: Sequence[Tensor]) -> Tensor:
    """(n, P, E)"""
    key = next(key for key, shell in form.shells.items() if shell is form.prompt)
    near = form.pieces(gathered(flats))
    delta = form.delta(key, near, [], lambda matrices: matrices[0])
    assert delta is not None
    return delta()


def _on_cpu(batch: Mapping[str, Tensor]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Tokens, mask and types, (B, T)."""
    ids = batch["input_ids"].cpu().numpy()
    mask = batch["attention_mask"].cpu().numpy() if "attention_mask" in batch else np.ones_like(ids)
    return ids, mask != 0, batch["token_type_ids"].cpu().numpy() if "token_type_ids" in batch else None


def _rounded(columns: int) -> int:
    """At most an eighth more."""
    step = max(_LEAST, 1 << max(0, (columns - 1).bit_length() - 4))
    return -(-columns // step) * step


def _power(rows: int) -> int:
    return max(16, 1 << (rows - 1).bit_length())
