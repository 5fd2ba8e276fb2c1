"""After the choice, and never before it: the test split. And the best task's folder."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from intarsia.backbone import Backbone
from intarsia.backbone.embedded import cache_folder
from intarsia.data import Rows, Splits
from intarsia.task import Task
from intarsia.training.checkpoint import disk_errors
from intarsia.training.record import RUN
from intarsia.workflow.answers import named
from intarsia.workflow.compare.choosing import complete
from intarsia.workflow.compare.ledger import KEPT, Event, Ledger
from intarsia.workflow.reading import head_of, scored_together, source_of
from intarsia.workflow.scoring import resident, score

BEST = "best"
RUNS = "runs"
SAMPLES = 12
BATCH = 32


def result_of(folder: Path) -> dict[str, Any]:
    """How a run ended, as its `run.json` says."""
    return json.loads((folder / RUN).read_text("utf-8"))["result"]


def score_chosen(ledger: Ledger, backbone: Backbone, splits: Splits, say: Callable[[str], None]) -> None:
    """Scores every final run on the test split, the chosen one first, and puts its task into the folder `best`."""
    start, choice = ledger.last("start"), ledger.last("choice")
    assert start is not None
    assert choice is not None, "the choice comes first"
    out = ledger.path.parent
    runs = [choice["run"], *(run["run"] for run in complete(list(ledger.all("run"))) if run["run"] != choice["run"])]
    scored = {event["run"] for event in ledger.all("test")}
    rows, split = (splits.test, "test") if splits.test and splits.test.labels else (splits.validation, "validation")
    assert rows is not None
    for name in runs:
        if name in scored or (split != "test" and name != choice["run"]):
            continue
        task = Task.load(out / RUNS / name, backbone)
        metrics, answers = _scored(task, backbone, rows, with_answers=name == choice["run"])
        facts = {"metrics": metrics} if split == "test" else {"metrics": None}
        ledger.add("test", run=name, split=split, **facts, **answers)
        metric = start["metric"]
        say(f"{split}  {name}: {metric} {metrics[metric]:.4f}")
    _ship(out, backbone, choice["run"], ledger, start)


def _scored(
    task: Task, backbone: Backbone, rows: Rows, *, with_answers: bool
) -> tuple[dict[str, float], dict[str, Any]]:
    task.requires_grad_(False)
    source = scored_together(source_of(rows, task, backbone, BATCH, cache=cache_folder() / "tokens"), backbone)
    with resident(backbone, [task]) as bank:
        found = score(bank, task, source)
    if not with_answers:
        return found.metrics, {}
    predictions = [one.prediction for one in named(rows, head_of(task), source, found)]
    return found.metrics, _answers(rows, predictions, head_of(task).kind, head_of(task).labels)


def _answers(rows: Rows, predictions: Sequence[Any], kind: str, labels: Sequence[str]) -> dict[str, Any]:
    """What the report shows of the best: the confusion matrix where there are classes, else rows drawn with a fixed seed."""
    assert rows.labels is not None
    if kind in ("classification", "token-classification"):
        pairs = zip(rows.labels, predictions, strict=True)
        if kind == "token-classification":
            pairs = ((r, p) for word, said in pairs for r, p in zip(word, said, strict=True) if p is not None)
        matrix = np.zeros((len(labels), len(labels)), dtype=int)
        for expected, answered in pairs:
            matrix[int(expected), int(answered)] += 1
        return {"confusion": matrix.tolist()}
    drawn = np.random.default_rng(0).permutation(len(rows))[:SAMPLES]
    return {
        "samples": [
            {
                "text": " | ".join(rows.texts[i]),
                "expected": _plain(rows.labels[i], kind, labels),
                "answered": _plain(predictions[i], kind, labels, indices=True),
            }
            for i in sorted(drawn.tolist())
        ]
    }


def _plain(value: Any, kind: str, labels: Sequence[str], *, indices: bool = False) -> str:
    """A reference or an answer in words."""
    if kind == "generation":
        return value if isinstance(value, str) else value[0]
    if kind == "multi-label":
        chosen = value if indices else [i for i, present in enumerate(value) if present]
        return ", ".join(labels[i] for i in chosen) or "none"
    return f"{value:.3g}"


def _ship(out: Path, backbone: Backbone, run: str, ledger: Ledger, start: Event) -> None:
    """The chosen run's task as a folder of its own, with its scores, ready to serve."""
    task = Task.load(out / RUNS / run, backbone)
    source = str(start["settings"]["data"].get("data") or "task")
    task.name = source.rpartition(":")[2].replace("/", "-")
    test = next(event for event in ledger.all("test") if event["run"] == run)
    task.metrics = dict(task.metrics) | {f"test_{key}": value for key, value in (test["metrics"] or {}).items()}
    folder = out / BEST
    with disk_errors("the best task", folder, kept=KEPT):
        task.save(folder)
        shutil.copyfile(out / RUNS / run / RUN, folder / RUN)
