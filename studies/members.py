"""The runs of a study that share a pack: trained by `fit_pack`, and their texts, rows of all of them in one batch."""

import gc
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from intarsia.backbone import Backbone
from intarsia.bank import TaskBank
from intarsia.data import Encoded, EncodedPairs, EncodedSource, GenerationSource
from intarsia.errors import TrainingError
from intarsia.heads import Decoding, Head
from intarsia.methods import Method
from intarsia.task import Task
from intarsia.training import Entry, Failed, TrainSettings, Writing, fit_pack
from intarsia.training.generating import detokeniser, write
from intarsia.training.packed import arranged
from studies.pool import Job, Run


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One run, without validation: texts over a decoder, or labels."""

    job: Job
    """Its last word is the seed."""
    method: Method
    head: Head
    rows: EncodedPairs | Encoded
    settings: TrainSettings


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What has become of the plans of a pack."""

    bank: TaskBank
    facts: dict[Job, Run]
    """Of those that ended well: cost and sizes."""
    diverged: list[Job]
    names: dict[Job, str]
    """In the bank."""

    def texts(self, source: GenerationSource, decoding: Decoding, together: int) -> dict[Job, list[str]]:
        """What each writes for the rows of a source, in their order. together: rows of one call of generate."""
        names = [self.names[job] for job in self.facts]
        found: list[list[str]] = [[""] * len(source.encoded) for _ in names]
        if not names:
            return {}
        writing = Writing(decode=detokeniser(self.bank.backbone.tokenizer), decoding=decoding)
        order = source.encoded.lengths.argsort(kind="stable")[::-1]
        at, each = 0, max(1, together // len(names))
        while at < len(order):
            key = order[at : at + each].copy()
            try:
                new = write(self.bank, source, key, names * len(key), writing, copies=len(names))
            except torch.OutOfMemoryError:
                if each == 1:
                    raise
                torch.cuda.empty_cache()
                each //= 2
                continue
            for place, text in enumerate(new):
                found[place % len(names)][key[place // len(names)]] = text
            at += len(key)
        return dict(zip(self.facts, found, strict=True))

    def lost(self) -> Iterator[tuple[Job, Run]]:
        """The runs of those that diverged: worse than any."""
        yield from ((job, {"validation": -1e9, "diverged": True}) for job in self.diverged)


@contextmanager
def trained(backbone: Backbone, plans: Sequence[Plan]) -> Iterator[Trained]:
    """Trains them at once; the tasks are on the backbone, in their shipped form, until the context ends.

    Runs that fail for another reason than their numbers are printed, and are in neither list.
    """
    pad, cuda = backbone.pad_id, backbone.device.type == "cuda"
    names = {plan.job: f"run-{index}" for index, plan in enumerate(plans)}
    tasks = [Task.new(names[p.job], backbone, p.method, p.head, seed=p.job[-1]) for p in plans]
    sizes = [task.trained_parameters() for task in tasks]
    bank = TaskBank(backbone, tasks)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            entries = []
            for task, plan in zip(tasks, plans, strict=True):
                arrangement = arranged("auto", task, backbone, plan.settings)
                kind: Any = EncodedSource if isinstance(plan.rows, Encoded) else GenerationSource
                train = kind(
                    plan.rows, plan.settings.batch_size, pad_id=pad, seed=plan.settings.seed, arrangement=arrangement
                )
                out = Path(folder) / task.name
                entries.append(Entry(task=task, train=train, validation=None, settings=plan.settings, out=out))
            ended = fit_pack(bank, entries)
        seconds = time.perf_counter() - begun
        shared = {
            "minutes": seconds / 60 / len(plans),
            "gigabytes": torch.cuda.max_memory_allocated() / 1e9 if cuda else None,
            "together": len(plans),
            "of": backbone.parameter_count(),
        }
        _tidy(cuda=cuda)  # the graph's memory, before text is generated
        facts: dict[Job, Run] = {}
        diverged = []
        for plan, task, size in zip(plans, tasks, sizes, strict=True):
            result = ended[task.name]
            if not isinstance(result, Failed):
                own: Any = {"trained": size, "stored": task.trained_parameters(), "steps": result.steps}
                facts[plan.job] = own | {"loss": result.loss, "tokens": result.tokens} | shared
                continue
            print(f"{plan.job}: {result.message}", flush=True)
            if isinstance(result.error, TrainingError):
                diverged.append(plan.job)
        if facts:
            speed = sum(fact["tokens"] for fact in facts.values()) / seconds
            print(f"{len(plans)} runs at {speed:,.0f} tokens/s: {plans[0].job} ...", flush=True)
        yield Trained(bank=bank, facts=facts, diverged=diverged, names=names)
    finally:
        bank.detach()
        _tidy(cuda=cuda)


def _tidy(*, cuda: bool) -> None:
    """Gives the device's memory back, for the other processes."""
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()


def settings(rate: float, batch: int, seed: int, **more: Any) -> TrainSettings:
    """What the runs of these studies share: no decay, no dropout, last weights, and no checkpoints on the way."""
    return TrainSettings(
        learning_rate=rate, batch_size=batch, seed=seed, weight_decay=0.0, backbone_dropout=False,
        checkpoint_every=10**6, **more,
    )  # fmt: skip
