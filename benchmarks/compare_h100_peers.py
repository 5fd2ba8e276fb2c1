"""Trainer and peft in bench_compare_h100."""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.compare_h100_parts import BATCH, HEAD_RATE, PACKS, RATES, SEEDS, SIZES, WARMUP, read, runs_of, write

SCORED = 128
"""Rows of a peer's batch when it is scored."""
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
