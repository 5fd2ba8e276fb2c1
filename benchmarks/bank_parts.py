"""What the benchmarks of a bank share: backbones of a shape, tasks of random values, traffic, and two calls side by side."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from intarsia.backbone import Backbone
from intarsia.bank import TaskBank
from intarsia.heads import Head
from intarsia.methods import BottleneckAdapter, LoRA, PrefixTuning, PromptTuning
from intarsia.task import Task

ROWS, TOKENS, DECODE_ROWS = 32, 64, 64
DECODE_STEPS = {"cpu": 4, "cuda": 16}
"""Tokens between two changes of who is in the batch."""
CALLS = {"cpu": 1, "cuda": 8}
"""An encoder's batches between two waits for the device: a server, too, makes the next one ready meanwhile."""
DRAWS = 64
"""Batches of tasks that are drawn beforehand, and used in turn."""
SHAPES = {
    "bert-base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
}
METHODS: dict[str, Any] = {
    "adapter": BottleneckAdapter(width=48),
    "lora": LoRA(rank=8),
    "prefix": PrefixTuning(length=20, mid=None),
    "prompt": PromptTuning(length=20, init="uniform"),
}
TRAFFIC = ("identical", "uniform", "zipf", "distinct")


def encoder(shape: str, device: str, dtype: torch.dtype) -> Backbone:
    """A BERT of this shape."""
    import transformers

    config = transformers.BertConfig(vocab_size=30522, **SHAPES[shape])
    torch.manual_seed(0)
    backbone = Backbone.wrap(transformers.BertModel(config).to(device, dtype))
    backbone.suit_processor(dtype)
    return backbone


def decoder(shape: str, device: str, dtype: torch.dtype) -> Backbone:
    """A GPT-2 of this shape: GPT-2 small with "bert-base"."""
    import transformers

    size = SHAPES[shape]
    config = transformers.GPT2Config(
        n_embd=size["hidden_size"], n_layer=size["num_hidden_layers"], n_head=size["num_attention_heads"]
    )
    torch.manual_seed(0)
    return Backbone.wrap(transformers.GPT2LMHeadModel(config).to(device, dtype), tokenizer=Silent())  # type: ignore[arg-type]


class Silent:
    """A tokenizer for texts that nobody reads."""

    eos_token_id = None

    def decode(self, ids: list[int], **_more: Any) -> str:
        """A letter for each token."""
        return "x" * len(ids)


def fill(bank: TaskBank, kinds: tuple[str, ...], count: int, head: Head | None) -> None:
    """Tops the bank up to `count` tasks, of the kinds in turn; each is one made task with other numbers."""
    made = {}
    for number in range(len(bank.tasks), count):
        kind = kinds[number % len(kinds)]
        if kind not in made:
            made[kind] = Task.new(kind, bank.backbone, METHODS[kind], head).eval().requires_grad_(False)
        with torch.no_grad():
            for parameter in made[kind].parameters():
                parameter.normal_(0, 0.02)
        bank.add(made[kind], f"task {number}")


def draw(traffic: str, names: list[str], rows: int, seed: int) -> list[str]:
    """The task of each row."""
    shuffle = random.Random(seed)
    if traffic == "identical":
        return [names[seed % len(names)]] * rows
    if traffic == "distinct":
        return shuffle.sample(names, rows) if len(names) >= rows else shuffle.choices(names, k=rows)
    weights = [1 / (1 + place) for place in range(len(names))] if traffic == "zipf" else None
    return shuffle.choices(names, weights=weights, k=rows)


def pairs(
    one: Callable[[int], float | None], other: Callable[[int], float | None], seconds: float, device: str
) -> tuple[float, float, float]:
    """Seconds a call of each (medians), and the median of the ratios of neighbours; they alternate, so noise hits both. A call may
    tell its seconds itself."""

    def timed(call: Callable[[int], float | None], number: int) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        own = call(number)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start if own is None else own

    for number in range(2):
        timed(one, number), timed(other, number)
    found: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(found) < 6 or time.perf_counter() < end:
        number = len(found)
        found.append(
            (timed(one, number), timed(other, number))
            if number % 2
            else (timed(other, number), timed(one, number))[::-1]
        )
    ratio = statistics.median(a / b for a, b in found)
    return statistics.median(a for a, _ in found), statistics.median(b for _, b in found), ratio
