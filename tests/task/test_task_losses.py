"""Losses by hand, and labels that they refuse."""

import pytest
import torch
from torch import nn

from intarsia.errors import ConfigError
from intarsia.heads import IGNORED, Head, HeadModule
from intarsia.losses import loss


def module(kind, labels=("a", "b", "c")):
    return HeadModule(Head(kind=kind, labels=labels, pooling="mean"), 8)


def test_the_classification_loss_is_the_mean_negative_log_likelihood():
    scores, labels = torch.randn(4, 3), torch.tensor([2, 0, 1, 1])
    byhand = -torch.stack([(s - s.logsumexp(0))[c] for s, c in zip(scores, labels, strict=True)]).mean()
    torch.testing.assert_close(loss(module("classification").head, scores, labels), byhand)
    torch.testing.assert_close(nn.CrossEntropyLoss()(scores, labels), byhand)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.long])
def test_the_multi_label_loss_is_the_mean_over_rows_and_labels(dtype):
    scores, labels = torch.randn(4, 3), torch.tensor([[0, 1, 1], [0, 0, 0], [1, 1, 1], [1, 0, 0]], dtype=dtype)
    p = scores.sigmoid()
    byhand = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    torch.testing.assert_close(loss(module("multi-label").head, scores, labels), byhand.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_regression_loss_is_the_mean_squared_error(dtype):
    scores, labels = torch.randn(4, 1), torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=dtype)
    byhand = ((scores[:, 0] - labels) ** 2).mean().float()
    torch.testing.assert_close(loss(module("regression", ()).head, scores, labels), byhand)


def test_the_token_loss_is_the_mean_over_labelled_tokens():
    scores = torch.randn(2, 4, 3)
    labels = torch.tensor([[0, IGNORED, 2, IGNORED], [1, IGNORED, IGNORED, IGNORED]])
    pairs = [(scores[0, 0], 0), (scores[0, 2], 2), (scores[1, 0], 1)]
    byhand = torch.stack([s.logsumexp(0) - s[c] for s, c in pairs]).mean()
    torch.testing.assert_close(loss(module("token-classification").head, scores, labels), byhand)


@pytest.mark.parametrize(
    ("kind", "scores", "labels"),
    [
        ("regression", (4, 1), (4, 1)),
        ("regression", (4, 1), (1,)),
        ("regression", (4, 1), ()),
        ("token-classification", (4, 5, 2), (5, 4)),
    ],
)
def test_labels_of_another_shape_are_refused_where_torch_would_broadcast_them(kind, scores, labels):
    head = Head(kind=kind, labels=() if kind == "regression" else ("a", "b"))
    with pytest.raises(ConfigError, match="shape") as error:
        loss(head, torch.zeros(scores), torch.zeros(labels, dtype=torch.long))
    assert "\n" not in str(error.value)


def test_labels_that_are_no_tensor_are_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"torch.tensor\(labels\)"):
        loss(Head(labels=("a", "b")), torch.zeros(2, 2), [0, 1])


@pytest.mark.parametrize(
    ("kind", "labels", "message"),
    [
        (
            "classification",
            [0, 3],
            "classification wants labels from 0 to 2, and -100 where nothing is to be learnt; got 3",
        ),
        ("classification", [-1, 0], "got -1"),
        ("classification", [0.0, 1.0], r"got float32, make whole numbers of them with labels.long\(\)"),
        (
            "classification",
            [[0.0, 2.0, 0.0]] * 2,
            "classification wants a number from 0 to 1 for each row and label; got 2",
        ),
        ("multi-label", [[0, 5, 1]] * 2, "multi-label wants a number from 0 to 1 for each row and label; got 5"),
        ("token-classification", [[0, 7], [-100, 1]], "token-classification wants labels from 0 to 2, .* got 7"),
    ],
)
def test_a_label_that_is_no_class_is_said(kind, labels, message):
    labels = torch.tensor(labels)
    scores = torch.zeros(2, 2, 3) if kind == "token-classification" else torch.zeros(2, 3)
    with pytest.raises(ConfigError, match=message):
        loss(Head(kind=kind, labels=("a", "b", "c")), scores, labels)


def test_classes_may_be_one_hot_whole_numbers():
    head, scores = Head(labels=("a", "b", "c")), torch.randn(2, 3)
    one_hot = torch.tensor([[0, 1, 0], [0, 0, 1]])
    torch.testing.assert_close(loss(head, scores, one_hot), loss(head, scores, torch.tensor([1, 2])))


def test_a_batch_without_one_label_has_no_loss_and_moves_nothing():
    """The mean over none is nan, and one step with it loses all weights."""
    scores = torch.randn(2, 4, 3, requires_grad=True)
    found = loss(Head(kind="token-classification", labels=("a", "b", "c")), scores, torch.full((2, 4), IGNORED))
    found.backward()
    assert found.item() == 0
    assert not scores.grad.any()
