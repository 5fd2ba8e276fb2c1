"""A comparison of 32 runs on one GPU: one pack of ours, and the same runs one after the other with Trainer and peft.

    python -m benchmarks.bench_compare_h100 ours  --data data/mrpc --out compare.jsonl
    python -m benchmarks.bench_compare_h100 peers --data data/mrpc --out compare.jsonl --seconds 100
    python -m benchmarks.bench_compare_h100 report compare.jsonl     # results/compare_h100.{json,md}

A run is a method at a learning rate with a seed: 4 x 4 x 2 of them, over MiniLM, on MRPC, each with 10 % warm-up and linear decay,
32 rows a step, a validation score after every epoch, and a score on the test split at its end. Both sides read the same token ids,
start from the same bf16 weights, and have the same head (on the pretrained pooler, dropout 0.1, at most 5e-3) and no dropout
inside the backbone. Ours also keep the best epoch's weights, write checkpoints and leave a task folder for each run; the peers
save nothing and are scored as they end.

`peers` times whole runs, one of each method and then others as long as time remains; what all 32 take is reckoned from these.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import machine, write_results

RATES = {
    "lora": (1e-3, 2e-3, 4e-3, 5e-4),
    "prefix": (3e-2, 1e-2, 3e-3, 1e-1),
    "prompt": (2e-2, 5e-2, 1e-2, 2e-1),
    "ptuning": (4e-3, 2e-3, 1e-3, 1e-2),
    "adapter": (1e-3, 5e-4, 2e-3, 4e-3),
}
SIZES = {"lora": 8, "prefix": 20, "prompt": 20, "ptuning": 20, "adapter": 48}
SEEDS = (1, 2)
PACKS = {
    "peft's methods": ("lora", "prefix", "prompt", "ptuning"),
    "with adapters": ("lora", "prefix", "prompt", "adapter"),
}
BATCH, HEAD_RATE, WARMUP = 32, 5e-3, 0.1
SCORED = 128
"""Rows of a peer's batch when it is scored."""
TEXT = """
32 runs over MiniLM on MRPC: 4 methods x 4 learning rates x 2 seeds, {epochs} epochs each, scored on validation after every epoch
and on the test split at the end. `ours`: one call of `run_pack`, whole: the backbone is loaded, texts are tokenised, a CUDA graph
is captured and 32 task folders are written within these seconds. `peft`: Trainer, bf16 autocast, fused AdamW, batches by length,
nothing saved or logged; tokenising is not counted. Neither side counts a short run before the first (a pack of four for ours), in
which libraries are imported and kernels compiled; nor do the peers' first runs of each method count, which took up to three
times as long. `measured`: runs that were timed whole;
`seconds` of all are reckoned from them (the mean of each method; of all methods where one was not reached). `ratio`: the peers'
seconds over ours. `test`: mean accuracy of those runs that both sides have done; `best`: of ours, the one that is best on
validation. Both sides ran on one H100, one after the other, with nothing else on it; its host is shared.
peft has no bottleneck adapters.

Seconds of the pack, by what they went into (validation waits for the steps that were sent off before it): {phases}.
"""


# -- ours --------------------------------------------------------------------------------------------------------------


def runs_of(
    data: Path, methods: Sequence[str], out: Path, epochs: int = 1, device: str = "auto", steps: int | None = None
) -> list[tuple[dict[str, Any], Any]]:
    """What each run is, and its settings, as a comparison makes them from its candidates. steps: of each; None: whole runs."""
    from intarsia.data import load_data
    from intarsia.workflow.compare import resolve
    from intarsia.workflow.compare.expansion import expand, member, slug

    flags = {
        "backbone": "embedded:minilm",
        "data.train": data / "train.tsv",
        "data.validation": data / "dev.tsv",
        "data.test": data / "test.tsv",
        "data.text_columns": "sentence1,sentence2",
        "data.label_column": "label",
        "head.pooling": "pooler",
        "methods": {name: {"sizes": [SIZES[name]], "learning_rates": RATES[name]} for name in methods},
        "train.batch_size": BATCH,
        "train.epochs": epochs,
        "dtype": "bfloat16",
        "device": device,
        "out": out,
    }
    settings, found = resolve(None, flags), []
    rows = len(load_data(settings.base.data.spec()).split("train"))
    for one in expand(settings, "classification", rows):
        for seed in SEEDS:
            facts = {"method": one.family, "rate": one.learning_rate, "seed": seed}
            folder = out / slug(f"{one.name} seed {seed}")
            run = member(settings, one, folder=folder, seed=seed, steps=steps or one.steps, evaluations=epochs)
            found.append((facts, run))
    return found


