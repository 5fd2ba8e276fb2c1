"""Each kernel of ours by itself, for bench_speed_h100: beside plain torch, and beside the least that it could take."""

from typing import Any

import numpy as np

from benchmarks.speed_h100_parts import lengths


def kernel(name: str, seconds: float) -> dict[str, Any]:
    """Each of `segments`, `norm`, `bottleneck`, in bf16, 8 tasks x 1,792 rows of 768; and `rotary`, of as many tokens' 9 queries
    and 3 keys of 64 (SmolLM2's)."""
    import torch
    from triton.testing import do_bench, do_bench_cudagraph

    from intarsia import ops
    from intarsia.ops import reference
    from intarsia.ops.fast import adapted, whole_norm

    tasks, rows, width, narrow = 8, 1792, 768, 48
    bf16 = {"device": "cuda", "dtype": torch.bfloat16}
    states = tasks * rows * width * 2

    def fresh(*shape: int) -> Any:
        return torch.randn(*shape, **bf16).requires_grad_()

    if name == "segments":
        from torch.nn.attention.varlen import varlen_attn

        sizes = lengths(2 * tasks * rows // 53, 0)
        sizes = sizes[: int(np.searchsorted(np.cumsum(sizes), tasks * rows))]
        starts = torch.tensor(np.concatenate([[0], np.cumsum(sizes)]), dtype=torch.int32, device="cuda")
        inputs = [fresh(int(sizes.sum()), 12, 64) for _ in range(3)]

        def ours() -> Any:
            return ops.segment_attention(*inputs, starts, starts, 103, 103, causal=False, scale=0.125)

        def plain() -> Any:
            return varlen_attn(*inputs, starts, starts, 103, 103, scale=0.125)

        moved = (4 * states, 7 * states)
    elif name == "rotary":
        # As a model has them: transposed views of what its projections put out.
        inputs = [fresh(1, tasks * rows, heads, 64) for heads in (9, 3)]
        turns = [torch.randn(1, tasks * rows, 64, **bf16) for _ in range(2)]

        def ours() -> Any:
            return ops.rotated(*(x.transpose(1, 2) for x in inputs), *turns)

        def plain() -> Any:
            return reference.rotated(*(x.transpose(1, 2) for x in inputs), *turns)

        moved = (tasks * rows * 2 * 64 * (2 * (9 + 3) + 2),) * 2
    elif name == "norm":
        # A LayerNorm that is trained: the frozen one and its change at once.
        inputs = [fresh(tasks, rows, width), fresh(tasks, width), fresh(tasks, width)]
        own = ops.Own(fresh(width).detach(), fresh(width).detach(), 1e-12, True)

        def ours() -> Any:
            return whole_norm(inputs[0], own, *inputs[1:])

        def plain() -> Any:
            return reference.norm_change(inputs[0], ops.frozen_norm(inputs[0], own), *inputs[1:], 1e-12, centre=True)

        moved = (2 * states, 3 * states)
    else:
        shapes = [(tasks, rows, width), (tasks, narrow, width), (tasks, narrow), (tasks, width, narrow), (tasks, width)]
        inputs = [fresh(*shape) for shape in shapes]

        def ours() -> Any:
            return adapted(*inputs, "gelu_new")

        def plain() -> Any:
            return inputs[0] + reference.bottleneck(*inputs, ops.ACTIVATIONS["gelu_new"])

        # Backward: the gradient in and out, and both once more for the products that are the weights' gradients.
        moved = (2 * states, 4 * states)
    copied = torch.empty(1 << 29, device="cuda", dtype=torch.uint8)
    speed = 2 * copied.numel() / do_bench(lambda: copied.clone()) / 1e-3
    found: dict[str, Any] = {"copy_tb_per_second": round(speed / 1e12, 2)}
    for who, run in (("ours", ours), ("plain", plain)):
        out = run()
        grad = [torch.randn_like(one) for one in out] if isinstance(out, tuple) else torch.randn_like(out)
        del out  # its graph is of the ordinary stream, on which a capture must not wait

        def both(run: Any = run, grad: Any = grad) -> Any:
            return torch.autograd.grad(run(), inputs, grad)

        # As graphs: a launch from Python takes longer than the kernel. Backward alone cannot be one, since autograd runs it on the
        # stream of its forward pass.
        forward = do_bench_cudagraph(run)
        times = forward, do_bench_cudagraph(both) - forward
        found |= {
            f"{who}_{way}_us": round(time * 1e3, 1) for way, time in zip(("forward", "backward"), times, strict=True)
        }
    return found | {
        f"floor_{w}_us": round(b / speed * 1e6, 1) for w, b in zip(("forward", "backward"), moved, strict=True)
    }
