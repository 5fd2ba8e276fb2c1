"""`ablate`: what a task is worth without some of its modules, and nothing trained again.

Spans of layers: the score after taking out the modules of layers i to j, for all i and j (Houlsby et al. 2019, figure 6). All that
the task has in a layer is taken out, trained norms too, so that the layer is the frozen backbone's; what stands before layer 0 goes
with layer 0, what stands behind the last layer stays. Replaced weights (full fine-tuning) become the pretrained ones again.

Dropping: the bottom n layers without modules, as AdapterDrop does (Rueckle et al. 2021), with the speed that was measured.

Lengths: a prompt or prefix cut to its first k virtual tokens.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from intarsia.backbone import Backbone
from intarsia.bank import TaskBank
from intarsia.data import DataSpec, Rows, load_data
from intarsia.errors import ConfigError, DataError
from intarsia.methods import method_to_dict
from intarsia.task import Task
from intarsia.training import Writing, evaluate, validation_metric
from intarsia.training.generating import wants_texts
from intarsia.training.metrics import higher_is_better
from intarsia.training.progress import ticking
from intarsia.workflow.ablation_parts import (
    Dropped,
    Stack,
    between,
    length_of,
    lengths_to_try,
    shortened,
    stacks_of,
    without,
)
from intarsia.workflow.reading import Source, columns_of, head_of, source_of, spec_of
from intarsia.workflow.scoring import chosen_split, open_task, resident

TIMED_BATCHES, REPEATS = 6, 3


@dataclass(kw_only=True, slots=True)
class Ablation:
    """Scores of a task with modules taken out."""

    task: str
    method: dict[str, Any]
    metric: str
    higher: bool
    split: str
    """Which split was scored; the name of the file, where one was given."""
    rows: int
    score: float
    """With all modules."""
    without: float
    """With none: the trained head, if there is one, on the plain backbone."""
    tolerance: float
    stacks: list[Stack] = field(default_factory=list)
    head: bool = True
    """Whether the task has a trained head; one that writes, or answers with the language model's words, has none."""
    lengths: list[tuple[int, float]] = field(default_factory=list)
    """Virtual tokens kept, score."""

    def loss(self, score: float) -> float:
        """How much worse than with all modules; below 0 where it is better."""
        return (self.score - score) if self.higher else (score - self.score)


def ablate(
    folder: Path | str,
    data: str | DataSpec | None = None,
    split: str | None = None,
    *,
    metric: str | None = None,
    most_rows: int | None = None,
    tolerance: float = 0.01,
    batch_size: int = 32,
    timed: bool = True,
    **where: Any,
) -> Ablation:
    """Scores a task folder's task on `data` (None: what it was trained on) again and again, with modules taken out.

    split: None: validation. metric: None: accuracy, f1, ... by the kind of task.
    most_rows: a sample drawn with a fixed seed. tolerance: share of the score
    that the suggestion may lose. timed: whether speeds are measured. where: backbone, dtype, device, as for
    `open_task`. ConfigError for a task without modules.
    """
    split = chosen_split(split, data, "validation")
    task, backbone = open_task(Path(folder), **where)
    if not len(task.deltas):
        raise ConfigError(f"task {task.name!r} is a head alone ({task.method.name}): there is no module to take out")
    rows, scored = _rows(task, data, split, most_rows)
    source, head = source_of(rows, task, backbone, batch_size), head_of(task)
    chosen = validation_metric(metric, head.kind, head.labels)
    writing = Writing.of(task, backbone) if wants_texts(head, chosen) else None

    def score(variant: Task) -> float:
        with resident(backbone, [variant]) as bank:
            return evaluate(bank, variant, source, writing=writing).metrics[chosen]

    task.requires_grad_(True)  # a bank takes such a task as it is, without a copy of its tensors
    stacks = stacks_of(task, backbone)
    lengths = lengths_to_try(task)
    found = Ablation(
        task=task.name,
        method=method_to_dict(task.method),
        metric=chosen,
        higher=higher_is_better(chosen),
        split=scored,
        rows=len(rows),
        score=score(task),
        without=score(without(task, lambda site: True)),
        tolerance=tolerance,
        head=task.head_module is not None,
    )
    with ticking("ablating", sum(_runs(stack) for stack in stacks) + len(lengths)) as tick:
        for stack in stacks:
            _spans(stack, task, score, tick)
            # Replaced weights cost what the pretrained ones do.
            _drop(stack, task, backbone, source, found, timed=timed and not task.alone)
        for length in lengths:
            found.lengths.append((length, found.score if length == length_of(task) else score(shortened(task, length))))
            tick()
    found.stacks = stacks
    return found


