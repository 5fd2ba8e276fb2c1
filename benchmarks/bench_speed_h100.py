"""Training speed on one GPU: one task and packs of tasks beside peft and adapters, and beside the frozen trunk's own floor.

    python -m benchmarks.bench_speed_h100 --out speed.jsonl            # every job below, each in a process of its own
    python -m benchmarks.bench_speed_h100 --job ours:bert-base:adapter:8:compiled
    python -m benchmarks.speed_h100_report speed.jsonl --about machine.json    # results/speed_h100.{json,md}

Backbones have the named shape and random weights (speed does not depend on the values). Rows have the lengths of MRPC's training
pairs (mean 53, sd 12.7, 19 to 103 tokens). Tokens are real ones: padding and unused columns count for nothing.

    ours:SHAPE:METHOD:MEMBERS:PATH   our stepper; PATH is plain (padded) or graph (packed)
    floor:SHAPE:TOKENS:PATH          the frozen trunk alone on packed rows, forward and backward to the embeddings; PATH is
                                     graph, or compiled (and then a graph)
    peft:SHAPE:METHOD:PATH           peft in a plain loop, bf16 autocast; PATH is shuffled, or by-length
    adapters:SHAPE:METHOD:PATH       the adapters library likewise (needs transformers 4.57)
    kernel:NAME                      a kernel on the states of a pack of 8, microseconds, beside plain torch (segments: beside
                                     torch's varlen_attn) and beside its floor: the bytes that it must move at a copy's speed
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
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
JOBS = [
    *(f"ours:bert-base:{m}:1:graph" for m in ("adapter", "lora", "prefix", "prompt")),
    *(f"ours:bert-base:{m}:{k}:graph" for m, k in (("adapter", 8), ("adapter", 32), ("lora", 8))),
    *(f"floor:bert-base:{tokens}:graph" for tokens in (1728, 16384)),
    "floor:bert-base:16384:compiled",
    *(f"peft:bert-base:{m}:by-length" for m in ("lora", "prefix", "prompt", "ptuning")),
    *(f"adapters:bert-base:{m}:by-length" for m in ("adapter", "prefix")),
    *(
        f"{who}:{shape}:lora:{more}"
        for shape in ("gpt2-medium", "llama-1b")
        for who, more in (("ours", "1:graph"), ("peft", "by-length"))
    ),
    *(f"kernel:{name}" for name in ("segments", "norm", "bottleneck")),
]


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


def ours(shape: str, method: str, members: str, path: str, seconds: float, profile: Path | None) -> dict[str, Any]:
    """Steps of the product's own steppers, as `fit_pack` takes them."""
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
    head = Head(kind="generation") if backbone.kind == "decoder" else Head(labels=("0", "1"))
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
    opened = [loop._opened(bank, entry, None, resume=False) for entry in entries]
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
    ready = time.perf_counter() - began
    found = timed(step, seconds) | {"ready_seconds": round(ready, 1)}
    if path != "plain":
        found["columns"] = steppers[0].layout.shape.columns  # type: ignore[union-attr]
    if profile is not None:
        profile.write_text(profiled(step))
    return found


def floor(shape: str, tokens: str, path: str, seconds: float) -> dict[str, Any]:
    """What nobody can beat who runs this trunk: its forward pass and the backward pass to its input, over packed rows."""
    import torch

    from intarsia.backbone import Backbone
    from intarsia.backbone.packed import Segments, packed

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


def kernel(name: str, seconds: float) -> dict[str, Any]:
    """Each of `segments`, `norm`, `bottleneck`, in bf16, 8 tasks x 1,792 rows of 768."""
    import torch
    from triton.testing import do_bench, do_bench_cudagraph

    from intarsia import ops
    from intarsia.ops import reference
    from intarsia.ops.fast import adapted, norm_change

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

        moved = (4 * states, 8 * states)
    elif name == "norm":
        inputs = [fresh(tasks, rows, width), fresh(tasks, rows, width), fresh(tasks, width), fresh(tasks, width)]

        def ours() -> Any:
            return norm_change(*inputs, 1e-12, centre=True)

        def plain() -> Any:
            return reference.norm_change(*inputs, 1e-12, centre=True)

        moved = (3 * states, 3 * states)
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
        grad = torch.randn_like(run())

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


