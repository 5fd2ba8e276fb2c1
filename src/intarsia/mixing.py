"""What the rows of one call get from tasks of different sorts, at each of the three seams.

The rows are sorted: `deltas` and `counts` have one entry for each run of rows with the same source, None where it has no delta at
the place. A delta of N tasks has tensors (N, ...) for a run of rows in N equal parts. Unequal lengths are padded and hidden, so a
row never meets another task's positions.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from intarsia.backbone.attention import Prefix
from intarsia.backbone.entrance import PLACES, Prompts
from intarsia.methods import Delta, EmbeddingDelta, KeyValueDelta, ProjectionDelta


def mix_projections(deltas: Sequence[Delta | None], counts: Sequence[int], x: Tensor, y: Tensor) -> Tensor:
    """Each run of rows through its own delta; the others pass unchanged. x: (B, ..., D_in), y: (B, ..., D), which is written to
    where no gradients are wanted: it has just been made, for nobody else."""
    if len(deltas) == 1:
        return y if deltas[0] is None else deltas[0](x, y)
    in_place, pieces, stop = not torch.is_grad_enabled(), [], 0
    for delta, count in zip(deltas, counts, strict=True):
        span = slice(stop, stop := stop + count)
        assert delta is None or isinstance(delta, ProjectionDelta)
        if not in_place:
            pieces.append(y[span] if delta is None else delta(x[span], y[span]))
        elif delta is not None:
            own = y[span]
            own.copy_(delta(x[span], own))
    return y if in_place else torch.cat(pieces)


def _rows(values: Tensor, count: int) -> Tensor:
    """(N, ...) -> (count, ...): each task's values for its rows. Copied only where there are several tasks of several rows."""
    if len(values) == count:
        return values
    if len(values) == 1:
        return values.expand(count, *values.shape[1:])
    return values.repeat_interleave(count // len(values), 0)


def mix_prefixes(deltas: Sequence[Delta | None], counts: Sequence[int], kept: dict[Any, Any]) -> Prefix:
    """Each row's keys and values; rows with none, or with shorter ones, have hidden columns on the left. kept: what is the same at
    all layers of a call, and made once."""
    made = [delta() if isinstance(delta, KeyValueDelta) else None for delta in deltas]
    offset = any(isinstance(delta, KeyValueDelta) and delta.offset for delta in deltas)
    like = next(pair for pair in made if pair is not None)
    if len(made) == 1:
        keys, values = (part if len(part) == 1 else _rows(part, counts[0]) for part in like)
        return Prefix(keys, values, None, offset, kept)
    lengths = [0 if pair is None else pair[0].shape[2] for pair in made]
    longest = max(lengths)
    if (word := (*lengths, *counts)) not in kept:
        columns = torch.arange(longest, device=like[0].device)
        each = zip(lengths, counts, strict=True)
        kept[word] = torch.cat([(columns >= longest - length).expand(count, -1) for length, count in each])
    sides = [_room(kept, side, sum(counts), longest, like[side]) for side in (0, 1)]
    stop = 0
    for pair, length, count in zip(made, lengths, counts, strict=True):
        span = slice(stop, stop := stop + count)
        for whole, own in zip(sides, pair or (), strict=False):
            # Each task's rows as an axis of their own: its values go to all of them in one copy.
            whole[span, :, longest - length :].unflatten(0, (len(own), -1)).copy_(own[:, None])
    return Prefix(sides[0], sides[1], kept[word], offset, kept)


def _room(kept: dict[Any, Any], side: int, rows: int, longest: int, like: Tensor) -> Tensor:
    """(rows, H, longest, D) for the keys (side 0) or values (1) of all rows, finite where nothing is written. An attention copies
    them, so that the next layer may write to the same, unless gradients are wanted."""
    shape = (rows, like.shape[1], longest, like.shape[3])
    if torch.is_grad_enabled():
        return like.new_zeros(shape)
    if (word := ("room", side, shape, like.dtype)) not in kept:
        kept[word] = like.new_zeros(shape)
    return kept[word]


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
