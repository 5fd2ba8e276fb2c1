"""Scores of predictions against references, by the kind of task. Every number is finite, and no warning leaks out."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from intarsia.errors import ConfigError, nearest
from intarsia.training.textmetrics import GENERATED, LEGAL, TextMetrics, legal_scores

LOWER_IS_BETTER = frozenset({"loss", "mse", "illegal"})
_TAGGED = ("B-", "I-", "E-", "S-", "L-", "U-")

# Predictions and references: one entry per row. classification: a class index; multi-label: (C,) of 0 and 1;
# regression: a float; token-classification: the class indices of the row's labelled words, in order;
# generation: the text, and the list of the texts that it is compared with.
Rows = Sequence[Any]


def compute_metrics(
    kind: str,
    predictions: Rows,
    references: Rows,
    labels: Sequence[str],
    text: TextMetrics = TextMetrics(),  # noqa: B008 - frozen
) -> dict[str, float]:
    """All metrics of the kind, by name. labels: names, in the order of the class indices; for generation the legal

    outputs of a text-to-text task, or none. text: options of the scores of generated text.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(references)} references need as many predictions, got {len(predictions)}")
    with _quiet():
        if kind == "generation":
            scores = legal_scores(predictions, references, labels) if labels else text.scores(predictions, references)
        else:
            scores = _BY_KIND[kind](predictions, references, labels)
    return {name: float(value) for name, value in scores.items()}


def metric_names(kind: str, labels: Sequence[str]) -> tuple[str, ...]:
    """What can be named as the best metric; the first is the default."""
    if kind == "token-classification" and not _has_entities(labels):
        return ("accuracy", "loss")
    if kind == "generation":  # scores need generated text, which costs far more than the loss
        return ("loss", *(LEGAL if labels else GENERATED))
    return {
        "classification": ("accuracy", "f1", "matthews", "loss"),
        "multi-label": ("micro_f1", "macro_f1", "loss"),
        "regression": ("pearson", "spearman", "mse", "loss"),
        "token-classification": ("f1", "precision", "recall", "accuracy", "loss"),
    }[kind]


def default_metric(kind: str, labels: Sequence[str]) -> str:
    """accuracy, micro_f1, pearson; for token classification f1 over entities, or accuracy where tags mark none; for

    generation the loss.
    """
    return metric_names(kind, labels)[0]


def resolve_metric(name: str | None, kind: str, labels: Sequence[str]) -> str:
    """The metric by that name, or the default; ConfigError for one that the kind does not have."""
    known = metric_names(kind, labels)
    if name is None:
        return known[0]
    if name not in known:
        raise ConfigError(
            f"metric of a {kind} task must be one of {', '.join(known)}, got {name!r}{nearest(name, known)}"
        )
    return name


def higher_is_better(metric: str) -> bool:
    return metric not in LOWER_IS_BETTER


def _classification(predictions: Rows, references: Rows, labels: Sequence[str]) -> dict[str, float]:
    """f1: of the last label for two classes (the positive one), macro for more. A score that is undefined is 0."""
    from sklearn.metrics import f1_score, matthews_corrcoef

    p, r = np.asarray(predictions), np.asarray(references)
    average = "binary" if len(labels) == 2 else "macro"
    return {
        "accuracy": float(np.mean(p == r)),
        "f1": f1_score(r, p, average=average, zero_division=0.0),  # type: ignore[arg-type]
        "matthews": matthews_corrcoef(r, p),
    }


def _multi_label(predictions: Rows, references: Rows, labels: Sequence[str]) -> dict[str, float]:
    from sklearn.metrics import f1_score

    p, r = np.stack(predictions).astype(int), np.stack(references).astype(int)
    averages = ("micro", "macro")
    return {f"{a}_f1": f1_score(r, p, average=a, zero_division=0.0) for a in averages}  # type: ignore[arg-type]


def _regression(predictions: Rows, references: Rows, labels: Sequence[str]) -> dict[str, float]:
    """A correlation with a constant is undefined; it counts as 0, so that it can be compared."""
    from scipy.stats import rankdata

    p, r = np.asarray(predictions, np.float64), np.asarray(references, np.float64)
    return {
        "pearson": _pearson(p, r),
        "spearman": _pearson(rankdata(p), rankdata(r)),
        "mse": float(np.mean((p - r) ** 2)),
    }


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    from scipy.stats import pearsonr

    result: Any = pearsonr(a, b)
    value = float(result.statistic)
    return value if math.isfinite(value) else 0.0


def _token_classification(predictions: Rows, references: Rows, labels: Sequence[str]) -> dict[str, float]:
    """precision, recall and f1 over whole entities (seqeval, as in CoNLL), accuracy over words."""
    p, r = ([[labels[i] for i in row] for row in rows] for rows in (predictions, references))
    pairs = [a == b for row_p, row_r in zip(p, r, strict=True) for a, b in zip(row_p, row_r, strict=True)]
    accuracy = {"accuracy": sum(pairs) / len(pairs) if pairs else 0.0}
    if not _has_entities(labels):
        return accuracy
    from seqeval.metrics import f1_score, precision_score, recall_score

    functions: dict[str, Callable[..., Any]] = {"f1": f1_score, "precision": precision_score, "recall": recall_score}
    return {name: f(r, p, zero_division=0) for name, f in functions.items()} | accuracy


def _has_entities(labels: Sequence[str]) -> bool:
    return any(label.startswith(_TAGGED) for label in labels)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


_BY_KIND: dict[str, Callable[[Rows, Rows, Sequence[str]], dict[str, float]]] = {
    "classification": _classification,
    "multi-label": _multi_label,
    "regression": _regression,
    "token-classification": _token_classification,
}