class Clock:
    """Tells what the seconds of a pack went into, from what its runs report."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}
        self._mark, self._stepped = time.perf_counter(), False

    def member(self, name: str) -> "Clock":
        return self

    def say(self, line: str) -> None:
        if "plain path" in line or "do not fit" in line:
            print(line, flush=True)

    def start(self, total: int, done: int) -> None:
        self._lap("opening")

    def advance(self, step: int) -> None:
        self._lap("steps" if self._stepped else "first step")
        self._stepped = True

    def log(self, step: int, loss: float, tokens_per_second: float) -> None:
        self._lap("steps")

    def evaluated(self, step: int, metrics: dict[str, float], metric: str, best: bool) -> None:
        self._lap("validation")

    def stop(self) -> None:
        """A run's end lies between two of these: its folder, its picture, its test score."""
        self._lap("ends and test")

    def _lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.phases[phase] = self.phases.get(phase, 0.0) + now - self._mark
        self._mark = now


def ours(arguments: argparse.Namespace) -> None:
    import torch

    from intarsia.workflow.pack import run_pack
    from intarsia.workflow.training import Trained

    for pack in arguments.packs:
        with tempfile.TemporaryDirectory() as folder:  # as the peers have a short run that is not counted
            warm = runs_of(arguments.data, PACKS[pack], Path(folder), 1, arguments.device, steps=2)
            run_pack([run for _, run in warm[::8]], score_test=True)
        with tempfile.TemporaryDirectory() as folder:
            made = runs_of(arguments.data, PACKS[pack], Path(folder), arguments.epochs, arguments.device)
            made = made[: arguments.members]
            begun, clock = time.perf_counter(), Clock()
            results = run_pack([run for _, run in made], score_test=True, report=clock)
            seconds = time.perf_counter() - begun
            clock.stop()
            for (facts, _), result in zip(made, results, strict=True):
                done = isinstance(result, Trained)
                scores = {split: found["accuracy"] for split, found in result.metrics.items()} if done else {}
                write(
                    arguments.out,
                    {"who": "ours", "pack": pack, **facts, **scores, "parameters": done and result.parameters},
                )
            peak = round(torch.cuda.max_memory_allocated() / 1e9, 2) if torch.cuda.is_available() else None
            failed = [result.message for result in results if not isinstance(result, Trained)]
        phases = {name: round(value, 1) for name, value in clock.phases.items()}
        found = {
            "about": machine(),
            "members": len(made),
            "seconds": round(seconds, 2),
            "phases": phases,
            "peak_gb": peak,
            "failed": failed,
        }
        write(arguments.out, {"who": "ours", "pack": pack, "epochs": arguments.epochs, **found})


# -- the peers ---------------------------------------------------------------------------------------------------------


Row = dict[str, Any]


def collated(rows: Sequence[Row]) -> dict[str, Any]:
    """A padded batch, in some tenths of a millisecond: the peers do not wait for their data."""
    import torch

    from intarsia.data.batching import pad

    ids, mask = pad([row["input_ids"] for row in rows], 0)
    types, _ = pad([row["types"] for row in rows], 0)
    labels = torch.tensor([row["label"] for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "labels": labels}


def split_rows(data: Path, folder: Path) -> dict[str, list[Row]]:
    """The token ids that ours are trained on."""
    from transformers import AutoTokenizer

    from intarsia.data import encode, load_data

    spec = runs_of(data, ("lora",), Path("unused"))[0][1].data.spec()
    splits, tokenizer = load_data(spec), AutoTokenizer.from_pretrained(folder)

    def rows(name: str) -> list[Row]:
        found = encode(splits.split(name), tokenizer, 512, "classification")
        spans = [slice(*found.offsets[row : row + 2]) for row in range(len(found))]
        labels = found.labels.tolist()
        return [
            {"input_ids": found.ids[s], "types": found.type_ids[s], "label": y}
            for s, y in zip(spans, labels, strict=True)
        ]

    return {name: rows(name) for name in ("train", "validation", "test")}


def peft_model(method: str, folder: Path) -> Any:
    """Trained numbers in fp32 over a bf16 backbone, as peft does it by default for its own."""
    import torch
    from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=2, dtype=torch.bfloat16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        classifier_dropout=0.1,
    )  # fmt: skip
    size, kind = SIZES[method], "SEQ_CLS"
    config = {
        "lora": lambda: LoraConfig(task_type=kind, r=size, lora_alpha=16, target_modules=["query", "value"]),
        "prefix": lambda: PrefixTuningConfig(task_type=kind, num_virtual_tokens=size),
        "prompt": lambda: PromptTuningConfig(task_type=kind, num_virtual_tokens=size),
        "ptuning": lambda: PromptEncoderConfig(
            task_type=kind, num_virtual_tokens=size, encoder_hidden_size=model.config.hidden_size
        ),
    }[method]()
    wrapped = get_peft_model(model, config)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return wrapped


