"""peft and adapters under Hugging Face Trainer, one measurement in a process: a part of bench_speed_cpu.

Runs without intarsia, so that adapters can have the older transformers that it needs.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.speed_cpu_parts import EPOCHS, MAX_LENGTH, ROWS, Clock, read_rows, scored

RATES = {"lora": 2e-3, "prefix": 2e-2, "prompt": 5e-2, "houlsby": 1e-3, "pfeiffer": 1e-3}
"""Learning rates that are good for the methods on this backbone, in place of Trainer's 5e-5 (flat prefixes want more than ours)."""


def peft_model(model: Any, method: str) -> Any:
    """Of the same sizes as ours."""
    from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

    config = {
        "lora": lambda: LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"]),
        "prefix": lambda: PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=10),
        "prompt": lambda: PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=20),
    }[method]()
    return get_peft_model(model, config)


def adapters_model(model: Any, method: str) -> Any:
    """The library's own configurations; reduction factor 16 is width 24, as ours."""
    import adapters  # type: ignore[import-not-found]

    adapters.init(model)
    model.add_adapter("task", config={"houlsby": "double_seq_bn", "pfeiffer": "seq_bn"}[method])
    model.train_adapter("task")
    return model


def options(method: str, settings: str, steps: int) -> dict[str, Any]:
    """What is not Trainer's default. best: bf16 and rows of like length in a batch; for quality, a rate that suits the method and
    a warm-up as well."""
    from transformers import TrainingArguments

    if settings == "defaults":
        return {}
    by_length: dict[str, Any] = {"group_by_length": True}  # transformers 4
    if "train_sampling_strategy" in {field.name for field in fields(TrainingArguments)}:
        by_length = {"train_sampling_strategy": "group_by_length"}
    more = {} if settings == "by-length" else {"bf16": True}
    return by_length | more | {"learning_rate": RATES[method], "warmup_steps": steps // 10}


class Training:
    """One contender: its model, rows and Trainer."""

    def __init__(self, who: str, method: str, settings: str, folder: str, device: str, seed: int) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

        set_seed(seed)
        self.who, self.method, self.settings, self.device, self.seed = who, method, settings, device, seed
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} if settings == "quiet" else {}
        # fp32 by name: transformers 5 would take the file's own dtype.
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype="float32", **quiet)
        self.model = {"peft": peft_model, "adapters": adapters_model}[who](model, method)

    def features(self, data: Path, split: str) -> list[dict[str, Any]]:
        """Tokenised, unpadded."""
        pairs, labels = read_rows(data, split)
        columns = self.tokenizer(*map(list, zip(*pairs, strict=True)), truncation=True, max_length=MAX_LENGTH)
        return [{**{k: column[i] for k, column in columns.items()}, "labels": y} for i, y in enumerate(labels)]

    def train(self, data: Path, tick: Callable[[int], None] | None, more: dict[str, Any]) -> None:
        """tick: called with the tokens of each batch that is made, and with 0 after each step."""
        from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

        rows: Any = self.features(data, "train")
        pad, tell = DataCollatorWithPadding(self.tokenizer), tick or (lambda _tokens: None)

        def collate(features: list[dict[str, Any]]) -> Any:
            batch = pad(features)
            tell(int(batch["attention_mask"].sum()))
            return batch

        class Tick(TrainerCallback):
            def on_step_end(self, *_args: Any, **_options: Any) -> None:
                tell(0)

        steps = more.get("max_steps") or EPOCHS * -(-len(rows) // ROWS)
        with tempfile.TemporaryDirectory() as out:
            arguments = TrainingArguments(
                out,
                per_device_train_batch_size=ROWS,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=self.device == "cpu",
                seed=self.seed,
                **options(self.method, self.settings, steps),
                **more,
            )
            made: Any = Trainer
            if self.who == "adapters":
                import adapters  # type: ignore[import-not-found]

                made = adapters.AdapterTrainer
            made(self.model, arguments, collate, rows, callbacks=[Tick()]).train()

    def scores(self, data: Path, split: str) -> dict[str, float]:
        """Of the weights as they are now."""
        import torch
        from transformers import DataCollatorWithPadding

        rows, pad, found = self.features(data, split), DataCollatorWithPadding(self.tokenizer), []
        self.model.eval()
        with torch.no_grad():
            for at in range(0, len(rows), 64):
                batch = pad(rows[at : at + 64]).to(self.model.device)
                found += self.model(**batch).logits.argmax(-1).tolist()
        return scored(found, [row["labels"] for row in rows], split)


def speed(who: str, method: str, settings: str, data: Path, folder: str, clock: Clock) -> None:
    """Steps under the clock."""

    def tick(tokens: int) -> None:
        if tokens:
            clock.batches.append(tokens)
        else:
            clock.step()

    Training(who, method, settings, folder, "cpu", 42).train(data, tick, {"max_steps": clock.total})


def quality(
    who: str, method: str, settings: str, seed: int, data: Path, folder: str, device: str
) -> list[dict[str, Any]]:
    """The last weights of a run of three epochs, on dev and test."""
    begun = time.perf_counter()
    training = Training(who, method, settings, folder, device, seed)
    training.train(data, None, {"num_train_epochs": EPOCHS})
    found = training.scores(data, "dev") | training.scores(data, "test")
    return [{"seed": seed, **found, "seconds": round(time.perf_counter() - begun, 1)}]
