"""Where each row of a packed batch stands: from the members' rows to the tensors of one pass, in a fixed shape.

K members, R rows a member, S columns a member, P virtual tokens of a prompt, Q places a member whose states are read,
G segments, M keys with prefixes. Everything is laid out by numpy on the CPU and goes to the device in two copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from intarsia.backbone.packed import Prefixed, Segments
from intarsia.data import Flat
from intarsia.heads import IGNORED, Head
from intarsia.staged import Staged
from intarsia.task import Task


class TooSmall(Exception):  # noqa: N818 - caught by the stepper, which makes a larger layout
    """The rows of a step have no room; `needs` says how much they want."""

    def __init__(self, needs: Shape) -> None:
        super().__init__(str(needs))
        self.needs = needs


class Shape(NamedTuple):
    """Room for one member."""

    rows: int
    """R"""
    columns: int
    """S; one at least stays unused, so that there is always a stretch for what is left over."""
    places: int
    """Q"""
    longest: int
    """Of a row, its prompt included."""

    @classmethod
    def of(cls, placed: Placed) -> Shape:
        """What these rows want."""
        return cls(len(placed.lengths), len(placed.ids) + 1, len(placed.places), int(placed.lengths.max()))

    def grown(self, other: Shape) -> Shape:
        """Room for both."""
        return Shape(*(max(pair) for pair in zip(self, other, strict=True)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What of a member's rows is laid out, by its task."""

    head: Head
    prompt: int = 0
    """P"""
    place: str = "start"
    prefix: int = 0
    offset: int = 0
    """Positions by which its tokens are moved."""
    first_position: int = 0
    after: bool = False
    """Whether the last token's state is read after a prompt that follows it (decoders)."""

    @classmethod
    def of(cls, task: Task, *, first_position: int, decoder: bool) -> Reading:
        """How this task's rows are read."""
        from intarsia.methods import KeyValueDelta

        prompt = task.prompt
        prefixes = {delta.length for delta in task.deltas.values() if isinstance(delta, KeyValueDelta)}
        assert task.head is not None
        assert len(prefixes) <= 1, "checked before members are packed"
        return cls(
            head=task.head,
            prompt=0 if prompt is None or prompt.place == "template" else prompt.length,
            place="start" if prompt is None else prompt.place,
            prefix=next(iter(prefixes), 0),
            offset=task.offset,
            first_position=first_position,
            after=decoder,
        )


class Placed(NamedTuple):
    """One member's rows in their columns; L columns are used."""

    ids: np.ndarray
    """(L,); -1 - j: virtual token j."""
    types: np.ndarray | None
    lengths: np.ndarray
    """(B,), prompts included."""
    owner: np.ndarray
    """(L,): each token's row; -1: virtual."""
    labels: np.ndarray
    """(Q,) or (B, ...): of the places that are read."""
    places: np.ndarray
    """(Q,): columns."""
    weights: np.ndarray
    """As labels' first axis: each one's share of the loss."""


def place_rows(flats: Sequence[Flat], reading: Reading) -> Placed:
    """The batches of one step side by side."""
    lengths = np.concatenate([flat.lengths for flat in flats])
    ids = np.concatenate([flat.ids for flat in flats])
    types = None if flats[0].types is None else np.concatenate([flat.types for flat in flats if flat.types is not None])
    labels = np.concatenate([flat.labels for flat in flats if flat.labels is not None])
    owner = np.repeat(np.arange(len(lengths)), lengths)
    tokens = np.arange(len(ids))
    if reading.prompt:
        ends = np.cumsum(lengths)
        cut = {"start": ends - lengths, "after-first": ends - lengths + 1, "end": ends}[reading.place]
        where = np.repeat(cut, reading.prompt)
        ids = np.insert(ids, where, np.tile(-1 - np.arange(reading.prompt), len(lengths)))
        types = None if types is None else np.insert(types, where, 0)
        owner = np.insert(owner, where, -1)
        tokens = np.flatnonzero(owner >= 0)
        lengths = lengths + reading.prompt
    kind = reading.head.kind
    if kind in ("generation", "token-classification"):
        read, kept = _labelled(labels, flats, following=kind == "generation")
        sizes = np.bincount(owner[tokens[read]], minlength=len(lengths)) if len(read) else lengths * 0
        share = 1 / len(lengths) if kind == "generation" and reading.head.loss == "sentence" else 1 / max(1, len(read))
        assert sizes.sum() == len(read)
        return Placed(ids, types, lengths, owner, kept, tokens[read], np.full(len(read), share))
    weights = np.full(len(lengths), 1 / len(lengths))
    return Placed(ids, types, lengths, owner, labels, _pooled(owner, tokens, lengths, reading), weights)


