"""The product's own loop, one measurement in a process: a part of bench_speed_cpu."""

import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.speed_cpu_parts import EPOCHS, MAX_LENGTH, ROWS, Clock, read_rows, scored
from intarsia import Backbone, BottleneckAdapter, Head, Task, TaskBank
from intarsia.data import Encoded, EncodedSource, Rows, encode
from intarsia.methods import METHODS, HeadOnly, Method
from intarsia.training import Entry, Failed, SilentReporter, TrainSettings, fit_pack, predict
from intarsia.training.packed import arranged

MODEL = "embedded:minilm"
LONG = 10_000
"""Steps of a run that the clock ends: in a short one every step would be written down."""
TOKENS = 53 * ROWS
"""Of a mean batch of MRPC."""
REUSE = {"all": (), "top-half": (0, 1, 2), "top-third": (0, 1, 2, 3)}
"""Layers without adapters."""


class Counting(EncodedSource):
    """Tells the clock of its batches."""

    clock: Clock

    def load(self, key: Any) -> Any:
        self.clock.batches.append(self.tokens(key))
        return super().load(key)


class Enough(Exception):  # noqa: N818 - the clock has all its steps
    """Ends a run that would be longer."""


class Ticking(SilentReporter):
    """Tells the clock of the steps, and ends the run after the last of them."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def advance(self, step: int) -> None:
        self.clock.step()
        if self.clock.done == self.clock.total:
            raise Enough


def encoded(backbone: Backbone, data: Path, split: str, count: int | None = None) -> Encoded:
    """The first rows of a split."""
    pairs, labels = read_rows(data, split)
    return encode(Rows(pairs[:count], labels[:count]), backbone.tokenizer, MAX_LENGTH, "classification")


def trained(
    bank: TaskBank,
    tasks: Sequence[Task],
    rows: Encoded,
    settings: Sequence[TrainSettings],
    clock: Clock | None = None,
) -> None:
    """All tasks in one pack; the clock is told of every step of each."""
    backbone, entries = bank.backbone, []
    with tempfile.TemporaryDirectory() as out:
        for task, own in zip(tasks, settings, strict=True):
            how: Any = {"pad_id": backbone.pad_id, "seed": own.seed}
            how["arrangement"] = arranged("auto", task, backbone, own)
            source = EncodedSource(rows, ROWS, **how) if clock is None else Counting(rows, ROWS, **how)
            report = SilentReporter()
            if clock is not None:
                source.clock, report = clock, Ticking(clock)  # type: ignore[attr-defined]
            folder = Path(out) / task.name
            entries.append(Entry(task=task, train=source, validation=None, settings=own, out=folder, report=report))
        with suppress(Enough):
            for result in fit_pack(bank, entries).values():
                if isinstance(result, Failed):
                    raise result.error


def tasks_of(backbone: Backbone, method: Method, seeds: Sequence[int], *, first_token: bool = False) -> list[Task]:
    """One for each seed. first_token: their heads read the first token's state, not the mean."""
    head = Head(labels=("0", "1"), pooling="cls" if first_token else "auto")
    return [Task.new(f"mrpc-{seed}", backbone, method, head, seed=seed) for seed in seeds]


def speed(method: str, dtype: str, data: Path, clock: Clock, *, first_token: bool) -> None:
    """One task with the defaults but for its head."""
    pack(METHODS[method](), 1, dtype, data, clock, first_token=first_token)


def pack(method: Method, members: int, dtype: str, data: Path, clock: Clock, *, first_token: bool = False) -> None:
    """Members that differ by their seed; the clock counts the steps of all."""
    backbone = Backbone.load(MODEL, dtype=dtype, device="cpu")
    tasks = tasks_of(backbone, method, range(members), first_token=first_token)
    settings = [TrainSettings(max_steps=LONG, batch_size=ROWS, seed=i) for i in range(members)]
    trained(TaskBank(backbone, tasks), tasks, encoded(backbone, data, "train"), settings, clock)


def reuse(where: str, data: Path, clock: Clock) -> None:
    """The second epoch over as many rows as the clock's warm-up has: what lies under the lowest module is there by then."""
    backbone = Backbone.load(MODEL, device="cpu")
    method: Method = HeadOnly() if where == "head" else BottleneckAdapter(leave_out=REUSE[where])
    tasks = tasks_of(backbone, method, [0])
    settings = TrainSettings(max_steps=LONG, batch_size=ROWS)
    trained(TaskBank(backbone, tasks), tasks, encoded(backbone, data, "train", clock.warmup * ROWS), [settings], clock)


def floor(dtype: str, clock: Clock) -> None:
    """What nobody can beat who runs this trunk in this dtype: the products with its matrices, forward and backward to the input, of
    as many tokens as a mean batch has; nothing between them."""
    backbone = Backbone.load(MODEL, dtype=dtype, device="cpu")
    layers = [m for path, m in backbone.base.named_modules() if isinstance(m, nn.Linear) and "pooler" not in path]
    widths = {width for layer in layers for width in layer.weight.shape}
    states = {width: torch.randn(TOKENS, width).to(backbone.dtype) for width in widths}
    while clock.done < clock.total:
        with torch.no_grad():
            for layer in layers:
                layer(states[layer.in_features])
            for layer in reversed(layers):
                states[layer.out_features] @ layer.weight
        clock.batches.append(TOKENS)
        clock.step()


def quality(method: str, first_token: bool, seeds: int, data: Path, device: str) -> list[dict[str, Any]]:
    """The last weights of runs of three epochs with the defaults, on dev and test."""
    begun = time.perf_counter()
    backbone = Backbone.load(MODEL, device=device)
    tasks = tasks_of(backbone, METHODS[method](), range(seeds), first_token=first_token)
    bank = TaskBank(backbone, tasks)
    settings = [TrainSettings(epochs=EPOCHS, batch_size=ROWS, seed=seed) for seed in range(seeds)]
    trained(bank, tasks, encoded(backbone, data, "train"), settings)
    spent = (time.perf_counter() - begun) / seeds
    found = []
    for seed, task in enumerate(tasks):
        scores: dict[str, float] = {}
        for split in ("dev", "test"):
            rows = encoded(backbone, data, split)
            source = EncodedSource(rows, 64, pad_id=backbone.pad_id)
            order = [int(i) for key in source.plan(0) for i in key]
            labels = rows.labels
            assert labels is not None
            answers = [int(answer) for answer in predict(bank, task, source).predictions]
            scores |= scored(answers, [int(labels[i]) for i in order], split)
        found.append({"seed": seed, **scores, "seconds": round(spent, 1)})
    return found
