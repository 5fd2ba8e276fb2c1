"""Attention written out with loops, in float64: what prefixes and prompts are measured against.

The reference reads one row at a time, without padding, cache or hooks. So a test that agrees with it has also shown that a
row depends on neither its neighbours nor its padding.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedTokenizerFast
from transformers.masking_utils import sdpa_mask

import tiny
from intarsia.backbone import Backbone
from intarsia.methods import KeyValueDelta
from intarsia.methods.base import Method
from intarsia.task import Task
from methods.every import row, stir

BY_HAND = "intarsia_by_hand"
EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
COUNTS_FROM_THE_LEFT = ("bart", "mbart")
"""transformers numbers all columns of their encoders' inputs, so padding on the left is not cut off there."""
Batch = dict[str, Tensor]


class Exact(TorchFunctionMode):
    """Nothing in a float64 model falls back to fp32, as norms, eager softmax and scores do: a difference is then a mistake."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if args and isinstance(args[0], Tensor) and args[0].dtype is torch.float64:
            if func is Tensor.float:
                return args[0]
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
            kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """softmax(cap(q [P_k; K]^T * scaling + [0 | bias]), under [ones | mask]) [P_v; V]: row by row, head by head."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    share = query.shape[1] // key.shape[1]  # query heads that read one key-value head
    before: tuple[Tensor, Tensor] | None = module.__dict__.get(BY_HAND)
    rows = []
    for b in range(query.shape[0]):
        heads = []
        for h in range(query.shape[1]):
            k, v = key[b, h // share], value[b, h // share]
            length = 0
            if before is not None:
                length = before[0].shape[1]
                k, v = torch.cat([before[0][h // share], k]), torch.cat([before[1][h // share], v])
            scores = query[b, h] @ k.T * scaling
            if softcap is not None:
                scores = (scores / softcap).tanh() * softcap
            if position_bias is not None:
                bias = position_bias[min(b, len(position_bias) - 1), h]
                scores = torch.cat([scores[:, :length], scores[:, length:] + bias], dim=1)
            if attention_mask is not None:
                hidden = ~attention_mask[min(b, len(attention_mask) - 1), 0]
                scores[:, length:] = scores[:, length:].masked_fill(hidden, float("-inf"))
            heads.append(scores.softmax(-1) @ v)
        rows.append(torch.stack(heads, dim=1))
    return torch.stack(rows), None


def _whole_mask(*args: Any, **more: Any) -> Tensor | None:
    return sdpa_mask(*args, **{**more, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})


@contextmanager
def registered() -> Iterator[None]:
    """transformers knows the attention by hand, meanwhile."""
    AttentionInterface.register(BY_HAND, attention)
    AttentionMaskInterface.register(BY_HAND, _whole_mask)
    try:
        yield
    finally:
        for registry in (AttentionInterface, AttentionMaskInterface):
            registry._global_mapping.pop(BY_HAND, None)


@contextmanager
def by_hand(backbone: Backbone, task: Task | None) -> Iterator[None]:
    """The model attends by hand, after the prefixes of this task; hooks of any bank must be off."""
    before = backbone.model.config._attn_implementation
    modules = []
    for key, site in {} if task is None else task.sites.items():
        delta = task.delta(key) if task is not None else None
        if isinstance(delta, KeyValueDelta):
            module = backbone.base.get_submodule(site.module)
            module.__dict__[BY_HAND] = tuple(part[0] for part in delta())
            modules.append(module)
    with registered():
        backbone.model.set_attn_implementation(BY_HAND)
        try:
            yield
        finally:
            backbone.model.set_attn_implementation(before)
            for module in modules:
                del module.__dict__[BY_HAND]


def wrap64(family: str, implementation: str = "", **changes: Any) -> Backbone:
    """A tiny float64 backbone with a tokenizer of words w0 to w96, over this attention of transformers' own."""
    model = tiny.build(family, **changes).double()
    if implementation:
        model.set_attn_implementation(implementation)
    return Backbone.wrap(model, tokenizer=None if family == "vit" else words(model.config))


def words(config: Any) -> PreTrainedTokenizerFast:
    """`w5` is token 5."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    core = Tokenizer(models.WordLevel({f"w{i}": i for i in range(97)}, unk_token="w3"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="w3")
    tokenizer.pad_token_id = getattr(config, "pad_token_id", None) or 0
    return tokenizer


def task64(name: str, backbone: Backbone, method: Method, std: float = 0.5) -> Task:
    """A float64 task without a head, each tensor moved off its initial value."""
    task = Task.new(name, backbone, method).eval().double()
    return stir(task, std, seed=len(name) + ord(name[-1])) if std else task


def padded(family: str, rows: int, side: str, tokens: int = 11) -> Batch:
    """Rows of different lengths, padded on that side ("none": of equal length); longer than the sliding windows."""
    batch = tiny.inputs(family, rows=rows, tokens=tokens)
    if side == "none" or family == "vit":
        return batch
    columns = torch.arange(tokens)
    for i in range(rows):
        gone = columns < i % 4 if side == "left" else columns >= tokens - i % 4
        batch["attention_mask"][i, gone] = 0
    return batch


def alone(family: str, batch: Batch, index: int) -> tuple[Batch, Tensor]:
    """One row without its padding, and which of the batch's columns (as in the states) those are."""
    one = row(batch, index)
    if family == "vit":
        return one, torch.arange(17)
    seen = one["attention_mask"][0].bool()
    columns = seen.nonzero()[:, 0]
    if family in COUNTS_FROM_THE_LEFT and not seen[0]:
        return one, torch.arange(one["decoder_input_ids"].shape[1])
    one = {k: v if k.startswith("decoder") else v[:, seen] for k, v in one.items()}
    del one["attention_mask"]
    return one, torch.arange(one["decoder_input_ids"].shape[1]) if "decoder_input_ids" in one else columns


def tokens_with_prompt(ids: Sequence[int], prompt: Sequence[int], place: str) -> tuple[list[int], list[int]]:
    """The row with the prompt's tokens in it (a template has -1 - j where token j goes), and where its own tokens then are."""
    ids, prompt = list(ids), list(prompt)
    if place == "template":
        return [prompt[-1 - i] if i < 0 else i for i in ids], list(range(len(ids)))
    at = {"start": 0, "after-first": 1, "end": len(ids)}[place]
    return ids[:at] + prompt + ids[at:], [*range(at), *range(at + len(prompt), len(ids) + len(prompt))]


@contextmanager
def scores_of(backbone: Backbone) -> Iterator[list[Tensor]]:
    """The language head's scores (B, V) for each next token, in order."""
    found: list[Tensor] = []

    def keep(_module: nn.Module, _args: tuple, output: Tensor) -> None:
        found.append(output[:, -1].detach())

    handle = backbone.language_head.register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def entered(backbone: Backbone, one: Batch, task: Task | None) -> Batch:
    """The row's embeddings with the task's prompt among them, and its mask if it has one."""
    inputs = backbone.base.get_input_embeddings()(one["input_ids"])  # type: ignore[operator]
    mask = one.get("attention_mask")
    if (prompt := None if task is None else task.prompt) is not None:
        first = 0 if mask is None else int(mask[0].argmax())
        at = {"start": first, "after-first": first + 1, "end": inputs.shape[1]}[prompt.place]
        inputs = torch.cat([inputs[:, :at], prompt().to(inputs.dtype), inputs[:, at:]], dim=1)
        if mask is not None:
            mask = torch.cat([mask[:, :at], mask.new_ones(1, prompt.length), mask[:, at:]], dim=1)
    return {"inputs_embeds": inputs, **({} if mask is None else {"attention_mask": mask})}


@torch.no_grad()
def written(backbone: Backbone, one: Batch, task: Task | None, steps: int) -> list[int]:
    """Greedy decoding of one unpadded row, with a whole forward pass over the stock model for each token: no cache, no hooks."""
    model: Any = backbone.model
    given = entered(backbone, one, task)
    found: list[int] = []
    start = torch.tensor([model.config.decoder_start_token_id or 0]) if backbone.kind == "encoder-decoder" else None
    with by_hand(backbone, task):
        for _ in range(steps):
            if start is not None:
                given["decoder_input_ids"] = torch.cat([start, torch.tensor(found, dtype=torch.long)])[None]
            new = model(**given, use_cache=False).logits[0, -1].argmax()
            if int(new) == model.generation_config.eos_token_id:
                break
            found.append(int(new))
            if start is None:
                last = backbone.base.get_input_embeddings()(new[None, None])  # type: ignore[operator]
                given["inputs_embeds"] = torch.cat([given["inputs_embeds"], last], dim=1)
    return found
