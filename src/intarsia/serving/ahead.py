"""What requests would wait for, made while there are none: the CUDA graphs of usual batches, and the kernels in them."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence

import torch

from intarsia.bank import TaskBank
from intarsia.graphs import MOST
from intarsia.serving.decoder import Decoder
from intarsia.serving.limits import Limits
from intarsia.serving.logs import note_bug
from intarsia.serving.versions import Version
from intarsia.staged import Returning
from intarsia.storage import Form


class Ahead:
    """Belongs to the engine's thread, but for `wanted` and `ready`."""

    def __init__(self, bank: TaskBank, limits: Limits, decoder: Decoder | None) -> None:
        self._bank, self._limits, self._decoder = bank, limits, decoder
        self.wanted = False
        """Whether anything is made ahead."""
        self.ready = threading.Event()
        """All is there that the tasks of now want."""
        self._seen = -1
        self._known: set[tuple[Form, bool]] = set()
        """The shapes of tasks that everything is there for."""
        self._rest: Iterator[None] = iter(())

    def step(self, changes: int, versions: Collection[Version]) -> bool:
        """Makes one thing; False: there is nothing to make. changes: another number where tasks have come or gone."""
        if not self.wanted:
            return False
        if changes != self._seen:
            self._seen, self._rest = changes, self._all(versions)
        try:
            next(self._rest)
        except StopIteration:
            self.ready.set()
            return False
        except Exception as error:  # noqa: BLE001 - requests are answered all the same, if later
            note_bug("making passes ahead of requests failed", error)
            self._rest = iter(())
        return True

    def _all(self, versions: Collection[Version]) -> Iterator[None]:
        reads = [version for version in versions if version.kind != "generation" and not version.task.words]
        if reads:
            types = any(_typed(version) for version in reads)
            names, limits = [version.key for version in reads], self._limits
            shapes = dict(list(self._bank.shapes(names).items())[:MOST])
            if not self._known.issuperset(wanted := {(form, types) for form in shapes}):
                yield from self._bank.ahead(names, tokens=limits.batch_tokens, rows=limits.batch_rows, types=types)
                self._ask(list(shapes.values()))
                self._known = wanted
        if self._decoder is not None:
            yield from self._decoder.ahead([version.key for version in versions if version.kind == "generation"])

    @torch.inference_mode()
    def _ask(self, names: Sequence[str]) -> None:
        """A batch from beginning to end: the first one is slow for other reasons, too."""
        ids = torch.zeros(len(names), 4, dtype=torch.int64)
        Returning(self._bank({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, tasks=list(names))).wait()


def _typed(version: Version) -> bool:
    """Whether its rows have token types."""
    reader = version.reader
    several = len(reader.columns) > 1 and reader.kind != "token-classification"
    return several and reader.read(["a"] * len(reader.columns)).types is not None
