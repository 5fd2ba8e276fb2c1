"""Prefixes and prompts on MRPC, SST-2 and TREC over a small encoder, and as text-to-text tasks over a small language model.

    python -m studies.prompts_classification run --part encoder --data DIR --workers 16 --runs encoder.jsonl
    python -m studies.prompts_classification run --part text --data DIR --workers 4 --runs text.jsonl
    python -m studies.prompts_classification report --runs encoder.jsonl text.jsonl

`run` may be stopped and called again with the same --runs: what is there is not done again. encoder: every learning rate is tried
with one seed, a variant's best on the validation split with a second one, and the best variant of a family runs with further
seeds; the weights of the best validation epoch are scored on the test split. text: every learning rate with one seed, the best on
the validation split with two more; last weights. Such runs go through the model together (`intarsia.training.fit_pack`).
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from intarsia.data import DataSpec
from intarsia.errors import TrainingError
from intarsia.methods import PromptTuning
from studies.pool import Job, Run, add_arguments, alone, ranked, run_jobs
from studies.prompts_classification_variants import (
    ENCODER,
    EPOCHS,
    FILES,
    OUTPUTS,
    TASK_WORDS,
    TEMPLATE,
    TEXT,
    TEXT_EPOCHS,
    TEXT_RATES,
    TEXT_SEEDS,
    TEXT_VARIANTS,
)

BATCH, LONGEST, LONGEST_OUTPUT, TEXT_TOGETHER = 32, 128, 4, 2000


BACKBONES = {"encoder": "embedded:minilm", "text": "embedded:smollm2"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run")
    add_arguments(run)
    run.add_argument("--part", choices=list(BACKBONES), required=True)
    run.add_argument("--backbone", help="default: minilm for encoder, smollm2 for text, both as packages")
    run.add_argument("--seeds", type=int, default=5, help="of the chosen variants over the encoder")
    run.add_argument("--epochs", type=float, default=1.0, help="share of the full number of epochs, to try the script")
    run.add_argument("--rows", type=int, help="training rows at most, to try the script")
    run.set_defaults(call=start)
    report = commands.add_parser("report")
    report.add_argument("--runs", type=Path, nargs="+", required=True)
    report.set_defaults(call=write_report)
    arguments = parser.parse_args()
    arguments.call(arguments)


def start(arguments: argparse.Namespace) -> None:
    arguments.backbone = arguments.backbone or BACKBONES[arguments.part]
    if arguments.part == "encoder":
        run_jobs(arguments, lambda done: alone(encoder_jobs(done, arguments.seeds)), begin_encoder)
    else:
        run_jobs(arguments, text_jobs, begin_text)


def write_report(arguments: argparse.Namespace) -> None:
    from studies.prompts_classification_report import report

    report(arguments.runs)


# -- which jobs ----------------------------------------------------------------------------------------------------------


def encoder_jobs(done: list[Run], seeds: int) -> list[Job]:
    """("encoder", data, variant, learning rate, seed): seed 0 of all rates, seed 1 of a variant's best, all of a family's."""
    jobs: list[tuple[int, Job]] = []
    for name, variant in ENCODER.items():
        for data in variant.data:
            what = ("encoder", data, name)
            jobs += [(0, (*what, rate, 0)) for rate in variant.rates]
            jobs += [(1, (*what, rate, 1)) for rate in ranked(done, what, variant.rates, (0,))[:1]]
    for family in dict.fromkeys(variant.family for variant in ENCODER.values()):
        for data in FILES:
            if (best := family_best(done, data, family)) is not None:
                jobs += [(seed, ("encoder", data, *best, seed)) for seed in range(2, seeds)]
    # A learning rate that is still open counts before the further seeds of another; the order is else kept.
    return [job for _, job in sorted(jobs, key=lambda pair: pair[0])]


def chosen(done: list[Run], data: str, name: str) -> float | None:
    """The learning rate of a variant on MiniLM; None while the grid is unfinished."""
    return next(iter(ranked(done, ("encoder", data, name), ENCODER[name].rates, (0,))), None)


def family_best(done: list[Run], data: str, family: str) -> tuple[str, float] | None:
    """The family's variant and learning rate with the best validation score over two seeds; None while one is unfinished."""
    found: dict[tuple[str, float], float] = {}
    scores = {tuple(run["job"]): run["validation"] for run in done}
    for name, variant in ENCODER.items():
        if variant.family == family and data in variant.data:
            rate = chosen(done, data, name)
            pair = [scores.get(("encoder", data, name, rate, seed)) for seed in (0, 1)]
            if None in pair:
                return None
            found[name, rate] = sum(pair)  # type: ignore[index, arg-type]
    return max(found, key=lambda key: found[key])


