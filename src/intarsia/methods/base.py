"""What every method is: a frozen dataclass of hyperparameters that chooses sites and builds a delta for each.

A delta is an `nn.Module` at one site. Every trainable tensor has a leading task axis N: one task is N = 1, a bank of
tasks is a concatenation on axis 0. There is one base class per seam of the frozen transformer:

    ProjectionDelta    y <- y + delta(x, y)        adapters, LoRA, trained norms and biases
    KeyValueDelta      K <- [P_k; K], V <- [P_v; V]  prefix tuning, P-tuning v2
    EmbeddingDelta     E <- [P; E]                 prompt tuning, P-tuning v1
    WeightDelta        W <- W'                     the baselines that train the backbone's own weights (they do not mix
                                                   with other tasks in one pass)
"""

from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from intarsia.sites import Role, Site


class Delta(nn.Module):
    """A task's module at one site; its tensors are (N, ...), kept in fp32 and cast to the backbone's dtype when used."""

    def decay_free(self) -> frozenset[str]:
        """Names of the own tensors that take no weight decay: biases and gains."""
        return frozenset(name for name, _ in self.named_parameters() if name.endswith(("bias", "gain", "scale")))

    def fold(self) -> "Delta":
        """The form that is shipped and served: a reparameterisation replaced by what it puts out. Plain deltas: themselves."""
        return self

    def addressed(self) -> bool:
        """Whether it works with `ops.At` in its parameters' places, so that a GPU's kernels find each row's own tensors."""
        return False


class ProjectionDelta(Delta):
    """Changes the output of a module: y' = forward(x, y)."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x: (B, T, D_in), y: (B, T, D), B rows in N equal runs, one run a task. Returns (B, T, D)."""
        raise NotImplementedError

    def change_(self, x: Tensor, y: Tensor) -> Tensor:
        """The same written into y, which has just been made for nobody else; without gradients. Returns y."""
        return y.copy_(self(x, y))


class KeyValueDelta(Delta):
    """Keys and values of P virtual positions, put before an attention's own: seen by every query, whatever the mask or window."""

    length: int
    """P."""
    offset: bool = False
    """Whether the real tokens' positions start at P, as after P cached tokens, instead of at 0."""

    def forward(self) -> tuple[Tensor, Tensor]:
        """Returns keys (N, H, P, D_k) and values (N, H, P, D_v): H key-value heads, as attention gets them (after RoPE)."""
        raise NotImplementedError


Place = Literal["start", "after-first", "end", "template"]
"""Where a prompt stands: before the tokens, after the first of them (BOS, [CLS]), after the last, or in a template's slots."""


class EmbeddingDelta(Delta):
    """Embedding vectors of P virtual tokens."""

    length: int
    """P."""
    place: Place = "start"

    def addressed(self) -> bool:
        """Prompts go in before the kernels run."""
        return True

    def forward(self) -> Tensor:
        """Returns (N, P, E), E the width of the site's embeddings."""
        raise NotImplementedError


class WeightDelta(Delta):
    """Takes the place of one parameter of the backbone."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value.detach().to(torch.float32, copy=True).unsqueeze(0))

    def decay_free(self) -> frozenset[str]:
        """Biases and norms are the parameters with one axis (two with the task axis)."""
        return frozenset({"value"}) if self.value.dim() <= 2 else frozenset()

    def forward(self) -> Tensor:
        """Returns the parameter's replacement, (*shape)."""
        return self.value[0]


class Pretrained(Protocol):
    """What a method may read of the frozen model when it builds a task. Tensors are detached, fp32, on the CPU."""

    def parameter(self, site: Site) -> Tensor:
        """The present value at a site of Role.WEIGHT."""
        ...

    def heads(self, site: Site) -> tuple[int, int, int]:
        """At a site of Role.KV: key-value heads H, width of a key D_k, width of a value D_v."""
        ...

    def activations(self, text: str) -> dict[str, tuple[Tensor, Tensor]]:
        """Keys (H, n, D_k) and values (H, n, D_v) at every site of Role.KV, by its key, when the text of n tokens runs through
        the frozen model."""
        ...

    def embeddings(self, text: str) -> Tensor:
        """(n, E): the input embeddings of the text's n tokens, without special tokens, as they leave the embedding module."""
        ...

    def common_embeddings(self, count: int) -> Tensor:
        """(count or fewer, E): the embeddings of the commonest words of the vocabulary."""
        ...


class Method:
    """A frozen dataclass of hyperparameters, one per paper."""

    __slots__ = ()

    name: ClassVar[str]
    """How the command line and task.json call it."""
    default_lr: ClassVar[float]
    """A learning rate that works for AdamW on small and medium backbones."""

    def sites(self, available: Sequence[Site]) -> list[Site]:
        """The sites that this method changes, out of all the backbone's."""
        raise NotImplementedError

    def build(self, sites: Sequence[Site], pretrained: Pretrained, labels: Sequence[str] = ()) -> dict[str, Delta]:
        """New deltas for one task, by their site's key. labels: the names of the task's labels, for initialisations by them."""
        raise NotImplementedError

    def folded(self) -> "Method":
        """The method whose new deltas have the shapes of this one's folded ones, with the cheapest initialisation."""
        return self


def with_roles(available: Iterable[Site], roles: Iterable[Role], leave_out: Sequence[int] = ()) -> list[Site]:
    """The sites with one of these roles, without those in the left-out layers (indices count within each stack)."""
    wanted, dropped = frozenset(roles), frozenset(leave_out)
    return [site for site in available if site.role in wanted and site.layer not in dropped]


def check_leave_out(leave_out: Sequence[int], available: Iterable[Site], owner: str) -> None:
    """ConfigError when an index names no layer."""
    from intarsia.errors import ConfigError

    depth = 1 + max((s.layer for s in available if s.role in (Role.ATTN_OUT, Role.FFN_OUT)), default=-1)
    if wrong := [index for index in leave_out if not 0 <= index < depth]:
        raise ConfigError(
            f"{owner}.leave_out holds {wrong[0]}, but the backbone's layers are 0 to {depth - 1}; give indices of layers."
        )


def check_init(owner: str, init: str | None, known: Sequence[str], text: str | None) -> None:
    """ConfigError unless the initialisation is known, and has a text where it needs one and only there."""
    from intarsia.errors import ConfigError

    if init not in known:
        raise ConfigError(f"{owner}.init must be {', '.join(repr(one) for one in known)}; got {init!r}")
    if init == "text" and not (text and text.strip()):
        raise ConfigError(f"{owner}.init is 'text', so init_text must hold words; got {text!r}")
    if init != "text" and text is not None:
        raise ConfigError(
            f"{owner}.init_text is given, but init is {init!r}; set init to 'text', or leave init_text out."
        )


def linear_parameters(reads: int, writes: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Weight (1, writes, reads) and bias (1, writes), drawn as nn.Linear draws them."""
    layer = nn.Linear(reads, writes)
    return nn.Parameter(layer.weight.detach()[None]), nn.Parameter(layer.bias.detach()[None])
