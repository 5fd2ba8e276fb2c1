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
    labels = labels.to(scores.device)
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
    if head.kind in ("classification", "token-classification") and not labels.is_floating_point():
        labels = labels.long()  # of int32 and bool torch takes none
    if head.kind == "multi-label":
        return F.binary_cross_entropy_with_logits(scores, labels.to(scores.dtype))
    if head.kind == "regression":
        return squares(head, scores, labels).mean()
    if head.kind == "token-classification":
        return F.cross_entropy(scores.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    return F.cross_entropy(scores, labels)


def squares(head: Head, scores: Tensor, labels: Tensor) -> Tensor:
    """regression: each row's loss. scores: (..., 1), labels: (...), both in the labels' units."""
    return ((scores.squeeze(-1) - labels.to(scores.dtype)) / head.scale).square()
