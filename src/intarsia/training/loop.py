"""`fit` and `fit_pack`: open, resume or refuse runs, and train them."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intarsia.errors import ConfigError, DataError, IntarsiaError
from intarsia.modes import own_modes
from intarsia.training.checkpoint import FILE, disk_errors, read_checkpoint
from intarsia.training.curve import draw_run
from intarsia.training.generating import validation_metric
from intarsia.training.keeping import fold, restore
from intarsia.training.loggers import Logger
from intarsia.training.member import Member, Prune
from intarsia.training.pack import Ended, Failed, train
from intarsia.training.packed import assign
from intarsia.training.progress import Reporter, SilentReporter
from intarsia.training.record import RunRecord, as_json, check_same
from intarsia.training.reusing import Trunks
from intarsia.training.settings import TrainSettings
from intarsia.training.source import BatchSource
from intarsia.training.state import FitResult


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One run, as `fit` takes it; in a pack, of tasks that differ by name."""

    task: Any
    train: BatchSource
    validation: BatchSource | None
    settings: TrainSettings
    out: Path
    report: Reporter = field(default_factory=SilentReporter)
    logger: Logger | None = None
    test: BatchSource | None = None
    """Rows that the best weights are scored on, if that can be done together with other members of a pack (`FitResult.test`)."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """JSON values that a resumed run must share beside the settings (data fingerprint, backbone, method)."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """JSON values that are only recorded in `run.json`."""


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
    """Trains `task` in place, and writes the run and the task folder to `out`. See Entry for identity and facts.

    Raises ConfigError (settings, an `out` that holds another run), DataError (no rows), TrainingError (the loss is not
    finite, the disk is full; the last checkpoint is intact), KeyboardInterrupt (Ctrl-C; a checkpoint has been written).
    """
    entry = Entry(
        task=task,
        train=train,
        validation=validation,
        settings=settings,
        out=out,
        report=report or SilentReporter(),
        logger=logger,
        identity=identity or {},
        facts=facts or {},
    )
    result = fit_pack(bank, [entry], resume=resume)[task.name]
    if isinstance(result, Failed):
        raise result.error
    draw_run(out)
    return result


@own_modes()
def fit_pack(
    bank: Any,
    entries: Sequence[Entry],
    *,
    resume: bool = False,
    prune: Prune | None = None,
    ended: Ended | None = None,
) -> dict[str, FitResult | Failed]:
    """Trains all tasks over the bank's backbone, each as `fit` would alone, but for its picture. Returns how each ended, by its
    task's name.

    prune: see `Prune`. ended: called as soon as a run has. A run that cannot start or go on is Failed, and the
    others are trained; KeyboardInterrupt after Ctrl-C, when all have been saved.
    """
    results: dict[str, FitResult | Failed] = {}
    members = []
    with ExitStack() as held:
        for entry in entries:
            try:
                member = _opened(bank, entry, prune, held, resume=resume)
            except IntarsiaError as error:
                results[entry.task.name] = Failed(name=entry.task.name, error=error)
                continue
            if isinstance(member, Member):
                members.append(member)
            else:
                results[entry.task.name] = member
        say = members[0].report.say if members else print
        trunks = Trunks()
        return results | train(members, lambda waiting: assign(waiting, say, trunks), ended=ended)


def _opened(bank: Any, entry: Entry, prune: Prune | None, held: ExitStack, *, resume: bool) -> Member | FitResult:
    """The member that is to be trained; the result of one that has ended before."""
    task, train, report = entry.task, entry.train, entry.report
    settings = _resolved(entry.settings, task, entry.validation)
    steps_per_epoch = math.ceil(len(train.plan(0)) / settings.accumulate)
    if steps_per_epoch == 0:
        raise DataError("training needs at least one row, got none")
    # How often a checkpoint is written changes nothing else: a resumed run is free to choose.
    same = settings.model_dump(mode="json", exclude={"checkpoint_every"})
    asked: dict[str, Any] = as_json({"settings": same, "batches_per_epoch": len(train.plan(0)), **entry.identity})
    record = RunRecord(entry.out)
    held.callback(record.close)
    record.open(resume=resume)
    if record.facts.get("result"):
        return _finished(record, bank, task, asked, report)

    checkpoint = read_checkpoint(entry.out) if resume else None
    member = Member(
        bank, task, train, entry.validation, settings, steps_per_epoch, record, report, entry.logger, asked, prune
    )
    member.test = entry.test
    if checkpoint is not None:
        check_same(checkpoint.facts["identity"], asked)
        restore(member, checkpoint)
        report.say(f"resumed from the checkpoint of step {member.state.step} of {member.total}")
    else:
        if resume:
            report.say(f"{entry.out} has no checkpoint: starting from the beginning")
        record.begin({**asked, "settings": settings.model_dump(mode="json")}, entry.facts)
    return member


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
    dropout = task.alone if settings.backbone_dropout is None else settings.backbone_dropout
    return settings.model_copy(
        update={
            "metric": metric,
            "learning_rate": rate,
            "weight_decay": settings.decay(),
            "backbone_dropout": dropout,
        },
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
    with disk_errors("the end of the run", record.out):
        (record.out / FILE).unlink(missing_ok=True)
    result = FitResult(**facts["result"])
    report.say(f"{record.out} holds a finished run ({result.steps} steps); nothing is left to train")
    return result
