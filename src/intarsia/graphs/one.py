"""One shape of pass: its tensors, and on a GPU the graph that runs over them.

L columns, G rows that there is room for, D width of the states, V words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from intarsia.addressed import AddressedRoute
from intarsia.backbone import Backbone
from intarsia.backbone.packed import Segments, Slots, packed
from intarsia.graphs.layout import Packed
from intarsia.ops import NOBODY, Rows
from intarsia.routing import Route
from intarsia.staged import Staged, capturing
from intarsia.storage import Form

Under = Callable[[Route], AbstractContextManager[None]]
"""Routes the model's calls meanwhile."""


class Key(NamedTuple):
    """What batches have in common that one graph can serve."""

    columns: int
    rows: int
    longest: int
    types: bool
    entered: bool
    """Whether there are prompts, so that embeddings go in instead of tokens."""
    forms: tuple[Form, ...]
    slots: Slots | None
    """Rows that are being written: what they have read is kept there, and the scores of the next word come out."""


class Written(NamedTuple):
    """Beside a batch's rows, where they are being written."""

    slots: Sequence[int]
    """(B,)"""
    lengths: Sequence[int]
    """(B,): columns that each has read before."""


class OnePass:
    """The tensors of a pass, the same ones for each batch."""

    def __init__(self, backbone: Backbone, key: Key, anchor: Tensor, out: Tensor) -> None:
        """out: (at least L, D), where the states go; (at least G, V) for the scores of the next words."""
        self.backbone, self.key, self.out = backbone, key, out
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
        if key.slots is not None:
            integers |= {"places": (key.columns,), "first": (key.rows,), "counts": (key.rows,), "last": (key.rows,)}
        self.staged = Staged(integers, torch.int64, backbone.device)
        here = self.here = self.staged.there
        self.mask = torch.ones(1, key.columns, dtype=torch.int64, device=backbone.device)
        self.embedded: Tensor | None = None
        self.rows = Rows(
            anchor,
            here["offsets"],
            here["forms"],
            here["starts"],
            here["owner"],
            key.longest,
            sorts=max(1, len(key.forms)),
        )
        more = {} if key.slots is None else {"counts": here["counts"], "places": here["places"], "slots": key.slots}
        self.segments = Segments(here["starts"], key.longest, here.get("first", here["starts"]), key.longest, **more)
        self.replay: Callable[[], None] | None = None
        self._route: AddressedRoute | None = None
        """The graph's, whose tensors it reads."""

    def fill(
        self, made: Packed, offsets: Sequence[int], forms: Sequence[int], moved: np.ndarray, written: Written | None
    ) -> None:
        """The next batch. moved: (B,), what is added to the positions of each row."""
        there, used, count = self.staged.next(), len(made.ids), len(made.lengths)
        for name, values in (("ids", made.ids), ("types", made.types)):
            if name in there and values is not None:
                there[name][0, :used], there[name][0, used:] = np.maximum(values, 0), 0
        owner = made.owner
        there["positions"][0, :used], there["positions"][0, used:] = made.positions + moved[owner], 0
        there["owner"][:used], there["owner"][used:] = owner, self.key.rows
        there["starts"][:count], there["starts"][count:] = made.starts, used
        for name, given, spare in (("offsets", offsets, 0), ("forms", forms, NOBODY)):
            there[name][:count], there[name][count:] = given, spare
        if (slots := self.key.slots) is not None:
            assert written is not None
            first, before = np.asarray(written.slots) * slots.columns, np.asarray(written.lengths)
            there["places"][:used] = (first + before)[owner] + made.positions
            there["places"][used:] = slots.spare
            there["first"][:count], there["first"][count:] = first, slots.spare
            there["counts"][:count], there["counts"][count:] = before + made.lengths, 0
            there["last"][:count], there["last"][count:] = made.starts + made.lengths - 1, 0
        self.staged.send()

    def route(self, flats: Sequence[Tensor | None] = ()) -> AddressedRoute:
        """Of the rows. flats: each one's, which kernels do without."""
        return AddressedRoute([], 0, self.key.forms, self.rows._replace(flats=flats))

    def run(self, under: Under, route: AddressedRoute) -> None:
        """The model over the packed rows."""
        batch = {"position_ids": self.here["positions"], "attention_mask": self.mask}
        if self.embedded is None:
            batch["input_ids"] = self.here["ids"]
        else:
            batch["inputs_embeds"] = self.embedded
        if self.key.types:
            batch["token_type_ids"] = self.here["types"]
        with packed(self.backbone, self.segments), under(route):
            if self.key.slots is None:
                self.out[: self.key.columns].copy_(self.backbone.features(batch)[0])
            else:
                with self.backbone.only(self.here["last"]):
                    self.out[: self.key.rows].copy_(self.backbone.word_scores(batch))

    def capture(self, under: Under, stream: torch.cuda.Stream, pool: Any) -> str:
        """Once to compile the kernels, and once for the graph. Returns why there is none, and `replay` stays None."""
        route = self._route = self.route()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.run(under, route)
        graph, why = torch.cuda.CUDAGraph(), ""
        try:
            with capturing(graph, stream, pool):
                self.run(under, route)
            self.replay = graph.replay
        except RuntimeError as error:  # it waits for the device in between, or memory is short
            why = str(error).partition("\n")[0] or type(error).__name__
        torch.cuda.current_stream().wait_stream(stream)
        return why
