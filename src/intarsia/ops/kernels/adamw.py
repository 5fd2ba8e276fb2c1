"""AdamW over K tasks in one pass over memory: in plain torch each of its operations is one."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048


@triton.jit
def adamw_update(value_ptr, low_ptr, first_ptr, second_ptr, gradient_ptr, rates_ptr, count, tasks,
            value_task, low_task, first_task, second_task, gradient_task,
            LOW: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    task = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    rate, decay = tl.load(rates_ptr + task), tl.load(rates_ptr + tasks + task)
    beta1, beta2 = tl.load(rates_ptr + 2 * tasks + task), tl.load(rates_ptr + 3 * tasks + task)
    eps, correct1 = tl.load(rates_ptr + 4 * tasks + task), tl.load(rates_ptr + 5 * tasks + task)
    correct2, factor = tl.load(rates_ptr + 6 * tasks + task), tl.load(rates_ptr + 7 * tasks + task)
    value = tl.load(value_ptr + task * value_task + at, mask=inside, other=0.0)
    first = tl.load(first_ptr + task * first_task + at, mask=inside, other=0.0)
    second = tl.load(second_ptr + task * second_task + at, mask=inside, other=0.0)
    g = tl.load(gradient_ptr + task * gradient_task + at, mask=inside, other=0.0).to(tl.float32) * factor
    first += (g - first) * (1 - beta1)
    second = second * beta2 + g * g * (1 - beta2)
    value *= 1 - rate * decay
    value -= rate / correct1 * first / (tl.sqrt(second) / tl.sqrt(correct2) + eps)
    tl.store(value_ptr + task * value_task + at, value, mask=inside)
    tl.store(first_ptr + task * first_task + at, first, mask=inside)
    tl.store(second_ptr + task * second_task + at, second, mask=inside)
    if LOW:
        tl.store(low_ptr + task * low_task + at, value.to(low_ptr.dtype.element_ty), mask=inside)


def update(value: Tensor, low: Tensor | None, first: Tensor, second: Tensor, gradient: Tensor, rates: Tensor) -> None:
    """As `ops.adamw`; value, first and second fp32, rates (8, K) fp32."""
    tasks, count = value.shape
    assert rates.dtype == torch.float32
    assert all(x.stride(1) == 1 for x in (value, first, second, gradient))
    copy = value if low is None else low
    adamw_update[(triton.cdiv(count, _BLOCK), tasks)](
        value, copy, first, second, gradient, rates, count, tasks,
        value.stride(0), copy.stride(0), first.stride(0), second.stride(0), gradient.stride(0),
        LOW=low is not None, BLOCK=_BLOCK, num_warps=8,
    )  # fmt: skip
