"""What bench_speed_h100 and its peers share: shapes, rows, and how a step is timed."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-base": ("BertConfig", {}),
    "gpt2-medium": ("GPT2Config", {"n_embd": 1024, "n_layer": 24, "n_head": 16}),
    "smollm2": (
        "LlamaConfig",
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 64,
            "intermediate_size": 1536,
        },
    ),
    "llama-1b": (
        "LlamaConfig",
        {
            "vocab_size": 32000,
            "hidden_size": 2048,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "intermediate_size": 8192,
        },
    ),
    "tiny": (
        "BertConfig",
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128},
    ),
}
ROWS = {"bert-base": 32, "gpt2-medium": 16, "smollm2": 32, "llama-1b": 8, "tiny": 8}
DECODERS = ("gpt2-medium", "smollm2", "llama-1b")


def lengths(count: int, seed: int) -> np.ndarray:
    """Tokens of so many rows, distributed as MRPC's."""
    return np.clip(np.random.default_rng(seed).normal(53.2, 12.7, count).round(), 19, 103).astype(np.int64)


def model(shape: str, *, head: bool = False) -> Any:
    """Random weights; with transformers' own classification head for the peers."""
    import torch
    import transformers as tf

    name, fields = SHAPES[shape]
    config = getattr(tf, name)(**fields, pad_token_id=0, num_labels=2)
    torch.manual_seed(0)
    causal = not name.startswith("Bert")
    auto = tf.AutoModelForCausalLM if causal else tf.AutoModelForSequenceClassification if head else tf.AutoModel
    return auto.from_config(config)


def source(shape: str, seed: int, arrangement: str, steps: int = 64) -> Any:
    """A data set of random tokens."""
    from intarsia.data import Encoded, EncodedPairs, EncodedSource, GenerationSource

    rng, rows = np.random.default_rng(seed), ROWS[shape] * steps
    sizes = lengths(rows, seed)

    def ids(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        return rng.integers(1000, 20000, int(offsets[-1])).astype(np.int32), offsets

    if shape in DECODERS:  # a table of 40 tokens and a text of about 40, as in E2E
        inputs, targets = ids(sizes - sizes // 2), ids(sizes // 2 + 13)
        pairs = EncodedPairs(False, *inputs, *targets, None, 0, 0)
        return GenerationSource(pairs, ROWS[shape], pad_id=0, seed=seed, arrangement=arrangement)  # type: ignore[arg-type]
    tokens, offsets = ids(sizes)
    encoded = Encoded("classification", tokens, offsets, None, None, rng.integers(0, 2, rows), 0, 0)
    return EncodedSource(encoded, ROWS[shape], pad_id=0, seed=seed, arrangement=arrangement)  # type: ignore[arg-type]


def timed(step: Callable[[], int], seconds: float) -> dict[str, Any]:
    """Thousand tokens a second: the median of five spells of a fifth of the time each, after eight steps."""
    import torch

    cuda = torch.cuda.is_available()
    wait = torch.cuda.synchronize if cuda else lambda: None
    for _ in range(8):
        step()
    wait()
    speeds = []
    for _ in range(5):
        tokens, steps, begun = 0, 0, time.perf_counter()
        while time.perf_counter() - begun < seconds / 5 or steps < 3:
            tokens, steps = tokens + step(), steps + 1
            if steps % 16 == 0:
                wait()
        wait()
        speeds.append(tokens / (time.perf_counter() - begun) / 1e3)
    speeds.sort()
    found = {"ktokens_per_second": round(speeds[2], 2), "slowest": round(speeds[0], 2), "fastest": round(speeds[-1], 2)}
    if cuda:
        found["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)
    return found