# -- the peers ---------------------------------------------------------------------------------------------------------


def batches(shape: str, path: str) -> list[dict[str, Any]]:
    """Padded batches; by-length: rows of like length together, within chunks of 50 batches, as Trainer's group_by_length."""
    import torch

    made = source(shape, 0, "like" if path == "by-length" else "shuffled")
    causal, found = shape in DECODERS, []
    for key in made.plan(0):
        batch, labels = made.load(key)
        tensors = {name: tensor.pin_memory() for name, tensor in batch.items()}
        tensors["labels"] = labels if causal else torch.as_tensor(labels)
        found.append((tensors, made.tokens(key)))
    return found


def loop_of(network: Any, shape: str, path: str, seconds: float) -> dict[str, Any]:
    """A plain training loop: bf16 autocast, fused AdamW, clipping, as Trainer does it."""
    import torch

    network = network.cuda().train()
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    made, turn = batches(shape, path), 0

    def step() -> int:
        nonlocal turn
        batch, tokens = made[turn % len(made)]
        turn += 1
        moved = {name: tensor.cuda(non_blocking=True) for name, tensor in batch.items()}
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = network(**moved).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return tokens

    return timed(step, seconds) | {"trained": sum(p.numel() for p in trained)}


def peft(shape: str, method: str, path: str, seconds: float) -> dict[str, Any]:
    """Of the same sizes as ours."""
    from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model

    kind: Any = {"task_type": "CAUSAL_LM" if shape in DECODERS else "SEQ_CLS"}
    names = {
        "bert-base": ["query", "value"],
        "tiny": ["query", "value"],
        "gpt2-medium": ["c_attn"],
        "smollm2": ["q_proj", "v_proj"],
        "llama-1b": ["q_proj", "v_proj"],
    }
    config = {
        "lora": lambda: LoraConfig(r=8, lora_alpha=16, target_modules=names[shape], **kind),
        "prefix": lambda: PrefixTuningConfig(num_virtual_tokens=20, **kind),
        "prompt": lambda: PromptTuningConfig(num_virtual_tokens=20, **kind),
        "ptuning": lambda: PromptEncoderConfig(num_virtual_tokens=20, encoder_hidden_size=128, **kind),
    }[method]()
    return loop_of(get_peft_model(model(shape, head=True), config), shape, path, seconds)


def adapters(shape: str, method: str, path: str, seconds: float) -> dict[str, Any]:
    """The library of that name; its models are transformers' own, changed in place."""
    import adapters as library  # type: ignore[import-not-found]

    network = model(shape, head=True)
    library.init(network)
    config = {
        "adapter": lambda: library.DoubleSeqBnConfig(reduction_factor=16),
        "prefix": lambda: library.PrefixTuningConfig(prefix_length=20, flat=True),
        "lora": lambda: library.LoRAConfig(r=8, alpha=16),
    }[method]()
    network.add_adapter("task", config=config)
    network.train_adapter("task")
    return loop_of(network, shape, path, seconds)


# -- measuring ---------------------------------------------------------------------------------------------------------


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


def profiled(step: Callable[[], int]) -> str:
    """Where the device's time goes, kernel by kernel."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        for _ in range(3):
            step()
        torch.cuda.synchronize()
    return seen.key_averages().table(sort_by="cuda_time_total", row_limit=45, max_name_column_width=90)


def measure(job: str, seconds: float, profile: Path | None) -> dict[str, Any]:
    """One job, in this process."""
    who, *what = job.split(":")
    if who == "ours":
        return ours(*what, seconds, profile)  # type: ignore[arg-type]
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
