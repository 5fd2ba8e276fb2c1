"""Where the sites of each family are: data only, one row a family, checked by the contract test over tiny random models.

Paths are relative: `layers` to the backbone without its head, the rest to one layer. Column attn_out / ffn_out is the last
module before the residual sum (for BERT `output.dropout`, exactly where google-research/adapter-bert puts its adapter).
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """One attention block of a layer, or what stands in its place (a state-space or recurrent block)."""

    module: str
    """The module whose forward calls the attention interface."""
    out: str
    """The last module before the residual sum."""
    q: str = ""
    k: str = ""
    v: str = ""
    o: str = ""
    """Empty: there is no such projection."""
    fused: Literal["", "blocks", "heads", "unknown"] = ""
    """q, k and v are one projection: in blocks [q | k | v], or interleaved per head. Where the layout is not known there are
    no sites for q, k and v; the rest works."""
    takes_prefix: bool = True
    """Whether it has keys and values at all, before which others can stand."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedForward:
    """The feed-forward block of a layer: one network, or experts and their router."""

    out: str
    """The last module before the residual sum."""
    into: tuple[str, ...] = ()
    """The first projections, of experts those of the shared one; gated ones have two. Empty: there are none."""
    down: str = ""
    block: str = ""
    """The module that reads the sublayer's input; empty: the first of `into`."""
    beside: str = ""
    """A module, called before `out`, whose output the layer adds to that of `out` before the residual sum."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """A pile of layers."""

    name: Literal["encoder", "decoder"]
    layers: str
    attention: Attention | None = None
    feed_forward: FeedForward | None = None
    cross: Attention | None = None
    meeting: str = ""
    """The module that is called with a layer's attention and with what entered the layer, and adds them; behind it no token sees
    another. Empty: the layer does that itself."""
    rows: tuple[tuple[Attention | None, FeedForward | None], ...] = ()
    """Of each layer, where they differ (experts in some, attention in some); empty: all are as above."""
    width: int = 0
    """Of the residual stream; 0: as wide as attention's output."""

    def row(self, layer: int) -> tuple[Attention | None, FeedForward | None]:
        """Of one layer; None: it has no such sublayer."""
        return self.rows[layer] if self.rows else (self.attention, self.feed_forward)


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A row of the table: what one or more transformers `model_type`s have in common."""

    model_types: tuple[str, ...]
    stacks: tuple[Stack, ...]
    embeddings: str = ""
    """The embedding block, whose output enters the first layer; empty where there is none that takes prompts behind it."""
    gives_input_embeddings: bool = True
    """Whether `inputs_embeds` can be passed in place of `input_ids`."""
    inspected: bool = False
    """Found by looking at one model; nobody has tested it."""


def _attention(module: str, names: str, o: str, out: str = "") -> Attention:
    q, k, v = (f"{module}.{n}" if module else n for n in names.split())
    return Attention(module=module, q=q, k=k, v=v, o=o, out=out or o)


def _fused(module: str, projection: str, o: str, out: str, fused: Literal["blocks", "heads"]) -> Attention:
    name = f"{module}.{projection}"
    return Attention(module=module, q=name, k=name, v=name, o=o, out=out, fused=fused)


_BERT = Stack(
    name="encoder",
    layers="encoder.layer",
    attention=Attention(
        module="attention.self",
        q="attention.self.query",
        k="attention.self.key",
        v="attention.self.value",
        o="attention.output.dense",
        out="attention.output.dropout",
    ),
    feed_forward=FeedForward(into=("intermediate.dense",), down="output.dense", out="output.dropout"),
    meeting="attention.output",
)
_LLAMA_ATTENTION = _attention("self_attn", "q_proj k_proj v_proj", "self_attn.o_proj")
_GATED = ("mlp.gate_proj", "mlp.up_proj")


def _t5(name: Literal["encoder", "decoder"], gated: bool) -> Stack:
    def attention(index: int, module: str) -> Attention:
        path = f"layer.{index}.{module}"
        return _attention(path, "q k v", f"{path}.o", f"layer.{index}.dropout")

    last = 1 if name == "encoder" else 2
    ffn = f"layer.{last}.DenseReluDense"
    return Stack(
        name=name,
        layers=f"{name}.block",
        attention=attention(0, "SelfAttention"),
        cross=None if name == "encoder" else attention(1, "EncDecAttention"),
        feed_forward=FeedForward(
            into=(f"{ffn}.wi_0", f"{ffn}.wi_1") if gated else (f"{ffn}.wi",),
            down=f"{ffn}.wo",
            out=f"layer.{last}.dropout",
        ),
    )


def _bart(name: Literal["encoder", "decoder"]) -> Stack:
    return Stack(
        name=name,
        layers=f"{name}.layers",
        attention=_attention("self_attn", "q_proj k_proj v_proj", "self_attn.out_proj"),
        cross=None
        if name == "encoder"
        else _attention("encoder_attn", "q_proj k_proj v_proj", "encoder_attn.out_proj"),
        feed_forward=FeedForward(into=("fc1",), down="fc2", out="fc2"),
    )


T5_GATED = Family(model_types=(), stacks=(_t5("encoder", True), _t5("decoder", True)))
"""T5 v1.1 and mT5 with a gated feed-forward: same model types, two entrances (config.is_gated_act)."""

FAMILIES: tuple[Family, ...] = (
    Family(model_types=("bert", "roberta", "xlm-roberta", "electra"), stacks=(_BERT,), embeddings="embeddings"),
    Family(
        model_types=("distilbert",),
        stacks=(
            Stack(
                name="encoder",
                layers="transformer.layer",
                attention=_attention("attention", "q_lin k_lin v_lin", "attention.out_lin"),
                feed_forward=FeedForward(into=("ffn.lin1",), down="ffn.lin2", out="ffn"),
            ),
        ),
        embeddings="embeddings",
    ),
    Family(
        model_types=("modernbert",),
        stacks=(
            Stack(
                name="encoder",
                layers="layers",
                attention=_fused("attn", "Wqkv", "attn.Wo", "attn.out_drop", "blocks"),
                feed_forward=FeedForward(into=("mlp.Wi",), down="mlp.Wo", out="mlp"),
            ),
        ),
    ),
    Family(
        model_types=("gpt2",),
        stacks=(
            Stack(
                name="decoder",
                layers="h",
                attention=_fused("attn", "c_attn", "attn.c_proj", "attn.resid_dropout", "blocks"),
                feed_forward=FeedForward(into=("mlp.c_fc",), down="mlp.c_proj", out="mlp"),
            ),
        ),
    ),
    Family(
        model_types=("gpt_neox",),
        stacks=(
            Stack(
                name="decoder",
                layers="layers",
                attention=_fused("attention", "query_key_value", "attention.dense", "post_attention_dropout", "heads"),
                feed_forward=FeedForward(into=("mlp.dense_h_to_4h",), down="mlp.dense_4h_to_h", out="post_mlp_dropout"),
            ),
        ),
    ),
    Family(
        model_types=("opt",),
        stacks=(
            Stack(
                name="decoder",
                layers="decoder.layers",
                attention=_attention("self_attn", "q_proj k_proj v_proj", "self_attn.out_proj"),
                feed_forward=FeedForward(into=("fc1",), down="fc2", out="fc2"),
            ),
        ),
    ),
    Family(
        model_types=("llama", "mistral", "qwen2", "qwen3", "gemma", "smollm3"),
        stacks=(
            Stack(
                name="decoder",
                layers="layers",
                attention=_LLAMA_ATTENTION,
                feed_forward=FeedForward(into=_GATED, down="mlp.down_proj", out="mlp"),
            ),
        ),
    ),
    Family(
        model_types=("gemma2", "gemma3_text"),
        stacks=(
            Stack(
                name="decoder",
                layers="layers",
                attention=_attention(
                    "self_attn", "q_proj k_proj v_proj", "self_attn.o_proj", "post_attention_layernorm"
                ),
                feed_forward=FeedForward(into=_GATED, down="mlp.down_proj", out="post_feedforward_layernorm"),
            ),
        ),
    ),
    Family(
        model_types=("phi3",),
        stacks=(
            Stack(
                name="decoder",
                layers="layers",
                attention=_fused("self_attn", "qkv_proj", "self_attn.o_proj", "resid_attn_dropout", "blocks"),
                feed_forward=FeedForward(into=("mlp.gate_up_proj",), down="mlp.down_proj", out="resid_mlp_dropout"),
            ),
        ),
    ),
    Family(model_types=("t5", "mt5"), stacks=(_t5("encoder", False), _t5("decoder", False))),
    Family(model_types=("bart", "mbart"), stacks=(_bart("encoder"), _bart("decoder"))),
    Family(
        model_types=("vit",),
        stacks=(
            Stack(
                name="encoder",
                layers="layers",
                attention=_attention("attention", "q_proj k_proj v_proj", "attention.o_proj"),
                feed_forward=FeedForward(into=("mlp.fc1",), down="mlp.fc2", out="mlp"),
            ),
        ),
        embeddings="embeddings",
        gives_input_embeddings=False,
    ),
)


def family_of(model_type: str, *, gated: bool = False) -> Family | None:
    """The row for a transformers `model_type`, or None."""
    row = next((row for row in FAMILIES if model_type in row.model_types), None)
    return T5_GATED if row is not None and gated and model_type in ("t5", "mt5") else row
