"""Against numbers worked out by hand."""

import math

import numpy as np
import pytest

from intarsia.errors import ConfigError
from intarsia.training import compute_metrics, default_metric, higher_is_better, metric_names
from intarsia.training.metrics import resolve_metric

ENTITIES = ("O", "B-PER", "I-PER", "B-LOC")


def test_two_classes():
    # tp 2, fp 1, fn 1, tn 1: precision 2/3, recall 2/3; matthews (2*1 - 1*1) / sqrt(3 * 3 * 2 * 2)
    scores = compute_metrics("classification", [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], ("no", "yes"))
    assert scores == pytest.approx({"accuracy": 3 / 5, "f1": 2 / 3, "matthews": 1 / 6})


def test_f1_of_two_classes_is_of_the_last_label():
    scores = compute_metrics("classification", [0, 0, 0, 1], [0, 0, 1, 0], ("no", "yes"))
    assert scores["f1"] == 0.0


def test_three_classes_have_macro_f1():
    # class a: p 1/2 r 1 f 2/3; b: p 1 r 1/2 f 2/3; c: p 1 r 1 f 1
    scores = compute_metrics("classification", [0, 0, 1, 2], [0, 1, 1, 2], ("a", "b", "c"))
    assert scores["f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)


def test_multi_label():
    predictions = [np.array([1, 0, 1]), np.array([0, 0, 1])]
    references = [np.array([1.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])]
    # micro: tp 2, fp 1, fn 1; macro: 1, 0, 2/3
    scores = compute_metrics("multi-label", predictions, references, ("a", "b", "c"))
    assert scores == pytest.approx({"micro_f1": 2 / 3, "macro_f1": (1 + 0 + 2 / 3) / 3})


def test_regression():
    scores = compute_metrics("regression", [1.0, 2.0, 4.0], [1.0, 2.0, 3.0], ())
    pearson = 3 / math.sqrt(2 * 14 / 3)  # covariance and variances, times 3
    assert scores == pytest.approx({"pearson": pearson, "spearman": 1.0, "mse": 1 / 3})


def test_spearman_shares_ranks_between_equals():
    scores = compute_metrics("regression", [1.0, 1.0, 2.0], [1.0, 2.0, 3.0], ())
    assert scores["spearman"] == pytest.approx(1.5 / math.sqrt(1.5 * 2))


def test_token_classification_counts_whole_entities():
    # Truth: PER at 0-1, LOC at 3. Found: PER at 0 only (wrong span), LOC at 3 (right).
    scores = compute_metrics("token-classification", [[1, 0, 0, 3]], [[1, 2, 0, 3]], ENTITIES)
    assert scores == pytest.approx({"precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2, "accuracy": 3 / 4})


def test_precision_is_of_what_was_found_and_recall_of_what_there_is():
    # Truth: LOC at 0. Found: LOC at 0, PER at 1, LOC at 3.
    scores = compute_metrics("token-classification", [[3, 1, 0, 3]], [[3, 0, 0, 0]], ENTITIES)
    assert scores == pytest.approx({"precision": 1 / 3, "recall": 1.0, "f1": 1 / 2, "accuracy": 1 / 2})


def test_tags_that_mark_no_entities_have_accuracy_only():
    assert compute_metrics("token-classification", [[0, 1]], [[0, 0]], ("NOUN", "VERB")) == {"accuracy": 0.5}
    assert default_metric("token-classification", ("NOUN", "VERB")) == "accuracy"


@pytest.mark.parametrize(
    ("kind", "predictions", "references", "labels"),
    [
        ("classification", [0, 0], [0, 0], ("a", "b")),
        ("classification", [0, 0], [1, 1], ("a", "b")),
        ("classification", [1], [1], ("a", "b", "c")),
        ("classification", [2, 2], [0, 1], ("a", "b", "c")),
        ("multi-label", [np.zeros(2)], [np.zeros(2)], ("a", "b")),
        ("multi-label", [np.zeros(1)], [np.ones(1)], ("a",)),
        ("regression", [1.0, 1.0], [1.0, 2.0], ()),
        ("regression", [1.0], [1.0], ()),
        ("regression", [1.0, 1.0 + 1e-16, 1.0], [1.0, 2.0, 3.0], ()),
        ("token-classification", [[0, 0]], [[0, 0]], ENTITIES),
        ("token-classification", [[], []], [[], []], ENTITIES),
        ("token-classification", [[0]], [[1]], ENTITIES),
        ("token-classification", [[2, 2]], [[3, 3]], ENTITIES),
    ],
)
def test_degenerate_rows_give_finite_numbers_and_no_warning(kind, predictions, references, labels):
    scores = compute_metrics(kind, predictions, references, labels)
    assert all(math.isfinite(value) for value in scores.values())
    assert all(isinstance(value, float) for value in scores.values())
    assert set(scores) | {"loss"} == set(metric_names(kind, labels))


def test_defaults_and_directions():
    kinds = ("classification", "multi-label", "regression", "token-classification")
    assert [default_metric(kind, ENTITIES) for kind in kinds] == ["accuracy", "micro_f1", "pearson", "f1"]
    assert not higher_is_better("loss")
    assert not higher_is_better("mse")
    assert higher_is_better("pearson")


def test_a_metric_of_another_kind_is_refused():
    with pytest.raises(ConfigError, match="metric of a regression task must be one of pearson, spearman, mse, loss"):
        resolve_metric("accuracy", "regression", ())
