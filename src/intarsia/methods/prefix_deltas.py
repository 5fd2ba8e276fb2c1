"""The keys and values of a prefix: trained themselves, or what an MLP makes of fewer numbers. (Papers and legend: `prefix`.)"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intarsia.methods.base import KeyValueDelta, linear_parameters
from intarsia.ops import linear

Shape = tuple[int, int, int]
"""Key-value heads H, width of a key D_k, width of a value D_v."""


class _Prefix(KeyValueDelta):
    """What both forms share: gates, dropout, folding."""

    def __init__(self, length: int, *, offset: bool, dropout: float, gated: bool) -> None:
        super().__init__()
        self.length, self.offset, self.dropout = length, offset, dropout
        self.gate = nn.Parameter(torch.zeros(1, 2)) if gated else None

    def decay_free(self) -> frozenset[str]:
        """All but the MLP's weights: decay would pull a prefix towards keys and values of zero, which mean nothing."""
        return frozenset(name for name, _ in self.named_parameters() if not name.endswith("weight"))

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Keys and values before gates and dropout."""
        raise NotImplementedError

    def forward(self) -> tuple[Tensor, Tensor]:
        """Returns keys (N, H, P, D_k) and values (N, H, P, D_v)."""
        key, value = self._gated()
        if self.training and self.dropout:
            key, value = F.dropout(key, self.dropout), F.dropout(value, self.dropout)
        return key, value

    def fold(self) -> "PrefixDelta":
        """A PrefixDelta with this one's keys and values."""
        with torch.no_grad():
            folded = PrefixDelta(*self._gated(), offset=self.offset, dropout=self.dropout)
        return folded.train(self.training)

    def _gated(self) -> tuple[Tensor, Tensor]:
        key, value = self.tensors()
        if self.gate is None:
            return key, value
        gate = self.gate.sigmoid()[:, :, None, None, None]
        return key * gate[:, 0], value * gate[:, 1]


class PrefixDelta(_Prefix):
    """The flat form.   key: (N, H, P, D_k), value: (N, H, P, D_v), gate: (N, 2) or None"""

    def __init__(
        self, key: Tensor, value: Tensor, *, offset: bool = False, dropout: float = 0.0, gated: bool = False
    ) -> None:
        super().__init__(key.shape[2], offset=offset, dropout=dropout, gated=gated)
        self.key = nn.Parameter(key.detach().clone())
        self.value = nn.Parameter(value.detach().clone())

    def tensors(self) -> tuple[Tensor, Tensor]:
        """The parameters."""
        return self.key, self.value

    def addressed(self) -> bool:
        """Where keys and values are of one width."""
        return self.gate is None and self.key.shape == self.value.shape


class PrefixSource(nn.Module):
    """tanh(U P' + b), shared by the layers of one sort of attention.   prompt: (N, P, E), weight: (N, mid, E), bias: (N, mid)"""

    def __init__(self, length: int, embedding: int, mid: int) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.randn(1, length, embedding))
        self.weight, self.bias = linear_parameters(embedding, mid)

    def forward(self) -> Tensor:
        """Returns (N, P, mid)."""
        return torch.tanh(linear(self.prompt, self.weight, self.bias))


class ReparameterisedPrefixDelta(_Prefix):
    """One layer's share of the MLP.   weight: (N, H D_k + H D_v, mid), bias: (N, H D_k + H D_v), gate: (N, 2) or None

    The first delta of a group owns the source; the others only refer to it, so that it is counted, trained and saved once.
    """

    def __init__(
        self,
        source: PrefixSource,
        shape: Shape,
        *,
        owner: bool,
        zero_values: bool = False,
        offset: bool = False,
        dropout: float = 0.0,
        gated: bool = False,
    ) -> None:
        super().__init__(source.prompt.shape[1], offset=offset, dropout=dropout, gated=gated)
        self.heads, self.key_width, self.value_width = shape
        # In a tuple, nn.Module does not see it; a deep copy of the whole task still copies it once.
        self._shared = (source,)
        if owner:
            self.source = source
        keys = self.heads * self.key_width
        self.weight, self.bias = linear_parameters(source.bias.shape[1], keys + self.heads * self.value_width)
        if zero_values:
            with torch.no_grad():
                self.weight[:, keys:].zero_()
                self.bias[:, keys:].zero_()

    def tensors(self) -> tuple[Tensor, Tensor]:
        """The MLP's output."""
        both = linear(self._shared[0](), self.weight, self.bias)
        tasks, length, _ = both.shape
        keys = self.heads * self.key_width
        key = both[..., :keys].reshape(tasks, length, self.heads, self.key_width)
        value = both[..., keys:].reshape(tasks, length, self.heads, self.value_width)
        return key.transpose(1, 2), value.transpose(1, 2)


@torch.no_grad()
def fit(group: dict[str, ReparameterisedPrefixDelta], targets: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Sets the last layer so that the group's outputs are the targets: least squares, nearest to the values it has."""
    hidden = next(iter(group.values()))._shared[0]()[0].double()
    features = torch.cat([hidden, torch.ones_like(hidden[:, :1])], dim=1)
    solve = torch.linalg.pinv(features)
    for name, delta in group.items():
        target = torch.cat([part.double().transpose(0, 1).flatten(1) for part in targets[name]], dim=1)
        present = torch.cat([delta.weight[0], delta.bias[0][:, None]], dim=1).double().mT
        fitted = present + solve @ (target - features @ present)
        delta.weight[0].copy_(fitted[:-1].mT)
        delta.bias[0].copy_(fitted[-1])
