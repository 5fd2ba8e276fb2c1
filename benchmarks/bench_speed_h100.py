"""Training speed on one GPU: one task and packs of tasks beside peft and adapters, and beside the frozen trunk's own floor.

    python -m benchmarks.bench_speed_h100 --out speed.jsonl            # every job below, each in a process of its own
    python -m benchmarks.bench_speed_h100 --job ours:bert-base:adapter:8:graph
    python -m benchmarks.speed_h100_report speed.jsonl --about machine.json    # results/speed_h100.{json,md}

Backbones have the named shape and random weights (speed does not depend on the values). Rows have the lengths of MRPC's training
pairs (mean 53, sd 12.7, 19 to 103 tokens). Tokens are real ones: padding and unused columns count for nothing.

    ours:SHAPE:METHOD:MEMBERS:PATH   our stepper; PATH is plain (padded), graph (packed), or first: packed, with a head that
                                     reads the first token, as the peers' heads do (ours reads the mean of all, by default)
    floor:SHAPE:TOKENS:PATH          the frozen trunk alone on packed rows, forward and backward to the embeddings; PATH is
                                     graph, or compiled (and then a graph), or torch: a graph with torch's
                                     own varlen_attn instead of our kernel
    peft:SHAPE:METHOD:PATH           peft in a plain loop, bf16 autocast; PATH is shuffled, or by-length
    adapters:SHAPE:METHOD:PATH       the adapters library likewise (needs transformers 4.57)
    where:SHAPE:METHOD:MEMBERS       what the milliseconds of such a step go into, by sorts of kernels (torch's profiler)
    kernel:NAME                      a kernel on the states of a pack of 8, microseconds, beside plain torch (segments: beside
                                     torch's varlen_attn) and beside its floor: the bytes that it must move at a copy's speed;
                                     and those without gradients, as speed_h100_more_kernels says
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import speed_h100_more_kernels as more_kernels
from benchmarks.speed_h100_kernels import kernel
from benchmarks.speed_h100_parts import ROWS, lengths, model, source, timed
from benchmarks.speed_h100_peers import adapters, peft

JOBS = [
    *(f"ours:bert-base:{m}:1:graph" for m in ("adapter", "lora", "prefix", "prompt")),
    *(f"ours:bert-base:{m}:1:first" for m in ("adapter", "lora", "prefix", "prompt")),
    *(
        f"ours:bert-base:{m}:{k}:{path}"
        for m, k in (("adapter", 8), ("adapter", 32), ("lora", 8))
        for path in ("graph", "first")
    ),
    *(f"floor:bert-base:{tokens}:graph" for tokens in (1728, 13600, 16384)),
    "floor:bert-base:16384:compiled",
    "floor:bert-base:16384:torch",
    *(f"peft:bert-base:{m}:by-length" for m in ("lora", "prefix", "prompt", "ptuning")),
    *(f"adapters:bert-base:{m}:by-length" for m in ("adapter", "prefix")),
    *(
        f"{who}:{shape}:lora:{more}"
        for shape in ("gpt2-medium", "llama-1b")
        for who, more in (("ours", "1:graph"), ("peft", "by-length"))
    ),
    *(f"where:bert-base:adapter:{members}" for members in (1, 8)),
    *(f"kernel:{name}" for name in ("segments", "norm", "bottleneck", "rotary", *more_kernels.NAMES)),
]
PARTS = {
    "attention": ("segments_",),
    "adapters with their norms": ("adapted_norm",),
    "bottlenecks": ("bottleneck_",),
    "trained norms": ("norm_forward", "norm_backward"),
    "frozen norms": ("layer_norm", "rms_norm"),
    "optimizer": ("adamw_",),
    "matrix products": ("nvjet", "gemm", "cutlass"),
    "gelu": ("Gelu",),
    "additions": ("CUDAFunctor_add<c10::BFloat16",),
    "sums over rows": ("reduce_kernel", "column_sums"),
}
"""What a kernel's name has in it, the first that fits."""


# -- ours --------------------------------------------------------------------------------------------------------------


def method_of(name: str) -> Any:
    """Of about the same size as the peers': Houlsby adapters of width 48, rank 8, 20 virtual tokens."""
    from intarsia.methods import BottleneckAdapter, FullFineTuning, LoRA, PrefixTuning, PromptTuning

    return {
        "full": FullFineTuning(),
        "adapter": BottleneckAdapter(width=48),
        "lora": LoRA(rank=8),
        "prefix": PrefixTuning(length=20, mid=None),
        "prompt": PromptTuning(length=20, init="uniform"),
    }[name]