def _rows(task: Task, data: str | DataSpec | None, split: str, most: int | None) -> tuple[Rows, str]:
    """The rows to score, and what they are called."""
    spec = data
    if not isinstance(spec, DataSpec):
        spec = spec_of(task, spec, columns_of(task, None), task.data.get("label_column"))
    splits = load_data(spec)
    one_file = spec.data is None and not isinstance(data, DataSpec)
    name = Path(str(data)).name if one_file else split
    rows = splits.split("test" if one_file else split)
    if rows.labels is None:
        raise DataError(
            f"the rows of {name} have no labels to compare with; choose another --{'data' if one_file else 'split'}"
        )
    if most is not None and most < len(rows):
        chosen = np.random.default_rng(0).permutation(len(rows))[:most]
        rows = rows.take(sorted(chosen.tolist()))
    return rows, name


def _runs(stack: Stack) -> int:
    count = len(stack.blocks)
    return count * (count + 1) // 2 + (stack.depth if count < stack.depth else 0)


def _spans(stack: Stack, task: Task, score: Callable[[Task], float], tick: Callable[[], None]) -> None:
    for i, (first, _) in enumerate(stack.blocks):
        for _, last in stack.blocks[i:]:
            stack.spans[first, last] = score(between(task, stack, first, last))
            tick()
    for layer in range(stack.depth):
        if (layer, layer) not in stack.spans:
            stack.spans[layer, layer] = score(between(task, stack, layer, layer))
            tick()
    stack.single = [stack.spans[layer, layer] for layer in range(stack.depth)]


# -- dropping ----------------------------------------------------------------------------------------------------------


def _drop(stack: Stack, task: Task, backbone: Backbone, source: Source, found: Ablation, *, timed: bool) -> None:
    """Scores and speeds of the task without the modules of its bottom layers, and how many can go."""
    ends = [0, *(last + 1 for _, last in stack.blocks)]
    spans = [(0, end - 1) for end in ends]
    allowed = found.tolerance * abs(found.score)
    free = [span for span, score in stack.spans.items() if found.loss(score) <= allowed]
    if free:
        spans.append(max(free, key=lambda span: (span[1] - span[0], -found.loss(stack.spans[span]))))
    variants = [between(task, stack, *span) for span in spans]
    seconds = _seconds(variants, backbone, source) if timed else None
    rows = [
        Dropped(
            first=first,
            layers=last - first + 1,
            score=stack.spans.get((first, last), found.score),
            speed=None if seconds is None else seconds[0] / seconds[index],
        )
        for index, (first, last) in enumerate(spans)
    ]
    stack.dropped, stack.widest = rows[: len(ends)], rows[-1] if free else None
    stack.can_go = _can_go(stack, found)


def _can_go(stack: Stack, found: Ablation) -> int:
    """The most bottom layers up to which no more is lost than the tolerance says."""
    most = 0
    for one in stack.dropped:
        if found.loss(one.score) > found.tolerance * abs(found.score):
            break
        most = one.layers
    return most


@torch.no_grad()
def _seconds(variants: Sequence[Task], backbone: Backbone, source: Source) -> list[float]:
    """Of the same batches, by each variant, as a bank serves them: the sum of each batch's quickest turn, so that what else the
    machine does is hardly in it."""
    keys = source.plan(0)
    keys = [keys[int(at)] for at in np.linspace(0, len(keys) - 1, min(TIMED_BATCHES, len(keys)))]
    batches = [source.load(key)[0] for key in keys]
    frozen = [copy.deepcopy(variant).requires_grad_(False).eval() for variant in variants]
    quickest = np.full((len(variants), len(batches)), np.inf)
    for _ in range(1 + REPEATS):  # the first also warms up
        for own, variant in zip(quickest, frozen, strict=True):
            with resident(backbone, [variant]) as bank:
                np.minimum(own, [_timed(bank, variant.name, batch) for batch in batches], out=own)
    return quickest.sum(1).tolist()


def _timed(bank: TaskBank, name: str, batch: dict[str, Any]) -> float:
    """Seconds for a batch. Scores are read, so that a GPU has done its work."""
    began = time.perf_counter()
    bank(batch, tasks=name).sum().item()
    return time.perf_counter() - began
