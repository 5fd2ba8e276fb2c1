"""What the rows of one call get from tasks of different sorts, at each of the three seams.

The rows are sorted: `deltas` and `counts` have one entry for each run of rows with the same source, None where it has no delta at
the place. A delta of N tasks has tensors (N, ...) for a run of rows in N equal parts. Prompts of unequal lengths are padded and
hidden, prefixes are kept apart, so a row never meets another task's positions.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from intarsia.backbone.attention import Prefix
from intarsia.backbone.entrance import PLACES, Prompts
from intarsia.methods import Delta, EmbeddingDelta, KeyValueDelta, ProjectionDelta
from intarsia.methods.norms import NormDelta
from intarsia.ops import Own, Summed, frozen_norm, made


def mix_projections(deltas: Sequence[Delta | None], counts: Sequence[int], x: Tensor, y: Tensor) -> Tensor:
    """Each run of rows through its own delta; the others pass unchanged. x: (B, ..., D_in), y: (B, ..., D), which is written to
    where no gradients are wanted: it has just been made, for nobody else."""
    in_place, alone, pieces, stop = not torch.is_grad_enabled(), len(deltas) == 1, [], 0
    for delta, count in zip(deltas, counts, strict=True):
        span = slice(stop, stop := stop + count)
        own = y if alone else y[span]
        if delta is not None:
            assert isinstance(delta, ProjectionDelta)
            read = x if alone else x[span]
            own = delta.change_(read, own) if in_place else delta(read, own)
        pieces.append(own)
    return y if in_place else pieces[0] if alone else torch.cat([made(piece) for piece in pieces])


def mix_norms(deltas: Sequence[Delta | None], counts: Sequence[int], x: Tensor | Summed, own: Own) -> Tensor:
    """As `mix_projections`, at a norm that nobody has computed yet."""
    pieces = []
    for delta, read in zip(deltas, [x] if len(deltas) == 1 else x.split(list(counts)), strict=True):
        assert delta is None or isinstance(delta, NormDelta)
        pieces.append(frozen_norm(read, own) if delta is None else delta.whole(read, own))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _rows(values: Tensor, count: int) -> Tensor:
    """(N, ...) -> (count, ...): each task's values for its rows. Copied only where there are several tasks of several rows."""
    if len(values) == count:
        return values
    if len(values) == 1:
        return values.expand(count, *values.shape[1:])
    return values.repeat_interleave(count // len(values), 0)


def mix_prefixes(deltas: Sequence[Delta | None], counts: Sequence[int], kept: dict[Any, Any]) -> list[Prefix]:
    """Each run's keys and values; neighbouring runs without any are one. kept: what is the same at all layers of a call, and
    made once."""
    found: list[Prefix] = []
    for delta, count in zip(deltas, counts, strict=True):
        if isinstance(delta, KeyValueDelta):
            masks = kept.setdefault(("masks", len(found)), {})
            key, value = delta()
            found.append(Prefix(count, key, value, delta.offset, masks))
        elif found and found[-1].key is None:
            found[-1] = Prefix(found[-1].rows + count, None, None)
        else:
            found.append(Prefix(count, None, None))
    return found


def mix_prompts(
    deltas: Sequence[Delta | None], offsets: Sequence[int], counts: Sequence[int], device: torch.device
) -> Prompts:
    """Each row's prompt, and how far its positions move."""
    repeats, rows = torch.tensor(counts, device=device), sum(counts)

    def by_row(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, device=device).repeat_interleave(repeats, output_size=rows)

    offset = by_row(offsets) if any(offsets) else None
    prompts = [delta if isinstance(delta, EmbeddingDelta) else None for delta in deltas]
    vectors = [None if delta is None else delta() for delta in prompts]
    if not (made := [vector for vector in vectors if vector is not None]):
        return Prompts(offset=offset)
    longest = max(vector.shape[1] for vector in made)
    empty = made[0].new_zeros(1, 0, made[0].shape[2])
    full = [F.pad(empty if v is None else v, (0, 0, 0, longest - (0 if v is None else v.shape[1]))) for v in vectors]
    return Prompts(
        vectors=torch.cat([_rows(vector, count) for vector, count in zip(full, counts, strict=True)]),
        lengths=by_row([0 if delta is None else delta.length for delta in prompts]),
        places=by_row([0 if delta is None else PLACES[delta.place] for delta in prompts]),
        # A list: torch.compile knows neither `default` nor generators here, and would break its graph.
        extra=max([0, *[d.length for d in prompts if d is not None and d.place != "template"]]),
        offset=offset,
    )