def ours(shape: str, method: str, members: str, path: str, seconds: float, profile: Path | None) -> dict[str, Any]:
    """Steps of the product's own steppers, as `fit_pack` takes them. PATH where: their parts instead of their speed."""
    import tempfile

    import torch

    from intarsia.backbone import Backbone
    from intarsia.bank import TaskBank
    from intarsia.heads import Head
    from intarsia.task import Task
    from intarsia.training import Entry, TrainSettings, loop
    from intarsia.training.packed.stepper import PackedStepper
    from intarsia.training.steppers import PlainStepper

    began = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone = Backbone.wrap(model(shape).to(device=device, dtype=torch.bfloat16))
    pooling: Any = "cls" if path == "first" else "auto"
    head = Head(kind="generation") if backbone.kind == "decoder" else Head(labels=("0", "1"), pooling=pooling)
    tasks = [Task.new(f"t{i}", backbone, method_of(method), head, seed=i) for i in range(int(members))]
    bank = TaskBank(backbone, tasks)
    arrangement = "like" if path == "plain" else "balanced"
    folder = Path(tempfile.mkdtemp())
    settings = TrainSettings(epochs=1000, backbone_dropout=False, batch_size=ROWS[shape], learning_rate=1e-4)
    entries = [
        Entry(
            task=task, train=source(shape, i, arrangement), validation=None, settings=settings, out=folder / task.name
        )
        for i, task in enumerate(tasks)
    ]
    opened = [loop._opened(bank, entry, None, ExitStack(), resume=False) for entry in entries]
    steppers = (
        [PlainStepper(member) for member in opened]  # type: ignore[arg-type]
        if path == "plain"
        else [PackedStepper(opened)]  # type: ignore[arg-type]
    )

    def step() -> int:
        before = sum(member.state.tokens for member in opened)  # type: ignore[union-attr]
        for stepper in steppers:
            stepper.step()
        return sum(member.state.tokens for member in opened) - before  # type: ignore[union-attr]

    step()
    if path == "where":
        return parts_of(step)
    ready = time.perf_counter() - began
    found = timed(step, seconds) | {"ready_seconds": round(ready, 1)}
    if path != "plain":
        found["columns"] = steppers[0].layout.shape.columns  # type: ignore[union-attr]
    if profile is not None:
        table = profiled(step).table(sort_by="cuda_time_total", row_limit=45, max_name_column_width=90)
        profile.write_text(table)
    return found


def floor(shape: str, tokens: str, path: str, seconds: float) -> dict[str, Any]:
    """What nobody can beat who runs this trunk: its forward pass and the backward pass to its input, over packed rows."""
    import torch

    from intarsia.backbone import Backbone
    from intarsia.backbone.packed import Segments, packed
    from intarsia.ops.kernels import segments as kernels

    if path == "torch":
        kernels.LONGEST = 0
    backbone = Backbone.wrap(model(shape).to(device="cuda", dtype=torch.bfloat16))
    sizes = lengths(2 * int(tokens) // 53, 0)
    sizes = sizes[: int(np.searchsorted(np.cumsum(sizes), int(tokens)))]
    starts = torch.tensor(np.concatenate([[0], np.cumsum(sizes)]), dtype=torch.int32, device="cuda")
    total = int(sizes.sum())
    positions = torch.tensor(np.concatenate([np.arange(n) for n in sizes]), device="cuda")[None]
    hidden = backbone.base.get_input_embeddings().weight.shape[1]
    entry = torch.randn(1, total, hidden, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    mask = torch.ones(1, total, dtype=torch.int64, device="cuda")

    def forward(entry: Any) -> Any:
        more = {"use_cache": False} if backbone.kind == "decoder" else {}
        states = backbone.base(
            inputs_embeds=entry, position_ids=positions, attention_mask=mask, **more
        ).last_hidden_state
        return states.float().square().mean()

    run: Callable[[Any], Any] = torch.compile(forward, dynamic=False) if path == "compiled" else forward
    with packed(backbone, Segments(starts, 103, starts, 103)):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                torch.autograd.grad(run(entry), entry)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            torch.autograd.grad(run(entry), entry)

    def step() -> int:
        graph.replay()
        return total

    return timed(step, seconds)


# -- measuring ---------------------------------------------------------------------------------------------------------


def profiled(step: Callable[[], int], steps: int = 3) -> Any:
    """Where the device's time goes, kernel by kernel."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    for _ in range(2):
        step()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    return seen.key_averages()


def parts_of(step: Callable[[], int], steps: int = 3) -> dict[str, Any]:
    """Milliseconds of the device a step, by PARTS."""
    found = dict.fromkeys([*PARTS, "else"], 0.0)
    for event in profiled(step, steps):
        part = next((part for part, words in PARTS.items() if any(word in event.key for word in words)), "else")
        found[part] += event.self_device_time_total / steps / 1e3
    return {name: round(value, 3) for name, value in found.items()} | {"whole": round(sum(found.values()), 3)}


def measure(job: str, seconds: float, profile: Path | None) -> dict[str, Any]:
    """One job, in this process."""
    who, *what = job.split(":")
    if who == "ours":
        return ours(*what, seconds, profile)  # type: ignore[arg-type]
    if who == "where":
        return ours(*what, "where", seconds, None)  # type: ignore[arg-type]
    if who == "kernel" and what[0] in more_kernels.NAMES:
        return more_kernels.kernel(what[0])
    return {"floor": floor, "peft": peft, "adapters": adapters, "kernel": kernel}[who](*what, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", nargs="*", default=JOBS)
    parser.add_argument("--job", help="one, in this process")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--limit", type=float, default=150.0, help="seconds after which a job is given up")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--profile", type=Path)
    arguments = parser.parse_args()
    if arguments.job:
        found = measure(arguments.job, arguments.seconds, arguments.profile)
        print("RESULT " + json.dumps(found), flush=True)
        return
    from intarsia.training.record import commit

    for job in arguments.jobs:
        command = [
            sys.executable,
            "-m",
            "benchmarks.bench_speed_h100",
            "--job",
            job,
            "--seconds",
            str(arguments.seconds),
        ]
        begun = time.perf_counter()
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=arguments.limit, env=os.environ)
            line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
            found = json.loads(line[7:]) if line else {"failed": (done.stderr.strip().splitlines() or ["?"])[-1][:300]}
        except subprocess.TimeoutExpired:
            found = {"failed": "took too long"}
        row = {"job": job, **found, "commit": os.environ.get("INTARSIA_COMMIT") or commit()}
        print(f"{time.perf_counter() - begun:5.0f} s  {json.dumps(row)}", flush=True)
        if arguments.out:
            with arguments.out.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
