"""Table to text: E2E over a small language model, with every kind of method; and with few rows, where the prefix begins.

    python -m studies.table_to_text run --data DIR --backbone embedded:smollm2 --workers 6 --runs runs.jsonl
    python -m studies.table_to_text report --data DIR --runs runs.jsonl

`run` may be stopped and called again with the same --runs: what is there is not done again. Four sorts of jobs:

    tune    every learning rate, on a third of the rows, one seed; scored by greedy BLEU on the dev split
    final   the best learning rate, all rows, three seeds; beam search on the test split
    grope   every learning rate with 200 rows, scored by the loss on their own dev rows
    few     50, 100, 200, 500 rows, five draws; early stopping on as many dev rows as 30 % of them; greedy on the test split

`run` keeps the generated texts; `report` scores them, and writes results/table_to_text.{json,md} and the plot.
"""

import argparse
import csv
import gzip
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from intarsia.errors import DataError, TrainingError
from intarsia.methods import (
    BottleneckAdapter,
    FullFineTuning,
    LoRA,
    Method,
    PrefixTuning,
    PromptTuning,
    PTuning,
    TopLayers,
)
from intarsia.sites import Role
from studies.early_stopping import train_with_early_stopping
from studies.pool import Job, Run, add_arguments, ranked, run_jobs

EPOCHS = 2
BATCH = 32
LONGEST, TARGET = 192, 96
"""Tokens of input and target together, and of the target; no row of E2E is cut."""
BEAMS, NEW_TOKENS = 5, 72
GENERATED_TOGETHER = 320
"""Inputs of one call of generate; two calls for the 630 of the test split."""
SIZES, DRAWS = (50, 100, 200, 500), range(5)
FEW_STEPS, FEW_BATCH, FEW_EVERY, FEW_PATIENCE = 300, 16, 20, 4
DEV_SHARE = 0.3
"""Dev rows of the few-rows runs, as a share of their training rows: the paper's."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A method, the learning rates to choose from, and how the loss is summed."""

    method: Method
    rates: tuple[float, ...]
    loss: Literal["token", "sentence"] = "token"
    final: bool = True
    """Otherwise only its tuning runs are made: what a choice brings."""


