"""Heads: what turns the backbone's states into a prediction. Tensors have the task axis N in front, as all others do."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intarsia.errors import ConfigError

Kind = Literal["classification", "multi-label", "regression", "token-classification"]
Pooling = Literal["auto", "cls", "mean", "last", "pooler"]
KINDS: tuple[str, ...] = ("classification", "multi-label", "regression", "token-classification")
POOLINGS: tuple[str, ...] = ("auto", "cls", "mean", "last", "pooler")
IGNORED = -100
"""A token without a label."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """What a task predicts, and from which state."""

    kind: Kind = "classification"
    """classification (of a text or a pair), multi-label, regression, or token-classification."""
    labels: tuple[str, ...] = ()
    """Label names in the order of the scores; none for regression."""
    pooling: Pooling = "auto"
    """State that is read: of the first token (cls), the mean over the tokens, the last token's, or the backbone's own
    pretrained pooler. auto: the mean for encoders, the last token for models with a decoder."""
    dropout: float = 0.1
    """Dropout on the pooled state while training."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"Head.kind must be one of {', '.join(KINDS)}; got {self.kind!r}")
        if self.pooling not in POOLINGS:
            raise ConfigError(f"Head.pooling must be one of {', '.join(POOLINGS)}; got {self.pooling!r}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"Head.dropout must be in [0, 1), got {self.dropout}")
        least = {"classification": 2, "token-classification": 2, "multi-label": 1, "regression": 0}[self.kind]
        if len(self.labels) < least:
            raise ConfigError(f"a {self.kind} head needs at least {least} label names, got {len(self.labels)}")
        if len(set(self.labels)) != len(self.labels):
            raise ConfigError(f"Head.labels must differ from one another, got {list(self.labels)}")

    @property
    def outputs(self) -> int:
        """Scores per text (or token)."""
        return len(self.labels) or 1


def pool(states: Tensor, mask: Tensor | None, pooling: Pooling) -> Tensor:
    """(B, T, D) states and (B, T) mask of real tokens (None: all are) -> (B, D). Right for padding on either side."""
    if pooling in ("cls", "pooler"):
        if mask is None:
            return states[:, 0]
        return states[torch.arange(len(states), device=states.device), mask.int().argmax(dim=1)]
    if pooling == "mean":
        if mask is None:
            return states.mean(dim=1)
        weight = mask.unsqueeze(-1).float()  # a sum of 512 tokens overflows fp16, and bf16 cannot count them
        return (states * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
    if mask is None:
        return states[:, -1]
    places = torch.arange(mask.shape[1], device=mask.device) * mask.ne(0)
    return states[torch.arange(len(states), device=states.device), places.argmax(dim=1)]


class HeadModule(nn.Module):
    """scores = W dropout(pooled) + c.   W: (N, C, D), c: (N, C)"""

    def __init__(self, head: Head, hidden: int) -> None:
        super().__init__()
        self.head = head
        self.weight = nn.Parameter(torch.empty(1, head.outputs, hidden))
        self.bias = nn.Parameter(torch.zeros(1, head.outputs))
        nn.init.trunc_normal_(self.weight, std=0.02, a=-0.04, b=0.04)  # as google-research/adapter-bert

    def forward(self, states: Tensor, mask: Tensor | None, pooler: nn.Module | None = None) -> Tensor:
        """states: (B, T, D), mask: (B, T) or None. Returns fp32 scores (B, C); (B, T, C) for token classification."""
        if self.head.kind != "token-classification":
            pooled = pool(states, mask, self.head.pooling)
            if self.head.pooling == "pooler":
                assert pooler is not None, "Task.new checks that the backbone has one"
                pooled = pooler(pooled.unsqueeze(1))  # transformers' poolers take the first of (B, T, D)
            states = pooled
        states = states.to(self.weight.dtype)
        if self.training and self.head.dropout:
            states = F.dropout(states, self.head.dropout)
        return F.linear(states, self.weight[0], self.bias[0])

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The mean loss. labels: (B,) int64; (B, C) 0/1 for multi-label; (B,) float for regression; (B, T) int64, -100 where
        there is no label, for token classification."""
        labels = labels.to(scores.device)
        if self.head.kind == "multi-label":
            return F.binary_cross_entropy_with_logits(scores, labels.to(scores.dtype))
        if self.head.kind == "regression":
            return F.mse_loss(scores.squeeze(-1), labels.to(scores.dtype))
        if self.head.kind == "token-classification":
            return F.cross_entropy(scores.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        return F.cross_entropy(scores, labels)
