r"""Prefix tuning (Li and Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation",
https://arxiv.org/abs/2101.00190); gates after UniPELT (Mao et al. 2022, https://arxiv.org/abs/2110.07577).

    K <- [P_k; K],  V <- [P_v; V]                                at every attention
    flat               P_k, P_v are trained themselves
    reparameterised    [P_k | P_v] = W tanh(U P' + b) + c         P', U, b are shared by all layers
    gated              sigmoid(g_k) P_k, sigmoid(g_v) P_v

Shapes: P_k (N, H, P, D_k), P_v (N, H, P, D_v), P' (N, P, embedding), U (N, mid, embedding), b (N, mid),
W (N, H D_k + H D_v, mid), c (N, H D_k + H D_v), g (N, 2); N tasks, H key-value heads, P virtual positions.

There are three prefixes, as in the authors' BART code, each with its own P', U and b: encoder self-attention, decoder
self-attention, cross-attention. W is one matrix there; here each layer holds its own rows of it, which is the same.

Initialisation: P' from N(0, 1), U, b, W, c as `nn.Linear`; the gates at 0, so sigmoid gives one half. A flat prefix is drawn
from N(0, init_std). "zero": the values are zero. "text": the activations of real words.

Where the authors' code differs:
- P' is as wide as the model there; here as wide as `mid`, unless `embedding` says otherwise.
- It fits the MLP to the words' activations with 500 steps of Adam on the squared error. The last layer is linear, so the least
  squares are solved for here: an exact fit, with the smallest change of W and c, as long as P is at most mid + 1.
- Tokens keep their positions here; `position_offset` counts the prefix, as the authors' code does.
- UniPELT computes its gates from the mean over all tokens, which would let later tokens change earlier ones. Ours are
  numbers of their own, so they fold into the prefix.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from intarsia.errors import ConfigError, UnsupportedError
from intarsia.methods.base import Delta, Method, Pretrained, check_init, check_leave_out, with_roles
from intarsia.methods.prefix_deltas import PrefixDelta, PrefixSource, ReparameterisedPrefixDelta, Shape, fit
from intarsia.sites import Role, Site


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefixTuning(Method):
    """Prefix tuning (Li and Liang 2021, https://arxiv.org/abs/2101.00190)."""

    name: ClassVar[str] = "prefix"

    length: int = 10
    """Virtual positions P. The paper: 10 for table-to-text, 200 for summarisation."""
    encoder: bool = True
    """Before the encoder's own keys and values."""
    decoder: bool = True
    """Before the decoder's own keys and values."""
    cross: bool = True
    """Before the keys and values that an encoder-decoder's decoder reads from its encoder."""
    mid: int | None = 512
    """Width of the reparameterisation's hidden layer; the paper takes 800 for summarisation. None: a flat prefix."""
    embedding: int | None = None
    """Width of the reparameterisation's input P'; None: as `mid`. The paper takes the model's width."""
    dropout: float = 0.0
    """Dropout on the prefix while training."""
    gating: bool = False
    """A trained factor in (0, 1) for the keys and one for the values of each layer."""
    leave_out: tuple[int, ...] = ()
    """Layers without a prefix, counted from 0 within each stack."""
    init: Literal["random", "zero", "text"] = "random"
    """random; zero (values are zero, keys random); text (the activations of `init_text`, best where data are few)."""
    init_text: str | None = None
    """The words for init "text"; their tokens are repeated, or cut, to `length`."""
    init_std: float = 0.02
    """Standard deviation of a flat prefix's random values."""
    position_offset: bool = False
    """Real tokens' positions start at P, as after P cached tokens, instead of at 0."""

    def __post_init__(self) -> None:
        owner = type(self).__name__
        widths = {"length": self.length, "mid": self.mid, "embedding": self.embedding}
        for field, value in widths.items():
            if value is not None and value < 1:
                raise ConfigError(f"{owner}.{field} must be at least 1, got {value}")
        if self.embedding is not None and self.mid is None:
            raise ConfigError(f"{owner}.embedding is {self.embedding}, but a flat prefix has none; give mid too.")
        if not (self.encoder or self.decoder or self.cross):
            raise ConfigError(f"{owner} has encoder, decoder and cross all off; leave at least one on.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"{owner}.dropout must be in [0, 1), got {self.dropout}")
        if not 0 <= self.init_std < math.inf:
            raise ConfigError(f"{owner}.init_std must be 0 or more, got {self.init_std}")
        check_init(owner, self.init, ("random", "zero", "text"), self.init_text)

    @property
    def default_lr(self) -> float:  # type: ignore[override]
        """Through the MLP a small step goes far (5e-3 diverges on MiniLM); a flat prefix needs a large one."""
        return 2e-2 if self.mid is None else 1e-3

    def sites(self, available: Sequence[Site]) -> list[Site]:
        """The attentions of the chosen sorts."""
        owner = type(self).__name__
        check_leave_out(self.leave_out, available, owner)
        present = with_roles(available, (Role.KV,))
        if not present:
            raise UnsupportedError(
                f"{owner} finds no attention on this backbone that takes a prefix; prompt, ptuning, adapter and lora need none."
            )
        wanted = {"encoder": self.encoder, "decoder": self.decoder, "cross": self.cross}
        if not (chosen := [site for site in present if wanted[_sort(site)]]):
            here = " and ".join(dict.fromkeys(_sort(site) for site in present))
            raise UnsupportedError(
                f"{owner} finds none of its attentions on this backbone, which has {here}; switch that on."
            )
        if not (kept := [site for site in chosen if site.layer not in self.leave_out]):
            raise UnsupportedError(f"{owner} finds no place on this backbone: every layer is left out.")
        return kept

    def build(self, sites: Sequence[Site], pretrained: Pretrained, labels: Sequence[str] = ()) -> dict[str, Delta]:
        """PrefixDeltas, or ReparameterisedPrefixDeltas."""
        shapes = {site.key: pretrained.heads(site) for site in sites}
        words = {} if self.init_text is None else pretrained.activations(self.init_text)
        targets = {
            key: (_repeated(words[key][0], self.length), _repeated(words[key][1], self.length))
            for key in (shapes if words else ())
        }
        if self.mid is None:
            return {key: self._flat(shape, targets.get(key)) for key, shape in shapes.items()}
        deltas: dict[str, Delta] = {}
        for sort in dict.fromkeys(_sort(site) for site in sites):
            keys = [site.key for site in sites if _sort(site) == sort]
            group = self._reparameterised({key: shapes[key] for key in keys}, self.mid)
            if targets:
                fit(group, targets)
            deltas |= group
        return deltas

    def folded(self) -> Method:
        """The flat prefix with random values."""
        return replace(self, mid=None, embedding=None, gating=False, init="random", init_text=None)

    def _flat(self, shape: Shape, target: tuple[Tensor, Tensor] | None) -> PrefixDelta:
        heads, *widths = shape
        key, value = (torch.randn(heads, self.length, width) * self.init_std for width in widths)
        if self.init == "zero":
            value.zero_()
        if target is not None:
            key, value = target
        return PrefixDelta(key[None], value[None], offset=self.position_offset, dropout=self.dropout, gated=self.gating)

    def _reparameterised(self, shapes: dict[str, Shape], mid: int) -> dict[str, ReparameterisedPrefixDelta]:
        source = PrefixSource(self.length, mid if self.embedding is None else self.embedding, mid)
        return {
            key: ReparameterisedPrefixDelta(
                source,
                shape,
                owner=index == 0,
                zero_values=self.init == "zero",
                offset=self.position_offset,
                dropout=self.dropout,
                gated=self.gating,
            )
            for index, (key, shape) in enumerate(shapes.items())
        }


def _sort(site: Site) -> str:
    return "cross" if site.cross else site.stack


def _repeated(rows: Tensor, length: int) -> Tensor:
    """(H, n, D) -> (H, length, D): the n rows again and again, or the first of them."""
    return rows[:, torch.arange(length, device=rows.device) % rows.shape[1]]