def text_jobs(done: list[Run]) -> list[tuple[Job, ...]]:
    """("text", data, variant, learning rate, seed): the first seed of all short prompts together, and of the long ones; then the
    further seeds of each one's best rate likewise."""
    packs: list[tuple[Job, ...]] = []
    for data in TEXT_EPOCHS:
        for names in ([n for n, (length, _) in TEXT_VARIANTS.items() if length <= 20],
                      [n for n, (length, _) in TEXT_VARIANTS.items() if length > 20]):  # fmt: skip
            packs.append(tuple(("text", data, name, rate, TEXT_SEEDS[0]) for name in names for rate in TEXT_RATES))
            best = [(name, rate) for name in names if (rate := text_chosen(done, data, name)) is not None]
            packs.append(tuple(("text", data, name, rate, seed) for name, rate in best for seed in TEXT_SEEDS[1:]))
    return packs


def text_chosen(done: list[Run], data: str, name: str) -> float | None:
    """The learning rate of a variant on SmolLM2; None while the grid is unfinished."""
    return next(iter(ranked(done, ("text", data, name), TEXT_RATES, TEXT_SEEDS[:1])), None)


# -- a small encoder -----------------------------------------------------------------------------------------------------


def spec(name: str, folder: Path, **more: Any) -> DataSpec:
    """Where a data set lies."""
    files = {split: folder / where for split, where in FILES[name].items()}
    return DataSpec(**files, label_column="label", **more)


def begin_encoder(arguments: argparse.Namespace) -> Any:
    """Backbone and tokenised data of one worker."""
    from intarsia.backbone import Backbone
    from intarsia.data import encode, load_data

    backbone = Backbone.load(arguments.backbone, dtype="float32", device=arguments.device)
    data = {}
    for name in FILES:
        splits = load_data(spec(name, arguments.data, text_columns=TEXT[name]))
        kept = shortened(splits, arguments.rows)
        encoded = {split: encode(rows, backbone.tokenizer, LONGEST, splits.kind) for split, rows in kept.items()}
        data[name] = (splits, encoded)
    return lambda jobs: ((job, encoder_run(job, backbone, *data[job[1]], arguments.epochs)) for job in jobs)


def shortened(splits: Any, rows: int | None) -> dict[str, Any]:
    """Rows by split; at most `rows` of each."""
    found = {name: splits.split(name) for name in ("train", "validation", "test")}
    return {name: part.take(range(min(rows, len(part)))) if rows else part for name, part in found.items()}


def encoder_run(job: Job, backbone: Any, splits: Any, encoded: dict[str, Any], share: float) -> Run:
    """Trains and scores one job."""
    from intarsia.bank import TaskBank
    from intarsia.data import EncodedSource
    from intarsia.heads import Head
    from intarsia.task import Task
    from intarsia.training import TrainSettings, evaluate, fit

    _, data, name, rate, seed = job
    variant, pad = ENCODER[name], backbone.tokenizer.pad_token_id
    train = EncodedSource(encoded["train"], BATCH, pad_id=pad, seed=seed)
    validation, test = (EncodedSource(encoded[split], 256, pad_id=pad) for split in ("validation", "test"))
    head = Head(kind=splits.kind, labels=splits.labels, pooling=variant.pooling)  # type: ignore[arg-type]
    task = Task.new("study", backbone, variant.method, head, seed=seed)
    trained = task.trained_parameters()
    bank = TaskBank(backbone, [task])
    settings = TrainSettings(
        epochs=max(1, round(EPOCHS[data] * variant.passes * share)),
        learning_rate=rate,
        head_learning_rate=None if variant.slow_head else rate,
        batch_size=BATCH,
        seed=seed,
        metric="accuracy",
        checkpoint_every=10**6,
        backbone_dropout=not variant.quiet,
    )
    begun = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as out:
            result = fit(bank, task, train, validation, settings, Path(out) / "run")
        scores = {"validation": result.best, "test": (found := evaluate(bank, task, test).metrics)["accuracy"]}
        scores["test_f1"] = found["f1"]
    except TrainingError:
        scores = {"validation": 0.0, "diverged": True}
    finally:
        bank.detach()
    return {
        **scores,
        "trained": trained,
        "stored": task.fold().trained_parameters(),
        "of": backbone.parameter_count(),
        "minutes": (time.perf_counter() - begun) / 60,
    }


