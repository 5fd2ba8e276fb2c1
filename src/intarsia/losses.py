"""The loss of each kind of head."""

from torch import Tensor
from torch.nn import functional as F

from intarsia.errors import ConfigError
from intarsia.heads import IGNORED, Head


def loss(head: Head, scores: Tensor, labels: Tensor) -> Tensor:
    """The mean loss. labels: (B,) int64; (B, C) 0/1 for multi-label; (B,) float for regression, in their own units; (B, T) int64,
    -100 where there is no label, for token classification; for generation scores (K, V) and labels (K,), of the target tokens."""
    if not isinstance(labels, Tensor):
        raise ConfigError(f"labels must be a tensor, got {type(labels).__name__}; give torch.tensor(labels)")
    if head.kind == "regression" and labels.shape != scores.shape[:1]:
        # torch would set each row's score against every row's number.
        raise ConfigError(
            f"regression wants one number a row, labels of shape {[len(scores)]}, got {list(labels.shape)}"
        )
    if head.kind == "token-classification" and labels.shape != scores.shape[:-1]:
        raise ConfigError(
            f"token-classification wants a label for each token, of shape {list(scores.shape[:-1])}, got {list(labels.shape)}"
        )
    if head.kind == "classification" and labels.shape not in (scores.shape[:1], scores.shape):
        raise ConfigError(
            f"classification wants one class a row, labels of shape {[len(scores)]}, got {list(labels.shape)}"
        )
    if head.kind == "multi-label" and labels.shape != scores.shape:
        raise ConfigError(
            f"multi-label wants a 0 or 1 for each row and label, of shape {list(scores.shape)}, got {list(labels.shape)}"
        )
    soft = head.kind == "classification" and labels.dim() == 2
    if head.kind == "multi-label" or soft:
        _check_shares(head, labels)
    elif head.kind != "regression":
        check_classes(head, labels, scores.shape[-1])
    labels = labels.to(scores.device)
    if head.kind == "multi-label":
        return F.binary_cross_entropy_with_logits(scores, labels.to(scores.dtype))
    if head.kind == "regression":
        return squares(head, scores, labels).mean()
    if soft:
        return F.cross_entropy(scores, labels.to(scores.dtype))
    labels = labels.long().flatten()  # of int32 and bool torch takes none
    total = F.cross_entropy(scores.flatten(0, -2), labels, ignore_index=IGNORED, reduction="sum")
    # A batch without one label has no loss: the mean over none is nan, and one step with it loses all weights.
    return total / (labels != IGNORED).sum().clamp(min=1)


def check_classes(head: Head, labels: Tensor, classes: int) -> None:
    """ConfigError where labels are no class indices. Values are looked at on the CPU alone: a GPU would be waited for."""
    what = f"{head.kind} wants labels from 0 to {classes - 1}, and {IGNORED} where nothing is to be learnt"
    if labels.is_floating_point():
        raise ConfigError(
            f"{what}; got {str(labels.dtype).removeprefix('torch.')}, make whole numbers of them with labels.long()"
        )
    if (
        labels.device.type == "cpu"
        and (wrong := labels[(labels >= classes) | ((labels < 0) & (labels != IGNORED))]).numel()
    ):
        raise ConfigError(f"{what}; got {wrong[0].item()}")


def _check_shares(head: Head, labels: Tensor) -> None:
    if labels.device.type == "cpu" and (wrong := labels[(labels < 0) | (labels > 1)]).numel():
        raise ConfigError(f"{head.kind} wants a number from 0 to 1 for each row and label; got {wrong[0].item()}")


def squares(head: Head, scores: Tensor, labels: Tensor) -> Tensor:
    """regression: each row's loss. scores: (..., 1), labels: (...), both in the labels' units."""
    return ((scores.squeeze(-1) - labels.to(scores.dtype)) / head.scale).square()
