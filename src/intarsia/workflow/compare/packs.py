"""Which runs train together."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from intarsia.errors import DiskError
from intarsia.training import Failed
from intarsia.workflow.compare import probing
from intarsia.workflow.compare.ledger import Event

Packs = Callable[..., Sequence[Any]]
"""`workflow.pack.run_pack`, or what stands in for it."""
USABLE = 0.8
"""Share of the free memory that a pack may take."""


def packs_of(members: Sequence[Event], memory: Mapping[str, int], device: torch.device) -> list[list[Event]]:
    """Packs in turn: on a CPU one for each seed, as more at once gain nothing there; never more than memory holds.

    memory: bytes of a run, by its name.
    """
    room, packs = probing.free(device), []
    by_seed: dict[int, list[Event]] = {}
    for one in members:
        by_seed.setdefault(one["seed"] if device.type == "cpu" else 0, []).append(one)
    for waiting in by_seed.values():
        pack, used = [], 0
        for one in waiting:
            needed = memory.get(one["run"], 0)
            if pack and room is not None and used + needed > USABLE * room:
                packs.append(pack)
                pack, used = [], 0
            pack.append(one)
            used += needed
        packs.append(pack)
    return packs


def disk_failed(result: Any) -> bool:
    """Whether a run only wants for room: that says nothing of its method, so it is not counted as failed."""
    return isinstance(result, Failed) and isinstance(result.error, DiskError)


def raise_disk_error(results: Sequence[Any]) -> None:
    """A full disk stops the comparison as a kill does; a resumed one goes on with the runs that wanted for room."""
    if short := next((result for result in results if disk_failed(result)), None):
        raise short.error
