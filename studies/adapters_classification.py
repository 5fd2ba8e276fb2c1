"""Adapters against full fine-tuning and the paper's baselines, on MRPC, SST-2 and TREC over a small encoder.

    python -m studies.adapters_classification run --data DIR --backbone embedded:minilm --workers 16 --runs runs.jsonl
    python -m studies.adapters_classification report --runs runs.jsonl

`run` may be stopped and called again with the same --runs: what is there is not done again. For every data set and method the
learning rate is chosen on the validation split with the first two seeds, then the chosen one is run with all five; the
weights of the best validation epoch are scored on the test split. `report` writes results/adapters_classification.{json,md,png}.
"""

import argparse
import json
import multiprocessing as mp
import statistics
import tempfile
import time
from pathlib import Path
from queue import Empty
from typing import Any

from benchmarks.results import machine

from intarsia.methods import (
    BitFit,
    BottleneckAdapter,
    FullFineTuning,
    HeadOnly,
    LayerNormTuning,
    LoRA,
    TopLayers,
)
from intarsia.sites import Role

FILES = {
    "mrpc": {
        "train": "mrpc/train.tsv",
        "validation": "mrpc/dev.tsv",
        "test": "mrpc/test.tsv",
        "text": ("sentence1", "sentence2"),
    },
    "sst2": {
        "train": "sst2/train_sentences.tsv",
        "validation": "sst2/dev.tsv",
        "test": "sst2/test.tsv",
        "text": ("sentence",),
    },
    "trec": {"train": "trec/train.tsv", "validation": None, "test": "trec/test.tsv", "text": ("question",)},
}
EPOCHS = {"mrpc": 10, "sst2": 4, "trec": 8}
WEIGHTS, MODULES, SMALL = (3e-5, 1e-4, 2e-4), (5e-4, 1e-3, 2e-3), (2e-3, 5e-3, 1e-2)
METHODS: dict[str, tuple[Any, tuple[float, ...]]] = {
    "full": (FullFineTuning(), WEIGHTS),
    "top-3": (TopLayers(k=3), WEIGHTS),
    "top-2": (TopLayers(k=2), WEIGHTS),
    "top-1": (TopLayers(k=1), (1e-4, 2e-4, 5e-4)),
    "adapter houlsby 48": (BottleneckAdapter(width=48), MODULES),
    "adapter pfeiffer 48": (BottleneckAdapter(width=48, after=(Role.FFN_OUT,)), MODULES),
    "adapter parallel 96": (
        BottleneckAdapter(width=96, after=(Role.FFN_OUT,), parallel=True, scale=4.0, non_linearity="relu", train_layer_norms=False),
        MODULES,
    ),
    "lora r8": (LoRA(rank=8), (1e-3, 2e-3, 4e-3)),
    "adapter houlsby 48, quiet trunk": (BottleneckAdapter(width=48), MODULES),
    "lora r8, quiet trunk": (LoRA(rank=8), (1e-3, 2e-3, 4e-3)),
    "bitfit": (BitFit(), SMALL),
    "layer-norm": (LayerNormTuning(), SMALL),
    "head": (HeadOnly(), (5e-3, 2e-2, 5e-2)),
}  # fmt: skip
WITHOUT_DROPOUT = {"head", "adapter houlsby 48, quiet trunk", "lora r8, quiet trunk"}
"""Trained without dropout inside the frozen trunk; the report says how these came to be."""
SEEDS, GRID_SEEDS = range(5), range(2)
Job = tuple[str, str, float, int]
"""(data, method, learning rate, seed)"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run")
    run.add_argument("--data", type=Path, required=True, help="folder with mrpc/, sst2/ and trec/")
    run.add_argument("--backbone", default="embedded:minilm")
    run.add_argument("--device", default="auto")
    run.add_argument("--workers", type=int, default=2)
    run.add_argument(
        "--runs", type=Path, required=True, help="one json line a finished run; read first, then appended to"
    )
    run.add_argument("--seconds", type=float, default=float("inf"), help="start no job after this")
    run.add_argument("--epochs", type=float, default=1.0, help="share of the full number of epochs, to try the script")
    run.set_defaults(call=run_all)
    report = commands.add_parser("report")
    report.add_argument("--runs", type=Path, required=True)
    report.set_defaults(call=report_all)
    arguments = parser.parse_args()
    arguments.call(arguments)


def report_all(arguments: argparse.Namespace) -> None:
    from studies.adapters_classification_report import write_report

    write_report(arguments.runs)


def todo(done: list[dict[str, Any]]) -> list[Job]:
    """The jobs that can be started now: the whole grid, and the further seeds of what has been chosen."""
    jobs = [
        (d, m, rate, seed) for d in FILES for m, (_, rates) in METHODS.items() for rate in rates for seed in GRID_SEEDS
    ]
    for data in FILES:
        for method in METHODS:
            rate = chosen(done, data, method)
            jobs += [(data, method, rate, seed) for seed in SEEDS if rate is not None]
    finished = {(r["data"], r["method"], r["learning_rate"], r["seed"]) for r in done}
    # Long jobs first, so that none is left over at the end.
    return sorted(set(jobs) - finished, key=lambda job: (job[3], -EPOCHS[job[0]], job))


def chosen(done: list[dict[str, Any]], data: str, method: str) -> float | None:
    """The learning rate with the best mean validation score over the grid's seeds; None while the grid is unfinished."""
    means = {}
    for rate in METHODS[method][1]:
        scores = [
            r["validation"]
            for r in done
            if (r["data"], r["method"], r["learning_rate"]) == (data, method, rate) and r["seed"] in GRID_SEEDS
        ]
        if len(scores) < len(GRID_SEEDS):
            return None
        means[rate] = statistics.mean(scores)
    return max(means, key=lambda rate: means[rate])


