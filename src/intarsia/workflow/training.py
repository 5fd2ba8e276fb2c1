"""One training run from settings to a task folder."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from intarsia.backbone import Backbone
from intarsia.backbone.embedded import cache_folder
from intarsia.bank import TaskBank
from intarsia.data import DataSpec, GenerationSource, Rows, Splits, load_data
from intarsia.errors import ConfigError, DataError
from intarsia.heads import Head
from intarsia.methods import method_from_dict
from intarsia.modes import own_modes
from intarsia.rows import TARGET_LENGTH, room
from intarsia.task import Task
from intarsia.training import (
    Entry,
    Failed,
    FitResult,
    Logger,
    Reporter,
    SilentReporter,
    Writing,
    draw_run,
    fit_pack,
    open_logger,
    validation_metric,
)
from intarsia.training.checkpoint import disk_errors
from intarsia.training.loggers import logger_errors
from intarsia.training.packed import arranged
from intarsia.workflow.asked import check_out, check_slots, new_head, units_of, wants_test
from intarsia.workflow.reading import Source, longest_label, scored_together, source_of
from intarsia.workflow.scoring import check_writing, resident, score
from intarsia.workflow.sections import RunSettings
from intarsia.workflow.trained import Trained


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A run that only has to be trained: data, backbone and method have been found to fit each other."""

    settings: RunSettings
    splits: Splits
    task: Task
    backbone: Backbone
    train: Source
    validation: Source | None
    test: Source | None
    notes: list[str]
    """What a person should know of it."""
    parameters: int
    began: float

    def entry(self, report: Reporter, logger: Logger | None) -> Entry:
        """As `fit_pack` takes it."""
        return Entry(
            task=self.task,
            train=self.train,
            validation=self.validation,
            settings=self.settings.train,
            out=self.settings.out,
            report=report,
            logger=logger,
            test=None if self.splits.kind == "generation" else self.test,
            identity=_identity(self.settings, self.splits, self.backbone) | {"arrangement": self.train.arrangement},
            facts={
                "run": self.settings.model_dump(mode="json"),
                "notes": self.splits.notes,
                "score_test": self.test is not None,
            },
        )

    def trained(self, bank: TaskBank, result: FitResult) -> Trained:
        """What it leaves behind, once it has been trained; the test split is scored now, where that was asked for and training has
        not done so."""
        scores = {"validation": result.metrics} if self.splits.validation else {}
        if self.test is not None:
            scores["test"] = result.test or score(bank, self.task, self.test).metrics
            self.task.metrics |= {f"test_{name}": value for name, value in scores["test"].items()}
            with disk_errors("the test scores", self.settings.out):
                self.task.save(self.settings.out)
        return Trained(
            task=self.task,
            backbone=self.backbone,
            metrics=scores,
            folder=self.settings.out,
            parameters=self.parameters,
            seconds=time.perf_counter() - self.began,
        )


@own_modes()
def run(
    settings: RunSettings,
    *,
    resume: bool = False,
    score_test: bool | None = None,
    report: Reporter | None = None,
    backbone: Backbone | None = None,
) -> Trained:
    """Loads data and backbone, trains a new task, saves it in `settings.out` and scores it.

    score_test: whether the test split is scored at the end; None: where the settings name a test file. backbone: one that is
    loaded already; its name must be the settings'. Nothing is written before data, backbone and method have been found to fit
    each other. Raises any IntarsiaError; KeyboardInterrupt after a checkpoint.
    """
    report = report or SilentReporter()
    ready = prepare(settings, resume=resume, score_test=score_test, backbone=backbone)
    with resident(ready.backbone, [ready.task]) as bank, logging(settings) as logger:
        # Said now, because from here on only the run itself can fail: an error until here is the one line that a user sees.
        for note in ready.notes:
            report.say(note)
        result = fit_pack(bank, [ready.entry(report, logger)], resume=resume)[ready.task.name]
        if isinstance(result, Failed):
            raise result.error
        draw_run(settings.out)
        return ready.trained(bank, result)


def prepare(
    settings: RunSettings,
    *,
    resume: bool = False,
    score_test: bool | None = None,
    backbone: Backbone | None = None,
    load: Callable[[DataSpec], Splits] = load_data,
) -> Prepared:
    """Loads and checks all that a run needs, and writes nothing. load: where several runs read the same data."""
    began = time.perf_counter()
    check_out(settings.out, resume)
    check_slots(settings)
    if settings.threads:
        import torch

        torch.set_num_threads(settings.threads)
    splits = load(settings.data.spec())
    train = splits.split("train")
    tested = splits.split("test") if wants_test(settings, score_test, resume) else None
    if tested is not None and tested.labels is None:
        raise DataError(
            f"the test rows have no labels in a column {splits.label_column!r}; give other ones, or leave them out"
        )
    head = new_head(settings, splits)
    backbone = backbone or load_backbone(settings)
    task = _new_task(settings, head, backbone)
    task.data = _describe(settings, splits, task, backbone)
    if splits.kind == "generation":
        check_writing(task, backbone, Writing.of(task, backbone).decoding.max_new_tokens)
    if splits.validation:
        validation_metric(settings.train.metric, splits.kind, splits.labels)
    parameters = task.trained_parameters()
    notes = [*splits.notes, f"{parameters:,} trained parameters, {len(train):,} training rows"]
    source = _sources(settings, task, backbone, notes)
    return Prepared(
        settings=settings,
        splits=splits,
        task=task,
        backbone=backbone,
        train=source(train, "training", seed=settings.train.seed),
        validation=source(splits.validation, "validation") if splits.validation else None,
        test=source(tested, "test") if tested is not None else None,
        notes=notes,
        parameters=parameters,
        began=began,
    )