def peer(
    arguments: argparse.Namespace, folder: Path, splits: dict[str, list[Row]], method: str, rate: float, seed: int
) -> dict[str, Any]:
    """One whole run: its seconds and scores."""
    import torch
    from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

    cuda = torch.cuda.is_available()
    begun = time.perf_counter()
    set_seed(seed)
    model = peft_model(method, folder)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    head = [p for name, p in trained.items() if "classifier" in name]
    rest = [p for name, p in trained.items() if "classifier" not in name]
    groups = [{"params": rest, "lr": rate}, {"params": head, "lr": min(rate, HEAD_RATE)}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01, fused=cuda)
    with tempfile.TemporaryDirectory() as out:
        settings = TrainingArguments(
            output_dir=out, num_train_epochs=arguments.epochs, per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=SCORED, learning_rate=rate, warmup_steps=WARMUP, lr_scheduler_type="linear",
            max_grad_norm=1.0, bf16=True, train_sampling_strategy="group_by_length", eval_strategy="epoch",
            save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True, remove_unused_columns=False,
            label_names=["labels"], seed=seed, use_cpu=not cuda,
        )  # fmt: skip
        trainer = Trainer(
            model=model, args=settings, train_dataset=splits["train"], eval_dataset=splits["validation"],
            data_collator=collated, compute_metrics=accuracy, optimizers=(optimizer, None),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        test = trainer.evaluate(splits["test"], metric_key_prefix="test")["test_accuracy"]
    seconds = time.perf_counter() - begun
    validation = [line["eval_accuracy"] for line in trainer.state.log_history if "eval_accuracy" in line][-1]
    count = sum(p.numel() for p in trained.values())
    return {"seconds": round(seconds, 2), "validation": validation, "test": test, "parameters": count}


def accuracy(predicted: Any) -> dict[str, float]:
    """Of the class scores."""
    logits = predicted.predictions[0] if isinstance(predicted.predictions, tuple) else predicted.predictions
    return {"accuracy": float((logits.argmax(-1) == predicted.label_ids).mean())}


def peers(arguments: argparse.Namespace) -> None:
    """One run of each method, then further ones as long as there is time for them; those in --out are not done again."""
    from transformers.utils import logging

    from intarsia.backbone.embedded import embedded_folder

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder, begun = embedded_folder("minilm"), time.perf_counter()
    splits, methods = split_rows(arguments.data, folder), PACKS["peft's methods"]
    short = {name: rows[: 4 * BATCH] for name, rows in splits.items()}
    peer(argparse.Namespace(epochs=1), folder, short, "lora", 1e-3, 0)  # what a process does once
    done = [line for line in read([arguments.out]) if line["who"] == "peft"]
    longest = max((line["seconds"] for line in done), default=0.0)
    for seed in SEEDS:
        for rate in range(len(RATES["lora"])):
            for method in methods:
                facts = {"method": method, "rate": RATES[method][rate], "seed": seed}
                if any(facts.items() <= line.items() for line in done):
                    continue
                if time.perf_counter() - begun + longest > arguments.seconds:
                    return
                found = peer(arguments, folder, splits, **facts)
                longest = max(longest, found["seconds"])
                write(arguments.out, {"who": "peft", "epochs": arguments.epochs, **facts, **found})


# -- the page ----------------------------------------------------------------------------------------------------------


def report(arguments: argparse.Namespace) -> None:
    """From what the other two wrote."""
    lines = read(arguments.files)
    theirs, rows, phases = _warm([line for line in lines if line["who"] == "peft"]), [], []
    for pack, methods in PACKS.items():
        whole = next((line for line in lines if line.get("pack") == pack and "phases" in line), None)
        if whole is None:
            continue
        mine = [line for line in lines if line.get("pack") == pack and "method" in line]
        each, there = whole["members"] // len(methods), [m for m in methods if m in PACKS["peft's methods"]]
        measured = {m: [line for line in theirs if line["method"] == m] for m in there}
        mean = statistics.fmean(line["seconds"] for line in theirs)
        seconds = {m: each * (_mean([line["seconds"] for line in measured[m]]) or mean) for m in there}
        same = [(a, b) for a in mine for b in theirs if all(a[key] == b[key] for key in ("method", "rate", "seed"))]
        rows.append(
            {
                "runs": f"ours, one pack: {', '.join(methods)}", "members": whole["members"],
                "measured": whole["members"], "seconds": whole["seconds"], "extrapolated": "no",
                "ratio": round(sum(seconds.values()) / whole["seconds"], 1), "test": _mean([a["test"] for a, _ in same]),
                "best": max(mine, key=lambda line: line.get("validation", 0.0)).get("test"), "peak GB": whole["peak_gb"],
            }
        )  # fmt: skip
        rows.append(
            _peer_row(f"peft: {', '.join(there)}", each * len(there), [b for _, b in same], sum(seconds.values()))
        )
        phases.append(f"{pack}: " + ", ".join(f"{name} {value:.1f}" for name, value in whole["phases"].items()))
    rows += [_peer_row(f"peft, one run: {m}", 1, [line for line in theirs if line["method"] == m], None) for m in RATES]
    about, epochs = next((line["about"], line["epochs"]) for line in lines if "about" in line)
    text = TEXT.format(epochs=epochs, phases="; ".join(phases))
    rows = [row for row in rows if row["measured"]]
    write_results("compare_h100", "A comparison of 32 runs, beside Trainer and peft", rows, text=text, about=about)


def _warm(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the first run of each method, where there is another: it may take three times as long."""
    seen: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        seen.setdefault(line["method"], []).append(line)
    return [line for own in seen.values() for line in own[1:] or own]


def _peer_row(what: str, members: int, measured: Sequence[dict[str, Any]], seconds: float | None) -> dict[str, Any]:
    mean = _mean([line["seconds"] for line in measured])
    return {
        "runs": what, "members": members, "measured": len(measured), "seconds": round(seconds or mean or 0.0, 2),
        "extrapolated": "yes" if len(measured) < members else "no", "test": _mean([line["test"] for line in measured]),
    }  # fmt: skip


def _mean(values: Sequence[float]) -> float | None:
    return round(statistics.fmean(values), 4) if values else None


def read(files: Sequence[Path]) -> list[dict[str, Any]]:
    """The lines of all that are there."""
    return [json.loads(line) for path in files if path.exists() for line in path.read_text().splitlines()]


def write(out: Path, line: dict[str, Any]) -> None:
    """One more line of the file, and to be seen."""
    print(json.dumps(line), flush=True)
    with out.open("a") as file:
        file.write(json.dumps(line) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for name, call in (("ours", ours), ("peers", peers)):
        part = commands.add_parser(name)
        part.add_argument("--data", type=Path, required=True, help="a folder with train.tsv, dev.tsv, test.tsv")
        part.add_argument("--epochs", type=int, default=2)
        part.add_argument("--out", type=Path, required=True)
        part.add_argument("--device", default="auto")
        part.set_defaults(call=call)
        if name == "ours":
            part.add_argument("--packs", nargs="+", choices=PACKS, default=list(PACKS))
            part.add_argument("--members", type=int, default=32, help="the first of them, to try it")
        else:
            part.add_argument("--seconds", type=float, default=100.0, help="no run begins that would end later")
    part = commands.add_parser("report")
    part.add_argument("files", type=Path, nargs="+")
    part.set_defaults(call=report)
    arguments = parser.parse_args()
    arguments.call(arguments)


if __name__ == "__main__":
    main()