def run_all(arguments: argparse.Namespace) -> None:
    done = read(arguments.runs)
    context = mp.get_context("spawn")
    jobs, results = context.Queue(), context.Queue()
    workers = [
        context.Process(target=work, args=(jobs, results, arguments), daemon=True) for _ in range(arguments.workers)
    ]
    for worker in workers:
        worker.start()
    about, start, waiting = machine(), time.monotonic(), set()
    while True:
        for job in todo(done):
            if len(waiting) >= arguments.workers or time.monotonic() - start > arguments.seconds:
                break
            if job not in waiting:
                waiting.add(job)
                jobs.put(job)
        if not waiting:
            break
        try:
            result = results.get(timeout=5)
        except Empty:
            if not any(worker.is_alive() for worker in workers):
                raise SystemExit("every worker has died; see its message above") from None
            continue
        waiting.discard((result["data"], result["method"], result["learning_rate"], result["seed"]))
        done.append(result)
        with arguments.runs.open("a") as file:
            file.write(json.dumps({**result, "about": about}) + "\n")
        left = time.monotonic() - start
        print(f"{left:6.0f} s  {len(done):4d} done  {result['data']} {result['method']} {result['learning_rate']:g} "
              f"seed {result['seed']}: test {result['test']:.4f}, {result['minutes']:.2f} min", flush=True)  # fmt: skip
    for _ in workers:
        jobs.put(None)


def work(jobs: Any, results: Any, arguments: argparse.Namespace) -> None:
    """One process: the backbone and the tokenised data once, then job after job."""
    import torch

    from intarsia.backbone import Backbone

    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    backbone = Backbone.load(arguments.backbone, dtype="float32", device=arguments.device)
    loaded = {name: load(name, arguments.data, backbone) for name in FILES}
    while (job := jobs.get()) is not None:
        results.put(one(job, backbone, *loaded[job[0]], arguments.epochs))


def load(name: str, folder: Path, backbone: Any) -> tuple[Any, dict[str, Any]]:
    """Splits, and each of them tokenised."""
    from intarsia.data import DataSpec, encode, load_data

    where = FILES[name]
    files = {split: folder / where[split] for split in ("train", "validation", "test") if where[split]}
    splits = load_data(DataSpec(**files, text_columns=where["text"], label_column="label"))
    encoded = {
        s: encode(splits.split(s), backbone.tokenizer, 128, splits.kind) for s in ("train", "validation", "test")
    }
    return splits, encoded


def one(job: Job, backbone: Any, splits: Any, encoded: dict[str, Any], share: float) -> dict[str, Any]:
    """Trains and scores one job."""
    from intarsia.bank import TaskBank
    from intarsia.data import EncodedSource
    from intarsia.heads import Head
    from intarsia.task import Task
    from intarsia.training import TrainSettings, evaluate, fit

    data, method, rate, seed = job
    pad = backbone.tokenizer.pad_token_id
    sources = {
        split: EncodedSource(e, 32, pad_id=pad, seed=seed if split == "train" else None) for split, e in encoded.items()
    }
    head = Head(kind=splits.kind, labels=splits.labels, pooling="mean")
    task = Task.new("study", backbone, METHODS[method][0], head, seed=seed)
    bank = TaskBank(backbone, [task])
    settings = TrainSettings(
        epochs=max(1, round(EPOCHS[data] * share)),
        learning_rate=rate,
        batch_size=32,
        seed=seed,
        metric="accuracy",
        checkpoint_every=10**6,
        backbone_dropout=method not in WITHOUT_DROPOUT,
    )
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        result = fit(bank, task, sources["train"], sources["validation"], settings, Path(out) / "run")
    minutes = (time.perf_counter() - start) / 60
    test = evaluate(bank, task, sources["test"]).metrics
    bank.detach()
    return {
        "data": data,
        "method": method,
        "learning_rate": rate,
        "seed": seed,
        "validation": result.best,
        "test": test["accuracy"],
        "test_f1": test.get("f1"),
        "trained": task.trained_parameters(),
        "share": task.trained_parameters() / backbone.parameter_count(),
        "minutes": minutes,
    }


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


if __name__ == "__main__":
    main()