LAST_ADAPTER = BottleneckAdapter(width=3, after=(Role.FFN_OUT,), train_layer_norms=False)
"""One adapter a block, as the adapters that the prefix-tuning paper compares with."""
WORDS = "Describe this restaurant in one or two short natural sentences:\n"
VARIANTS: dict[str, Variant] = {
    "prefix 0.1 %": Variant(method=PrefixTuning(length=12), rates=(5e-4, 1e-3, 2e-3)),
    "full fine-tuning": Variant(method=FullFineTuning(), rates=(1e-4, 3e-4)),
    "prompt 20": Variant(method=PromptTuning(length=20), rates=(2e-2, 1e-1)),
    "adapters 3 %": Variant(method=BottleneckAdapter(width=57), rates=(1e-3, 3e-3)),
    "adapters 0.1 %": Variant(method=LAST_ADAPTER, rates=(5e-3, 1.5e-2)),
    "prompt 100": Variant(method=PromptTuning(length=100), rates=(2e-2, 1e-1)),
    "prompt 10": Variant(method=PromptTuning(length=10), rates=(2e-2, 1e-1)),
    "LoRA r8": Variant(method=LoRA(rank=8), rates=(3e-3, 1e-2)),
    "top 2 layers": Variant(method=TopLayers(k=2), rates=(5e-4, 2e-3)),
    "P-tuning 20": Variant(method=PTuning(length=20), rates=(2e-3, 6e-3)),
    "prefix, sum loss": Variant(method=PrefixTuning(length=12), rates=(1e-3,), loss="sentence", final=False),
    "prefix, flat, real words": Variant(
        method=PrefixTuning(length=12, mid=None, init="text", init_text=WORDS), rates=(5e-3, 2e-2), final=False
    ),
}  # fmt: skip
"""The goals' own methods first: that is the order in which they run."""
FEW: dict[str, Variant] = {
    "prefix, real words": Variant(
        method=PrefixTuning(length=12, init="text", init_text=WORDS, position_offset=True),
        rates=(1e-4, 4e-4, 1e-3),
    ),
    "full fine-tuning": Variant(method=FullFineTuning(), rates=(3e-5, 1e-4)),
    "prefix, random": Variant(
        method=PrefixTuning(length=12, position_offset=True), rates=(1e-4, 4e-4, 1e-3)
    ),
}  # fmt: skip
"""With position_offset, the frozen model reads on from the words as if they stood in the text."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run")
    add_arguments(run)
    run.add_argument("--backbone", default="embedded:smollm2")
    run.add_argument("--seeds", type=int, default=3, help="of the final runs")
    run.add_argument("--epochs", type=int, default=EPOCHS, help="of the final runs; one for the tuning runs")
    run.add_argument("--rows", type=int, help="training rows at most; default all 42,061")
    run.add_argument("--inputs", type=int, help="dev and test inputs at most, to try the script")
    run.add_argument("--few-steps", type=int, default=FEW_STEPS, help="most steps of a run on few rows")
    run.add_argument("--sorts", nargs="+", default=["tune", "final", "grope", "few"], help="only these sorts of jobs")
    run.set_defaults(call=start)
    report = commands.add_parser("report")
    report.add_argument("--data", type=Path, required=True)
    report.add_argument("--runs", type=Path, required=True)
    report.set_defaults(call=write_report)
    arguments = parser.parse_args()
    arguments.call(arguments)


def start(arguments: argparse.Namespace) -> None:
    run_jobs(arguments, lambda done: todo(done, arguments.sorts, arguments.seeds), begin)


def write_report(arguments: argparse.Namespace) -> None:
    from studies.table_to_text_report import report

    report(arguments.runs, arguments.data)


def todo(done: list[Run], sorts: list[str], seeds: int) -> list[Job]:
    """The jobs that can be started now: (sort, variant, learning rate, seed), or ("few", variant, rows, learning rate, draw).

    First all tuning, then seed by seed and draw by draw, so that a study cut short has something of everything.
    """
    first: list[Job] = [("tune", name, rate, 0) for name, v in VARIANTS.items() for rate in v.rates]
    first += [("grope", name, rate, 0) for name, variant in FEW.items() for rate in variant.rates]
    rest: list[Job] = []
    for turn in DRAWS:
        for name, variant in VARIANTS.items():
            best = ranked(done, ("tune", name), variant.rates, (0,))[:1]
            rest += [("final", name, rate, turn) for rate in best if variant.final and turn < seeds]
        for size in SIZES:
            for name, variant in FEW.items():
                best = ranked(done, ("grope", name), variant.rates, (0,))[:1]
                rest += [("few", name, size, rate, turn) for rate in best]
    # The finals of a method need not wait for the tuning of the others, but those of a later seed may.
    early = [job for job in rest if job[0] == "final" and job[-1] == 0]
    return [job for job in dict.fromkeys(first + early + rest) if job[0] in sorts]


# -- data ----------------------------------------------------------------------------------------------------------------


def linear(mr: str) -> str:
    """`name[Alimentum], familyFriendly[no]` -> `name : Alimentum | family friendly : no`, as the paper writes tables."""
    fields = []
    for part in mr.rstrip("]").split("], "):
        name, value = part.split("[", 1)
        fields.append(f"{''.join(' ' + c.lower() if c.isupper() else c for c in name)} : {value}")
    return " | ".join(fields)


def rows_of(folder: Path, split: str) -> tuple[list[str], list[list[str]]]:
    """Inputs and their references. Train: one row a reference; dev and test: one row an input."""
    path = folder / {"train": "train.csv.gz", "dev": "dev.csv", "test": "test.csv"}[split]
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8", newline="") as file:
        pairs = [(linear(row["mr"]), row["ref"].strip()) for row in csv.DictReader(file)]
    if split == "train":
        return [text for text, _ in pairs], [[reference] for _, reference in pairs]
    grouped: dict[str, list[str]] = {}
    for text, reference in pairs:
        grouped.setdefault(text, []).append(reference)
    return list(grouped), list(grouped.values())


@dataclass
class Study:
    """What one worker has loaded."""

    backbone: Any
    train: Any
    """Rows."""
    dev: Any
    test: Any
    """GenerationSources."""
    epochs: int
    few_steps: int
    encoded: dict[int, Any]
    """Training rows that more than one job takes, tokenised, by their number."""

    def source(self, rows: Any, batch: int, seed: int | None) -> Any:
        """Batches of these rows, tokenised."""
        return self.batches(self.encode(rows), batch, seed)

    def shared(self, count: int, seed: int) -> Any:
        """Batches of the first training rows."""
        if count not in self.encoded:
            self.encoded[count] = self.encode(self.train.take(range(count)))
        return self.batches(self.encoded[count], BATCH, seed)

    def encode(self, rows: Any) -> Any:
        """The rows as tokens; none is cut."""
        from intarsia.data import encode_generation

        pairs = encode_generation(
            rows,
            self.backbone.tokenizer,
            max_length=LONGEST,
            target_length=TARGET,
            template=None,
            encoder_decoder=False,
        )
        if pairs.truncated or pairs.truncated_targets:
            raise DataError(
                f"{pairs.truncated} inputs and {pairs.truncated_targets} targets are too long; raise LONGEST"
            )
        return pairs

    def batches(self, pairs: Any, batch: int, seed: int | None) -> Any:
        """A source of batches."""
        from intarsia.data import GenerationSource

        return GenerationSource(pairs, batch, pad_id=self.backbone.tokenizer.pad_token_id, seed=seed)


def begin(arguments: argparse.Namespace) -> Any:
    """Backbone and data of one worker."""
    from intarsia.backbone import Backbone
    from intarsia.data import Rows

    def rows(split: str, most: int | None) -> Rows:
        texts, references = rows_of(arguments.data, split)
        return Rows([(text,) for text in texts[:most]], references[:most])

    backbone = Backbone.load(arguments.backbone, dtype="bfloat16", device=arguments.device)
    # The rows lie in order of their inputs; a share of them should be a share of all inputs.
    train = rows("train", None)
    order = random.Random(0).sample(range(len(train)), arguments.rows or len(train))
    study = Study(backbone, train.take(order), None, None, arguments.epochs, arguments.few_steps, {})
    study.dev, study.test = (
        study.source(rows(split, arguments.inputs), GENERATED_TOGETHER, None) for split in ("dev", "test")
    )
    return lambda job: one(job, study)


# -- runs ----------------------------------------------------------------------------------------------------------------


def one(job: Job, study: Study) -> Run:
    """Trains and scores one job."""
    import torch

    from intarsia.bank import TaskBank
    from intarsia.heads import Head
    from intarsia.task import Task

    sort, name, seed = job[0], job[1], job[-1]
    variant = (VARIANTS if sort in ("tune", "final") else FEW)[name]
    task = Task.new("study", study.backbone, variant.method, Head(kind="generation", loss=variant.loss), seed=seed)
    trained = task.trained_parameters()
    bank = TaskBank(study.backbone, [task])
    on_gpu = study.backbone.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    try:
        scores = (with_many_rows if sort in ("tune", "final") else with_few_rows)(job, study, bank, task)
        minutes = (time.perf_counter() - begun) / 60
        gigabytes = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None
        scores |= outputs(sort, study, bank, task)
    except TrainingError:
        return {"validation": -1e9, "diverged": True}
    finally:
        bank.detach()
        if on_gpu:
            torch.cuda.empty_cache()
    return {
        **scores,
        "trained": trained,
        "stored": task.fold().trained_parameters(),
        "of": study.backbone.parameter_count(),
        "minutes": minutes,
        "gigabytes": gigabytes,
    }


def with_many_rows(job: Job, study: Study, bank: Any, task: Any) -> Run:
    """Trains on a third of the rows for one epoch, or on all; the last weights stay."""
    from intarsia.training import TrainSettings, fit

    sort, _, rate, seed = job
    train = study.shared(len(study.train) if sort == "final" else max(1, len(study.train) // 3), seed)
    settings = TrainSettings(
        epochs=study.epochs if sort == "final" else 1,
        learning_rate=rate,
        batch_size=BATCH,
        seed=seed,
        checkpoint_every=10**6,
        weight_decay=0.0,
    )
    with tempfile.TemporaryDirectory() as out:
        result = fit(bank, task, train, None, settings, Path(out) / "run")
    return {"loss": result.loss, "steps": result.steps}


def with_few_rows(job: Job, study: Study, bank: Any, task: Any) -> Run:
    """Trains on a few rows; the weights with the best loss on their dev rows stay."""
    sort, rate, draw = job[0], job[-2], job[-1]
    size = 200 if sort == "grope" else job[2]
    # The draw for the learning rates is none of those that count.
    drawn = random.Random(f"{size} {'grope' if sort == 'grope' else draw}")
    picked = drawn.sample(range(len(study.train)), size + round(size * DEV_SHARE))
    train = study.source(study.train.take(picked[:size]), FEW_BATCH, seed=draw)
    dev = study.source(study.train.take(picked[size:]), 64, seed=None)
    loss, steps = train_with_early_stopping(
        bank, task, train, dev, rate=rate, seed=draw, most=study.few_steps, every=FEW_EVERY, patience=FEW_PATIENCE
    )
    return {"validation": -loss, "steps": steps}


def outputs(sort: str, study: Study, bank: Any, task: Any) -> Run:
    """What the job is judged by: dev BLEU, the texts for the test inputs, or nothing more."""
    if sort == "grope":
        return {}
    if sort == "tune":
        texts, references = generated(study, study.dev, bank, task, beams=1)
        return {"validation": bleu(texts, references)}
    texts, references = generated(study, study.test, bank, task, beams=BEAMS if sort == "final" else 1)
    return {"texts": texts, "test": bleu(texts, references)}


def generated(study: Study, source: Any, bank: Any, task: Any, beams: int) -> tuple[list[str], list[list[str]]]:
    """Texts and references, in the order of the file."""
    from intarsia.heads import Decoding

    found: dict[int, tuple[str, list[str]]] = {}
    task.eval()
    for key in source.plan(0):
        prompts = {name: tensor.to(study.backbone.device) for name, tensor in source.prompts(key).items()}
        decoding = Decoding(max_new_tokens=NEW_TOKENS, beams=beams)
        new = bank.generate(prompts, tasks=task.name, decoding=decoding)
        texts = [study.backbone.tokenizer.decode(ids.tolist(), skip_special_tokens=True).strip() for ids in new]
        found |= dict(zip(source.rows(key).tolist(), zip(texts, source.references(key), strict=True), strict=True))
    pairs = [found[row] for row in sorted(found)]
    return [text for text, _ in pairs], [references for _, references in pairs]


def bleu(texts: list[str], references: list[list[str]]) -> float:
    """As the E2E scorer: lower-cased, 13a, all references."""
    from sacrebleu.metrics.bleu import BLEU

    streams: Any = [[row[i] if i < len(row) else None for row in references] for i in range(max(map(len, references)))]
    return BLEU(lowercase=True, tokenize="13a", force=True).corpus_score(texts, streams).score


if __name__ == "__main__":
    main()
