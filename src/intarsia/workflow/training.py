"""One training run from settings to a task folder."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intarsia.backbone import Backbone
from intarsia.backbone.embedded import cache_folder
from intarsia.bank import TaskBank
from intarsia.data import EncodedSource, Rows, Splits, encode, load_data
from intarsia.errors import ConfigError
from intarsia.heads import Head
from intarsia.methods import method_from_dict
from intarsia.task import Task
from intarsia.training import Reporter, SilentReporter, fit, open_logger
from intarsia.training.metrics import resolve_metric
from intarsia.workflow.scoring import batches_of, score
from intarsia.workflow.settings import RunSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """What a run leaves behind."""

    task: Task
    """The trained task, with the best weights."""
    backbone: Backbone
    metrics: dict[str, dict[str, float]]
    """Split -> metric -> value: of `validation`, and of `test` where it was asked for."""
    folder: Path
    """Holds task.safetensors, task.json, run.json, metrics.jsonl and curve.png."""
    seconds: float

    @property
    def size(self) -> int:
        """Bytes of the task itself: what one ships."""
        return sum((self.folder / name).stat().st_size for name in ("task.safetensors", "task.json"))


def run(
    settings: RunSettings,
    *,
    resume: bool = False,
    score_test: bool = False,
    report: Reporter | None = None,
    backbone: Backbone | None = None,
) -> Trained:
    """Loads data and backbone, trains a new task, saves it in `settings.out` and scores it.

    backbone: one that is loaded already; its name must be the settings'. Nothing is written before data, backbone and
    method have been found to fit each other. Raises any IntarsiaError; KeyboardInterrupt after a checkpoint.
    """
    began, report = time.perf_counter(), report or SilentReporter()
    _check_out(settings.out, resume)
    if settings.threads:
        import torch

        torch.set_num_threads(settings.threads)
    splits = load_data(settings.data.spec())
    train = splits.split("train")
    tested = splits.split("test") if score_test else None
    backbone = backbone or Backbone.load(settings.backbone, dtype=settings.dtype, device=settings.device)
    max_length = _max_length(settings, backbone)
    task = _new_task(settings, splits, backbone)
    task.data = _describe(settings, splits, max_length)
    if splits.validation:
        resolve_metric(settings.train.metric, splits.kind, splits.labels)
    notes = [*splits.notes, f"{task.trained_parameters():,} trained parameters, {len(train):,} training rows"]
    source = _sources(settings, splits.kind, backbone, max_length, notes)
    batches = source(train, "training", seed=settings.train.seed)
    watched = source(splits.validation, "validation") if splits.validation else None
    bank = TaskBank(backbone, [task])
    logger = open_logger(settings.log, settings.out, settings.model_dump(mode="json")) if settings.log else None
    # Said now, because from here on only the run itself can fail: an error until here is the one line that a user sees.
    for note in notes:
        report.say(note)
    try:
        result = fit(
            bank,
            task,
            batches,
            watched,
            settings.train,
            settings.out,
            resume=resume,
            report=report,
            logger=logger,
            identity={"data": splits.fingerprint, "backbone": backbone.fingerprint, "method": settings.method},
            facts={"run": settings.model_dump(mode="json"), "notes": splits.notes},
        )
    finally:
        if logger is not None:
            logger.close()
    metrics = {"validation": result.metrics} if splits.validation else {}
    if tested is not None:
        metrics["test"] = score(bank, task, source(tested, "test")).metrics
        task.metrics |= {f"test_{name}": value for name, value in metrics["test"].items()}
        task.save(settings.out)
    return Trained(
        task=task, backbone=backbone, metrics=metrics, folder=settings.out, seconds=time.perf_counter() - began
    )


def _check_out(out: Path, resume: bool) -> None:
    """Says early what `fit` would say after the backbone is loaded and the texts are tokenised. Writes nothing."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out must be a folder, and {out} is a file; choose another --out")
    above = out
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot write to {out}: {above} is not a folder that you may write to; choose another --out")
    if not resume and any((out / name).exists() for name in ("run.json", "task.json")):
        raise ConfigError(f"{out} already holds a run; go on with --resume, or choose another --out")


def _max_length(settings: RunSettings, backbone: Backbone) -> int:
    asked = settings.train.max_length
    if asked is not None and asked > backbone.max_length:
        raise ConfigError(
            f"train.max_length is {asked}, and {backbone.name} takes {backbone.max_length} tokens; lower it, or leave it out"
        )
    return asked or backbone.max_length


def _new_task(settings: RunSettings, splits: Splits, backbone: Backbone) -> Task:
    head = Head(kind=splits.kind, labels=splits.labels, **settings.head.model_dump())  # type: ignore[arg-type]
    name = settings.name or settings.out.resolve().name
    return Task.new(name, backbone, method_from_dict(settings.method), head, seed=settings.train.seed)


def _describe(settings: RunSettings, splits: Splits, max_length: int) -> dict[str, Any]:
    """What evaluate and predict need to read the same kind of data again. No path of the training machine."""
    return {
        "source": settings.data.data,
        "text_columns": list(splits.text_columns),
        "label_column": splits.label_column,
        "split_seed": settings.data.split_seed,
        "validation_fraction": settings.data.validation_fraction,
        "max_length": max_length,
        "fingerprint": splits.fingerprint,
    }


def _sources(
    settings: RunSettings, kind: str, backbone: Backbone, max_length: int, notes: list[str]
) -> Callable[..., EncodedSource]:
    """A function from rows to their batches: shuffled by `seed`, or in order of length without one. It adds to `notes`."""

    def source(rows: Rows, split: str, seed: int | None = None) -> EncodedSource:
        encoded = encode(rows, backbone.tokenizer, max_length, kind, cache_folder() / "tokens")
        notes.extend(encoded.notes)
        if encoded.truncated:
            notes.append(f"{split}: {encoded.truncated:,} of {len(encoded):,} texts cut to {max_length} tokens")
        if encoded.lost_words:
            notes.append(f"{split}: {encoded.lost_words:,} words without a token, left out of training and scores")
        return batches_of(encoded, backbone, settings.train.batch_size, seed, settings.train.bucket)

    return source
