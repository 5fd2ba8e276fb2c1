"""peft under the mixed traffic of bench_bank."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.bank_parts import DRAWS, ROWS, TOKENS, draw, encoder, pairs


def peft_rows(shape: str, device: str, dtype: torch.dtype, count: int, seconds: float) -> list[dict[str, Any]]:
    """peft's mixed batches (`adapter_names`, LoRA) and a loop that switches its adapters, beside one adapter for all rows."""
    import peft

    model = encoder(shape, device, dtype).model
    config = peft.LoraConfig(r=8, target_modules=["query", "value"])
    wrapped: Any = peft.get_peft_model(model, config, adapter_name="task 0")
    for number in range(1, count):
        wrapped.add_adapter(f"task {number}", config)
    wrapped.eval()
    names = [f"task {number}" for number in range(count)]
    ids = torch.randint(1000, 20000, (ROWS, TOKENS), device=device)
    mask = torch.ones_like(ids)
    drawn = [draw("uniform", names, ROWS, number) for number in range(DRAWS)]

    def mixed(number: int) -> None:
        wrapped(input_ids=ids, attention_mask=mask, adapter_names=drawn[number % DRAWS])

    def switched(number: int) -> None:
        tasks = drawn[number % DRAWS]
        for name in dict.fromkeys(tasks):
            rows = [row for row, task in enumerate(tasks) if task == name]
            wrapped.set_adapter(name)
            wrapped(input_ids=ids[rows], attention_mask=mask[rows])

    def single(_number: int) -> None:
        wrapped(input_ids=ids, attention_mask=mask)

    found = []
    with torch.inference_mode():
        for name, call in (("peft adapter_names", mixed), ("peft, a loop that switches", switched)):
            wrapped.set_adapter("task 0")
            took, alone, ratio = pairs(call, single, seconds, device)
            found.append(
                {
                    "job": "encoder, LoRA",
                    "system": name,
                    "traffic": "uniform",
                    "resident tasks": count,
                    "thousand tokens/s": round(ROWS * TOKENS / took / 1000, 2),
                    "one task, thousand tokens/s": round(ROWS * TOKENS / alone / 1000, 2),
                    "speed against one task": round(1 / ratio, 3),
                }
            )
    return found