def _labelled(labels: np.ndarray, flats: Sequence[Flat], *, following: bool) -> tuple[np.ndarray, np.ndarray]:
    """Tokens whose states are read, and their labels; following: a state says the next token."""
    read = np.flatnonzero(labels != IGNORED)
    kept = labels[read]
    if following:
        starts = np.cumsum(np.concatenate([flat.lengths for flat in flats]))[:-1]
        first = np.isin(read, np.concatenate([[0], starts]))
        read, kept = read[~first] - 1, kept[~first]
    return read, kept


def _pooled(owner: np.ndarray, tokens: np.ndarray, lengths: np.ndarray, reading: Reading) -> np.ndarray:
    """The column of each row whose state is read, where it is one."""
    rows = owner[tokens]
    if reading.head.pooling == "last":
        last = tokens[np.searchsorted(rows, np.arange(len(lengths)), side="right") - 1]
        return last + reading.prompt if reading.after and reading.place == "end" else last
    return tokens[np.searchsorted(rows, np.arange(len(lengths)))]


class Layout:
    """The tensors of one pass, on the device; the same ones for each step."""

    def __init__(
        self,
        readings: Sequence[Reading],
        shape: Shape,
        *,
        pad: int,
        types: bool,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """pad: a token for unused columns. types: whether the model takes token types. dtype: of weights and step's numbers."""
        self.readings, self.shape, self.pad = list(readings), shape, pad
        members, head = len(readings), readings[0].head
        self.prefix = max(reading.prefix for reading in readings)
        self.fillers = -(-shape.columns // shape.longest) + 1
        per_member = shape.rows + self.fillers
        self._keys = [shape.columns + shape.rows * reading.prefix for reading in readings]
        """Of each member."""
        spread = -(-max(self._keys) // self.fillers) + 1
        rows = shape.places if head.kind in ("generation", "token-classification") else shape.rows
        integers = {
            "ids": (members, shape.columns),
            "positions": (members, shape.columns),
            "owner": (members, shape.columns),
            "places": (members, shape.places),
            "starts": (members * per_member + 1,),
            "keys": (members,),
        }
        numbers: dict[str, tuple[int, ...]] = {"weights": (members, rows), "step": (members, 3)}
        if types:
            integers["types"] = (members, shape.columns)
        if self.prefix:
            integers |= {"starts_k": (members * per_member + 1,), "own": (sum(self._keys),)}
            integers |= {"inverse": (members * shape.columns,), "slots": (sum(self._keys) - members * shape.columns,)}
        if head.kind in ("multi-label", "regression"):
            numbers["labels"] = (members, rows, head.outputs) if head.kind == "multi-label" else (members, rows)
        else:
            integers["labels"] = (members, rows)
        self._integers, self._numbers = Staged(integers, torch.int64, device), Staged(numbers, dtype, device)
        self.here: dict[str, Tensor] = self._integers.there | self._numbers.there
        # The attention kernel wants 32 bits; filled at the beginning of each pass.
        self._starts = torch.zeros(members * per_member + 1, dtype=torch.int32, device=device)
        self._starts_k = torch.zeros_like(self._starts) if self.prefix else self._starts
        self.read = torch.zeros(members * shape.places, dtype=torch.int64, device=device)
        """(K * Q,): the places, counted through all members' columns."""
        self._before = shape.columns * torch.arange(members, device=device)[:, None]
        here = self.here
        self.segments = Segments(
            self._starts,
            shape.longest,
            self._starts_k,
            max(shape.longest + self.prefix, spread),
            Prefixed(here["own"], here["inverse"], here["slots"], shape.rows) if self.prefix else None,
        )
        self.mask = torch.ones(members, shape.columns, dtype=torch.int64, device=device)

    def fill(self, placed: Sequence[Placed], keys: Sequence[int], step: Sequence[Sequence[float]]) -> None:
        """The next pass. keys: of the head's dropout; step: the optimizer's numbers, (K, 3). TooSmall where rows have no room."""
        for need in map(Shape.of, placed):
            if need.grown(self.shape) != self.shape:
                raise TooSmall(need.grown(self.shape))
        integers, numbers = self._integers.next(), self._numbers.next()
        integers["keys"][:] = keys
        numbers["step"][:] = step
        starts, starts_k = integers["starts"], integers.get("starts_k")
        per_member = self.shape.rows + self.fillers
        starts[0] = 0
        for k, (one, reading) in enumerate(zip(placed, self.readings, strict=True)):
            used = len(one.ids)
            integers["ids"][k] = _filled(one.ids, self.shape.columns, self.pad)
            integers["owner"][k] = _filled(one.owner, self.shape.columns, -1)
            if "types" in integers:
                integers["types"][k] = 0
                if one.types is not None:
                    integers["types"][k, :used] = one.types
            sizes = self._sizes(one.lengths)
            span = slice(k * per_member + 1, (k + 1) * per_member + 1)
            starts[span] = np.cumsum(sizes) + k * self.shape.columns
            begins = np.repeat(np.cumsum(sizes) - sizes, sizes)
            columns = np.arange(self.shape.columns)
            integers["positions"][k] = columns - begins + reading.first_position
            integers["positions"][k, :used] += reading.offset
            if starts_k is not None:
                starts_k[0] = 0
                begin, before = sum(self._keys[:k]), k * self.shape.columns
                sizes_k, own, inverse, slots = self._with_prefix(sizes, len(one.lengths), reading.prefix)
                starts_k[span] = np.cumsum(sizes_k) + begin
                integers["own"][begin : begin + len(own)] = own + before
                integers["inverse"][before : before + len(inverse)] = inverse + begin
                integers["slots"][begin - before : begin - before + len(slots)] = slots + begin
            integers["places"][k] = _filled(one.places, self.shape.places, 0)
            numbers["weights"][k] = _filled(one.weights, numbers["weights"].shape[1], 0.0)
            labels = integers["labels"] if "labels" in integers else numbers["labels"]
            labels[k] = 0
            labels[k, : len(one.labels)] = one.labels
        self._integers.send()
        self._numbers.send()

    def settle(self) -> None:
        """The first thing of a pass, on the device."""
        self.read.copy_((self.here["places"] + self._before).flatten())
        self._starts.copy_(self.here["starts"])
        if self.prefix:
            self._starts_k.copy_(self.here["starts_k"])

    def _sizes(self, lengths: np.ndarray) -> np.ndarray:
        """Of the segments: rows, nothing for those that are missing, and the unused columns in parts."""
        sizes = np.zeros(self.shape.rows + self.fillers, np.int64)
        sizes[: len(lengths)] = lengths
        left = self.shape.columns - int(lengths.sum())
        parts = min(self.fillers, left)
        sizes[self.shape.rows : self.shape.rows + parts] = left // parts
        sizes[self.shape.rows : self.shape.rows + left % parts] += 1
        return sizes

    def _with_prefix(
        self, sizes: np.ndarray, rows: int, prefix: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Sizes with each row's prefix before it, and as `Prefixed` has them, of one member: own, inverse, slots. Keys that nobody
        wants go to the segments of unused columns: the kernel's gradient for a key outside all segments would be garbage."""
        sizes_k = sizes.copy()
        sizes_k[:rows] += prefix
        spare = (self.shape.rows - rows) * prefix
        parts = int((sizes[self.shape.rows :] > 0).sum())
        fillers = slice(self.shape.rows, self.shape.rows + parts)
        sizes_k[fillers] += spare // parts
        sizes_k[self.shape.rows : self.shape.rows + spare % parts] += 1
        ends = np.cumsum(sizes_k)
        columns = np.arange(int(sizes.sum()))
        # A segment's own columns end where it ends; before them stands its prefix.
        inverse = np.repeat(ends - np.cumsum(sizes), sizes) + columns
        own = np.zeros(int(ends[-1]), np.int64)
        own[inverse] = columns
        slots = np.full((self.shape.rows, prefix), inverse[-1])  # the last column is unused, so its key has no gradient
        slots[:rows] = (ends - sizes_k)[:rows, None] + np.arange(prefix)
        return sizes_k, own, inverse, slots.ravel()


def _filled(values: np.ndarray, size: int, fill: float) -> np.ndarray:
    out = np.full(size, fill, values.dtype if len(values) else np.int64)
    out[: len(values)] = values
    return out