def load_backbone(settings: RunSettings) -> Backbone:
    """The backbone that a run names."""
    return Backbone.load(
        settings.backbone,
        dtype=settings.dtype,
        device=settings.device,
        language_model=settings.head.verbaliser is not None,
    )


@contextmanager
def logging(settings: RunSettings) -> Iterator[Logger | None]:
    """The run's logger, if it has one."""
    logger = open_logger(settings.log, settings.out, settings.model_dump(mode="json")) if settings.log else None
    try:
        yield logger
    finally:
        if logger is not None:
            with logger_errors(settings.out):  # it may write its last lines now
                logger.close()


def _new_task(settings: RunSettings, head: Head, backbone: Backbone) -> Task:
    """A fresh task. ConfigError where this backbone cannot do what the head asks for."""
    if head.verbaliser and backbone.kind == "encoder" and "{mask}" not in (settings.data.template or ""):
        raise ConfigError(
            'a verbaliser reads an encoder\'s answer at the mask; give data.template with {mask}, such as "{text} It was {mask}."'
        )
    if head.kind == "generation":
        _ = backbone.language_head
        if backbone.kind == "decoder" and settings.method.get("place") == "end":
            raise ConfigError(
                "method.place is 'end', and behind a decoder's text stands what is to be generated; give 'start' or 'template'"
            )
    name = settings.name or settings.out.resolve().name
    return Task.new(name, backbone, method_from_dict(settings.method), head, seed=settings.train.seed)


def _describe(settings: RunSettings, splits: Splits, task: Task, backbone: Backbone) -> dict[str, Any]:
    """What evaluate and predict need to read the same kind of data again. No path of the training machine."""
    max_length = _max_length(settings, task, backbone)
    found = {
        "source": settings.data.data,
        "text_columns": list(splits.text_columns),
        "label_column": splits.label_column,
        "split_seed": settings.data.split_seed,
        "validation_fraction": settings.data.validation_fraction,
        "max_length": max_length,
        "fingerprint": splits.fingerprint,
    }
    if settings.data.template is not None:
        found["template"] = settings.data.template
    if settings.data.label_words is not None:
        found["label_words"] = settings.data.label_words
    if splits.kind == "generation":
        found |= _writing(settings, splits, max_length, backbone)
    return found


def _max_length(settings: RunSettings, task: Task, backbone: Backbone) -> int:
    asked, limit = settings.train.max_length, room(task, backbone)
    taken = backbone.max_length - limit
    why = f", of which the prompt takes {taken}" if taken else ""
    if limit < 1:
        raise ConfigError(f"{backbone.name} takes {backbone.max_length} tokens{why}; lower method.length")
    if asked is not None and asked > limit:
        raise ConfigError(
            f"train.max_length is {asked}, and {backbone.name} takes {backbone.max_length} tokens{why}; lower it, or leave it out"
        )
    return asked or limit


def _writing(settings: RunSettings, splits: Splits, max_length: int, backbone: Backbone) -> dict[str, Any]:
    """The longest target, and the settings of generation with their defaults filled in."""
    longest = longest_label(splits.labels, backbone.tokenizer) if splits.labels else None
    target = settings.train.target_length or longest or min(TARGET_LENGTH, max_length // 2)
    generation = settings.generation.model_dump()
    generation["max_new_tokens"] = generation["max_new_tokens"] or longest or min(64, target)
    return {"target_length": target, "generation": generation}


def _identity(settings: RunSettings, splits: Splits, backbone: Backbone) -> dict[str, Any]:
    """What a resumed run must share beside the settings of training."""
    return {
        "data": splits.fingerprint,
        "backbone": backbone.fingerprint,
        "method": settings.method,
        # A run begun before heads had units of their labels goes on as nothing else than that.
        "head": settings.head.model_dump(mode="json") | units_of(splits),
        "generation": settings.generation.model_dump(mode="json"),
    }


def _sources(settings: RunSettings, task: Task, backbone: Backbone, notes: list[str]) -> Callable[..., Source]:
    """A function from rows to their batches: shuffled by `seed`, or in order of length without one. It adds to `notes`."""

    def source(rows: Rows, split: str, seed: int | None = None) -> Source:
        train = settings.train
        made = source_of(
            rows,
            task,
            backbone,
            train.batch_size,
            seed=seed,
            arrangement=arranged(train.batches, task, backbone, train),
            cache=cache_folder() / "tokens",
        )
        if seed is None:
            made = scored_together(made, backbone)
        notes.extend(made.encoded.notes)
        count = len(made.encoded)
        if made.encoded.truncated:
            what = "inputs" if isinstance(made, GenerationSource) else "texts"
            notes.append(
                f"{split}: {made.encoded.truncated:,} of {count:,} {what} cut to fit {task.data['max_length']} tokens"
            )
        if isinstance(made, GenerationSource):
            if cut := made.encoded.truncated_targets:
                notes.append(f"{split}: {cut:,} of {count:,} targets cut to {task.data['target_length']} tokens")
            new = task.data["generation"]["max_new_tokens"]
            if split == "training" and (over := made.encoded.targets_over(new)):
                notes.append(f"{split}: {over:,} of {count:,} targets are longer than generation.max_new_tokens, {new}")
        elif made.encoded.lost_words:
            notes.append(f"{split}: {made.encoded.lost_words:,} words without a token, left out of training and scores")
        return made

    return source
