"""The kernels without gradients by themselves, for bench_speed_h100: the optimizer's, and those that read each row's own task where
it lies. Beside plain torch, and beside the least that they could take.

Plain torch has the tasks' tensors stacked already, which a batch of other tasks would have to do first.
"""

from collections.abc import Callable
from typing import Any

ROWS, TOKENS, WIDTH, NARROW, HEADS, PREFIX = 256, 64, 768, 48, 12, 20
NAMES = (
    "adamw",
    "rows' bottlenecks",
    "rows' bottlenecks, one token",
    "rows' LoRA",
    "rows' norms",
    "rows' prefixes",
)


class Tasks:
    """A task for each row: flat tensors somewhere in memory, whose parts have these shapes."""

    def __init__(self, *shapes: tuple[int, ...]) -> None:
        import torch

        from intarsia import ops
        from intarsia.ops.addressed import At, Rows

        def words(shape: tuple[int, ...]) -> int:
            return -(-torch.Size(shape).numel() // ops.ALIGN) * ops.ALIGN

        places = [sum(words(shape) for shape in shapes[:i]) for i in range(len(shapes))]
        size = sum(map(words, shapes))
        self.flats = [torch.randn(size, device="cuda", dtype=torch.bfloat16) for _ in range(ROWS)]
        offsets = torch.tensor([*ops.offsets_from(self.flats[0], self.flats), 0], device="cuda")
        forms = torch.tensor([0] * ROWS + [ops.NOBODY], device="cuda")
        self.rows = Rows(self.flats[0], offsets, forms, flats=self.flats)
        self.at = [At(self.rows, 0, place, shape) for place, shape in zip(places, shapes, strict=True)]
        self.stacked = [
            torch.stack(
                [flat[at.place : at.place + torch.Size(at.shape).numel()].view(at.shape) for flat in self.flats]
            )
            for at in self.at
        ]
        self.bytes = sum(torch.Size(shape).numel() for shape in shapes) * 2 * ROWS


def contenders(name: str) -> tuple[Callable[[], Any], Callable[[], Any], int]:
    """Ours, plain torch, and the bytes that have to move."""
    import torch
    from torch.nn import functional as F

    from intarsia import ops
    from intarsia.ops import reference
    from intarsia.ops.addressed import Before

    bf16 = {"device": "cuda", "dtype": torch.bfloat16}
    tokens = 1 if name.endswith("one token") else TOKENS
    x = torch.randn(ROWS, tokens, WIDTH, **bf16)
    states = x.nbytes
    if name == "adamw":
        tasks, count = 8, 1_800_000
        value, first, second = (torch.rand(tasks, count, device="cuda") for _ in range(3))
        gradient, low = torch.randn(tasks, count, **bf16), torch.empty(tasks, count, **bf16)
        rates = ops.Rates(
            *(torch.full((tasks,), v, device="cuda") for v in (1e-4, 0.01, 0.9, 0.999, 1e-8, 0.1, 1e-3, 1.0))
        )
        wide, copy = gradient.float(), torch.empty(tasks, count, **bf16)
        theirs = [[t.clone()] for t in (value, first, second)]
        step = [torch.ones((), device="cuda")]

        def fused() -> None:
            # torch's wants the gradient in the weights' dtype, and leaves the copy in half precision to somebody else.
            torch._fused_adamw_(
                theirs[0], [wide], theirs[1], theirs[2], [], step, lr=1e-4, beta1=0.9, beta2=0.999, weight_decay=0.01,
                eps=1e-8, amsgrad=False, maximize=False,
            )  # fmt: skip
            copy.copy_(theirs[0][0])

        moved = 6 * value.nbytes + gradient.nbytes + low.nbytes
        return lambda: ops.adamw(value, low, first, second, gradient, rates), fused, moved
    if name == "rows' norms":
        own, frozen = Tasks((WIDTH,), (WIDTH,)), ops.Own(*(torch.randn(WIDTH, **bf16) for _ in range(2)), 1e-12, True)

        def plain() -> Any:
            gain, bias = (part[:, None] for part in own.stacked)
            return F.layer_norm(x, (WIDTH,), eps=1e-12) * (frozen.gain + gain) + (frozen.bias + bias)

        return lambda: ops.whole_norms(x, frozen, [(own.at[0], own.at[1])]), plain, 2 * states + own.bytes
    if name == "rows' prefixes":
        shape = (HEADS, PREFIX, WIDTH // HEADS)
        own = Tasks(shape, shape)
        table = torch.tensor([[own.at[0].place, own.at[1].place, PREFIX]], device="cuda")
        q, k, v = (x.view(ROWS, tokens, HEADS, -1).clone().transpose(1, 2) for _ in range(3))
        before = Before(own.rows, table)

        def joined() -> Any:
            keys, values = (torch.cat([part, z], dim=2) for part, z in zip(own.stacked, (k, v), strict=True))
            return F.scaled_dot_product_attention(q, keys, values, scale=0.125).transpose(1, 2)

        return (
            lambda: ops.prefixed_attention(q, k, v, None, before, causal=False, scale=0.125),
            joined,
            4 * states + own.bytes,
        )
    lora = name == "rows' LoRA"
    narrow = 8 if lora else NARROW
    own = (
        Tasks((narrow, WIDTH), (WIDTH, narrow))
        if lora
        else Tasks((narrow, WIDTH), (narrow,), (WIDTH, narrow), (WIDTH,))
    )
    down, down_bias, up, up_bias = (own.at[0], None, own.at[1], None) if lora else own.at
    y = x if not lora else torch.randn_like(x)
    # Into the states themselves, thousands of times: a factor that leaves them as they are.
    act = None if lora else "gelu_new"

    def product() -> Any:
        if lora:
            return reference.add_low_rank(y, x, *own.stacked)
        return y + reference.bottleneck(x, *own.stacked, ops.ACTIVATIONS["gelu_new"])

    moved = (3 if lora else 2) * states + own.bytes
    return lambda: ops.adapt_(x, y, down, down_bias, up, up_bias, act, 1e-9), product, moved


def kernel(name: str) -> dict[str, Any]:
    """Microseconds of one of NAMES: 256 rows of 64 tokens of 768 in bf16, each with a task of its own (adapters of width 48, LoRA
    of rank 8, prefixes of 20); adamw: 8 tasks of 1.8 million parameters."""
    import torch
    from triton.testing import do_bench, do_bench_cudagraph

    copied = torch.empty(1 << 29, device="cuda", dtype=torch.uint8)
    speed = 2 * copied.numel() / do_bench(lambda: copied.clone()) / 1e-3
    with torch.no_grad():
        ours, plain, moved = contenders(name)
        times = {"ours_us": do_bench_cudagraph(ours), "plain_us": do_bench_cudagraph(plain)}
    found = {who: round(time * 1e3, 1) for who, time in times.items()}
    return {"copy_tb_per_second": round(speed / 1e12, 2), **found, "floor_us": round(moved / speed * 1e6, 1)}