# -- a small language model ----------------------------------------------------------------------------------------------


def begin_text(arguments: argparse.Namespace) -> Any:
    """Backbone and tokenised data of one worker."""
    from intarsia.backbone import Backbone
    from intarsia.data import load_data

    backbone = Backbone.load(arguments.backbone, dtype="bfloat16", device=arguments.device)
    data = {}
    for name in TEXT_EPOCHS:
        asked = {"kind": "generation", "text_to_text": True, "template": TEMPLATE[name]}
        splits = load_data(spec(name, arguments.data, label_words=OUTPUTS[name], **asked))
        data[name] = (splits, encoded_pairs(backbone, shortened(splits, arguments.rows), TEMPLATE[name]))
    return lambda jobs: text_runs(jobs, backbone, *data[jobs[0][1]], arguments.epochs)


def encoded_pairs(backbone: Any, rows: dict[str, Any], template: str) -> dict[str, Any]:
    """The splits' inputs and outputs as tokens."""
    from intarsia.data import encode_generation
    from intarsia.data.template import Template

    return {
        split: encode_generation(
            part, backbone.tokenizer, max_length=LONGEST, target_length=LONGEST_OUTPUT, template=Template.parse(template),
            encoder_decoder=False,
        )
        for split, part in rows.items()
    }  # fmt: skip


def text_runs(
    jobs: tuple[Job, ...], backbone: Any, splits: Any, encoded: dict[str, Any], share: float
) -> Iterator[tuple[Job, Run]]:
    """Trains and scores jobs of one data set together."""
    from intarsia.data import GenerationSource
    from intarsia.heads import Decoding, Head
    from studies.members import Plan, settings, trained

    plans = []
    for job in jobs:
        _, data, name, rate, seed = job
        length, init = TEXT_VARIANTS[name]
        words = TASK_WORDS[data] if init == "text" else None
        method = PromptTuning(length=length, init=init, init_text=words)  # type: ignore[arg-type]
        chosen = settings(rate, BATCH, seed, epochs=max(1, round(TEXT_EPOCHS[data] * share)))
        head = Head(kind="generation", labels=splits.labels)
        plans.append(Plan(job=job, method=method, head=head, rows=encoded["train"], settings=chosen))
    with trained(backbone, plans) as pack:
        yield from pack.lost()
        found: dict[str, dict[Job, tuple[float, float]]] = {}
        for split in ("validation", "test"):
            source = GenerationSource(encoded[split], 1, pad_id=backbone.pad_id)
            # The longest output and the token that ends it.
            texts = pack.texts(source, Decoding(max_new_tokens=LONGEST_OUTPUT), TEXT_TOGETHER)
            found[split] = {j: scored(own, encoded[split].references, splits.labels) for j, own in texts.items()}
        for job, facts in pack.facts.items():
            (validation, _), (test, illegal) = (found[split][job] for split in ("validation", "test"))
            yield job, {"validation": validation, "test": test, "illegal": illegal, **facts}


def scored(texts: list[str], references: list[list[str]], labels: Sequence[str]) -> tuple[float, float]:
    """Exact match, and the share of outputs that are none of the labels."""
    right = sum(text in wanted for text, wanted in zip(texts, references, strict=True))
    return right / len(texts), sum(text not in labels for text in texts) / len(texts)


if __name__ == "__main__":
    main()
