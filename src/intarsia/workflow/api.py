"""`intarsia.train(...)` and `intarsia.train_pack([...])`: runs with their settings as plain keyword arguments."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from intarsia.backbone import Backbone
from intarsia.errors import ConfigError
from intarsia.methods import Method, method_to_dict
from intarsia.training import Failed, Reporter, open_reporter
from intarsia.training.progress import PackReporter, open_pack_reporter
from intarsia.workflow.pack import draw_runs, run_pack
from intarsia.workflow.sections import FILES, SECTIONS, RunSettings
from intarsia.workflow.settings import from_tree, laid_over, suggested
from intarsia.workflow.trained import Trained
from intarsia.workflow.training import run


def train(
    *,
    backbone: str | os.PathLike[str] | Backbone,
    method: str | Mapping[str, Any] | Method = "adapter",
    out: str | Path,
    data: str | Mapping[str, Any] | None = None,
    resume: bool = False,
    score_test: bool | None = None,
    report: Reporter | None = None,
    **settings: Any,
) -> Trained:
    """Trains a task on a frozen backbone and saves it in `out`.

    backbone: a name, a folder or a loaded Backbone. data: embedded:NAME, hub:NAME or a mapping; or files, as train=, validation=,
    test=. method: a name, a mapping with `name`, or an object such as `BottleneckAdapter(width=48)`. settings: every other
    key of a run file by its own name (epochs=1, learning_rate=1e-3, pooling="cls", text_columns=("a", "b"), ...). report:
    where progress goes; None: standard error. score_test: whether the test split is scored at the end; None: where a test file
    is given.
    Raises ConfigError for an unknown or wrong setting, and any IntarsiaError of the run.
    """
    return run(
        from_tree(_tree({"backbone": backbone, "method": method, "out": out, "data": data, **settings})),
        resume=resume,
        score_test=score_test,
        report=open_reporter() if report is None else report,
        backbone=backbone if isinstance(backbone, Backbone) else None,
    )


def train_pack(
    runs: Sequence[Mapping[str, Any]],
    *,
    backbone: str | os.PathLike[str] | Backbone,
    resume: bool = False,
    score_test: bool | None = None,
    report: PackReporter | None = None,
    **shared: Any,
) -> list[Trained | Failed]:
    """Trains many tasks, or many trials of one, at once over one backbone; each ends as `train` would leave it.

    runs: the keyword arguments of `train` for each, such as {"method": LoRA(rank=8), "seed": 1, "out": "runs/a"}. shared: those
    that all have; a run's own go over them key by key, as in a run file. A run that fails is in the result as Failed, and the
    others go on.
    Raises ConfigError for an unknown or wrong setting; KeyboardInterrupt after Ctrl-C, when all have been saved.
    """
    common = {"backbone": backbone, "method": "adapter", **shared}
    results = run_pack(
        [from_tree(laid_over(_tree(common), _tree(_mapping(run)))) for run in runs],
        resume=resume,
        score_test=score_test,
        report=open_pack_reporter() if report is None else report,
        backbone=backbone if isinstance(backbone, Backbone) else None,
    )
    return draw_runs(results)


def _mapping(run: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(run, Mapping):
        raise ConfigError(
            f'each of the runs must be a mapping such as {{"method": "lora", "out": "runs/a"}}, got {run!r}'
        )
    return run


def _tree(given: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments as the sections of a run file."""
    tree: dict[str, Any] = {}
    for key, value in given.items():
        if key == "backbone":
            tree[key] = _name(value)
        elif key == "method":
            tree[key] = _method(value)
        elif key == "data":
            if value is not None:
                tree.setdefault(key, {}).update(value if isinstance(value, Mapping) else {"data": value})
        else:
            _place(tree, key, value)
    return tree


def _name(backbone: Any) -> str:
    if not isinstance(backbone, str | os.PathLike | Backbone):
        raise ConfigError(
            f"backbone must be a name, a folder or a Backbone, got {type(backbone).__name__}; "
            "of a model make one with Backbone.wrap(model, tokenizer=tokenizer)"
        )
    return backbone.name if isinstance(backbone, Backbone) else os.fspath(backbone)


def _method(method: Any) -> dict[str, Any]:
    if not isinstance(method, str | Mapping | Method):
        got = method.__name__ if isinstance(method, type) else repr(method)
        raise ConfigError(f"method must be a name, a mapping or an object such as LoRA(rank=8), got {got}")
    if isinstance(method, Method):
        return method_to_dict(method)
    return {"name": method} if isinstance(method, str) else dict(method)


def _place(tree: dict[str, Any], key: str, value: Any) -> None:
    """Puts a setting that is given by its own name into the section that has it. `train=` may be a file or the section."""
    file = key in FILES and not isinstance(value, Mapping)
    if key in RunSettings.model_fields and not file:
        if isinstance(value, Mapping):
            tree.setdefault(key, {}).update(value)
        else:
            tree[key] = value
        return
    for section, model in SECTIONS.items():
        if key in model.model_fields:
            tree.setdefault(section, {})[key] = value
            return
    known = [*RunSettings.model_fields, *(name for model in SECTIONS.values() for name in model.model_fields)]
    raise ConfigError(f"unknown setting {key!r}{suggested(key, known) or '; known: ' + ', '.join(known)}")
