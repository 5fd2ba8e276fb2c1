"""What a run's settings ask for, before the backbone is loaded: ConfigError for what cannot be."""

import json
import os
from pathlib import Path

import numpy as np

from intarsia.data import Splits, Template
from intarsia.errors import ConfigError
from intarsia.heads import Head
from intarsia.training.record import RUN
from intarsia.workflow.sections import GenerationSettings, RunSettings


def check_out(out: Path, resume: bool) -> None:
    """Says early what `fit` would say after the backbone is loaded and the texts are tokenised. Writes nothing."""
    check_folder(out)
    if not resume and any((out / name).exists() for name in ("run.json", "task.json")):
        raise ConfigError(f"{out} already holds a run; go on with --resume, or choose another --out")


def check_folder(out: Path) -> None:
    """ConfigError where there cannot be a folder that can be written to. Writes nothing."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out must be a folder, and {out} is a file; choose another --out")
    above = out
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot write to {out}: {above} is not a folder that you may write to; choose another --out")


def wants_test(settings: RunSettings, score_test: bool | None, resume: bool) -> bool:
    """Whether the test split is scored: as it is asked for, else where a test file is named; or as it was asked for when the run
    that is gone on with was started, since `--resume` needs no other option."""
    asked = settings.data.test is not None if score_test is None else score_test
    if asked or not resume:
        return asked
    try:
        return json.loads((settings.out / RUN).read_text("utf-8")).get("score_test") is True
    except (OSError, ValueError, AttributeError):  # the record says what is wrong with it when it is opened
        return False


def check_slots(settings: RunSettings) -> None:
    """ConfigError unless a template's slots and the method's prompt agree."""
    text = settings.data.template
    slots = 0 if text is None else Template.parse(text).prompt_length
    method = settings.method
    name, length = method["name"], method.get("length", 0)
    if method.get("place") == "template":
        if slots != length:
            raise ConfigError(
                f"method.length is {length}, and the template has {slots} prompt slots; make them equal, as in {{prompt:{length}}}"
            )
    elif slots:
        raise ConfigError(
            f"the template has {slots} prompt slots, which method {name} does not fill; take them out, or give --method ptuning "
            f"with method.place=template and method.length={slots}"
        )


def new_head(settings: RunSettings, splits: Splits) -> Head:
    """The head, before the backbone is loaded. ConfigError for a setting that means nothing to this kind of task."""
    if splits.kind != "generation":
        generation = {
            "train.target_length": settings.train.target_length is not None,
            "head.loss": settings.head.loss != "token",
            "the section generation": settings.generation != GenerationSettings(),
        }
        if wrong := [name for name, is_given in generation.items() if is_given]:
            raise ConfigError(f"{wrong[0]} is for data.kind generation, and this task is {splits.kind}; leave it out")
    given = settings.head
    if given.verbaliser and splits.kind != "classification":
        raise ConfigError(f"head.verbaliser is for classification, and this task is {splits.kind}; leave it out")
    return Head(
        kind=splits.kind,  # type: ignore[arg-type]
        labels=splits.labels,
        pooling=given.pooling,
        dropout=given.dropout,
        verbaliser=given.words(splits.labels),
        loss=given.loss,
        **units_of(splits),
    )


def units_of(splits: Splits) -> dict[str, float]:
    """Head.mean and Head.scale by the training labels; of other kinds than regression none."""
    rows = splits.train
    if splits.kind != "regression" or rows is None or not rows.labels:
        return {}
    labels = np.asarray(rows.labels, np.float64)
    # Labels that are all the same have no scale of their own.
    return {"mean": float(labels.mean()), "scale": float(labels.std()) or 1.0}
