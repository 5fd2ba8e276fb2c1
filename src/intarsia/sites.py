"""Role and Site: the places in a backbone where a task module may sit. Plain data, shared by methods/ and backbone/."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class Role(StrEnum):
    """What a place in the backbone is."""

    Q = "q"
    K = "k"
    V = "v"
    O = "o"  # noqa: E741 - the field's letter for attention's output projection
    ATTN_OUT = "attn_out"
    """Attention's sublayer output: the last module before the residual sum."""
    FFN_IN = "ffn_in"
    """The feed-forward's first projection(s); gated ones have two sites."""
    FFN_DOWN = "ffn_down"
    """The feed-forward's second projection."""
    FFN_OUT = "ffn_out"
    """The feed-forward sublayer's output: the last module before the residual sum."""
    KV = "kv"
    """The attention module, whose keys and values a prefix extends."""
    EMBED = "embed"
    """The input word embeddings."""
    EMBED_OUT = "embed_out"
    """The output of the whole embedding block (words, positions, norm), in families that have one."""
    NORM = "norm"
    """A LayerNorm or RMSNorm with a gain."""
    BIAS = "bias"
    """A projection or norm that has a bias."""
    WEIGHT = "weight"
    """A parameter of the backbone itself, replaced as a whole (the full fine-tuning baselines)."""


BY_MODULE = frozenset({Role.NORM, Role.BIAS, Role.WEIGHT, Role.EMBED, Role.EMBED_OUT})
"""Roles that a layer may have any number of; their sites are told apart by the module's path."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """The columns of a fused projection that belong to one role, as a view (..., groups, size)[..., start:stop] of its output.

    Fused in blocks, `[q | k | v]`: one group. Interleaved per head, `[q1 k1 v1 q2 k2 v2 ...]`: a group per head.
    """

    groups: int
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """One place in the backbone: (stack, layer, role, width). Its delta sees x (.., source_width) and changes y (.., width)."""

    stack: Literal["encoder", "decoder", ""]
    """"" outside any layer: embeddings, final norm, pooler."""
    layer: int
    """Index in its stack; -1 outside any layer, before the layers; the stack's depth after them."""
    role: Role
    module: str
    """Path of the module, in the backbone without its head, whose output is y."""
    width: int
    source: str = ""
    """Path of the module whose first input is x; empty: `module` itself."""
    source_width: int = 0
    beside: str = ""
    """Path of a module that is called before `module`, and whose output the layer adds to that of `module`; y is their sum."""
    cross: bool = False
    """Part of a decoder's cross-attention."""
    part: Part | None = None
    parameter: str = ""
    """Role.WEIGHT: the parameter's name in its module. Role.NORM: `layer` or `rms`, whether the mean is subtracted."""
    eps: float = 0.0
    """Role.NORM: the constant under the root."""
    bias: bool = False
    """Role.NORM: whether the norm has a bias beside its gain."""

    @property
    def key(self) -> str:
        """Unique in its backbone; the name under which its tensors are saved."""
        if self.role in BY_MODULE:
            return f"{self.role}/{self.module}" + (f"/{self.parameter}" if self.role is Role.WEIGHT else "")
        name = f"{self.stack}/{self.layer}/{'cross_' if self.cross else ''}{self.role}"
        # A gated feed-forward has two entrances; their modules' names tell them apart.
        return f"{name}/{self.module.rpartition('.')[2]}" if self.role is Role.FFN_IN else name
