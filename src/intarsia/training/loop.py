"""`fit`: opens, resumes or refuses a run, and trains it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from intarsia.errors import ConfigError, DataError
from intarsia.training.checkpoint import FILE, read_checkpoint
from intarsia.training.generating import validation_metric
from intarsia.training.keeping import fold, restore
from intarsia.training.loggers import Logger
from intarsia.training.progress import Reporter, SilentReporter
from intarsia.training.record import RunRecord, as_json, check_same
from intarsia.training.run import Run
from intarsia.training.settings import TrainSettings
from intarsia.training.source import BatchSource
from intarsia.training.state import FitResult


def fit(
    bank: Any,
    task: Any,
    train: BatchSource,
    validation: BatchSource | None,
    settings: TrainSettings,
    out: Path,
    *,
    resume: bool = False,
    report: Reporter | None = None,
    logger: Logger | None = None,
    identity: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> FitResult:
    """Trains `task` in place, and writes the run and the task folder to `out`. Seeds torch's global generator.

    identity: JSON values that a resumed run must share beside the settings (data fingerprint, backbone, method).
    facts: JSON values that are only recorded in `run.json`.

    Raises ConfigError (settings, an `out` that holds another run), DataError (no rows), TrainingError (the loss is not
    finite, the disk is full; the last checkpoint is intact), KeyboardInterrupt (Ctrl-C; a checkpoint has been written).
    """
    settings = _resolved(settings, task, validation)
    steps_per_epoch = math.ceil(len(train.plan(0)) / settings.accumulate)
    if steps_per_epoch == 0:
        raise DataError("training needs at least one row, got none")
    # How often a checkpoint is written changes nothing else: a resumed run is free to choose.
    same = settings.model_dump(mode="json", exclude={"checkpoint_every"})
    asked: dict[str, Any] = as_json({"settings": same, "batches_per_epoch": len(train.plan(0)), **(identity or {})})
    report = report or SilentReporter()
    record = RunRecord(out)
    record.open(resume=resume)
    if record.facts.get("result"):
        return _finished(record, bank, task, asked, report)

    torch.manual_seed(settings.seed)
    checkpoint = read_checkpoint(out) if resume else None
    run = Run(bank, task, train, validation, settings, steps_per_epoch, record, report, logger, asked)
    if checkpoint is not None:
        check_same(checkpoint.facts["identity"], asked)
        restore(run, checkpoint)
        report.say(f"resumed from the checkpoint of step {run.state.step} of {run.total}")
    else:
        if resume:
            report.say(f"{out} has no checkpoint: starting from the beginning")
        record.begin({**asked, "settings": settings.model_dump(mode="json")}, facts or {})
    return run.train()


def _resolved(settings: TrainSettings, task: Any, validation: BatchSource | None) -> TrainSettings:
    """The settings with every default that depends on the task filled in."""
    if task.head is None:
        raise ConfigError(f"task {task.name!r} has no head to train; make it with Task.new(..., head=Head(...))")
    metric = None
    if validation is not None:
        metric = validation_metric(settings.metric, task.head.kind, task.head.labels)
    elif settings.metric is not None or settings.patience is not None:
        name = "metric" if settings.metric is not None else "patience"
        raise ConfigError(f"{name} needs validation rows, and there are none; give --validation, or leave {name} out")
    rate = settings.learning_rate or task.method.default_lr
    return settings.model_copy(
        update={"metric": metric, "learning_rate": rate, "weight_decay": settings.decay()},
    )


def _finished(record: RunRecord, bank: Any, task: Any, identity: Mapping[str, Any], report: Reporter) -> FitResult:
    """The result of a run that had already ended; the task gets the weights that it saved."""
    facts = record.facts
    then = {name: facts.get(name) for name in identity}
    then["settings"] = {k: v for k, v in (facts.get("settings") or {}).items() if k != "checkpoint_every"}
    check_same(then, identity)
    saved = type(task).load(record.out, bank.backbone)
    fold(bank, task)
    task.load_tensors(saved.tensors())
    task.metrics = dict(saved.metrics)
    (record.out / FILE).unlink(missing_ok=True)
    result = FitResult(**facts["result"])
    report.say(f"{record.out} holds a finished run ({result.steps} steps); nothing is left to train")
    return result
