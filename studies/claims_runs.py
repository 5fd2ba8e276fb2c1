"""The runs of studies.claims: what a worker loads, and what it does with a pack of jobs."""

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from studies.claims import ABLATED_STD, BACKBONES, FIRST_SEEDS, PARTS
from studies.claims_data import TAGS, Tagged, fields, held_out_names, is_unseen, seen_rows, span_f1, tag
from studies.pool import Job, Run
from studies.prompts_classification import shortened, spec
from studies.prompts_classification_variants import TEXT
from studies.table_to_text_runs import NEW_TOKENS, TOGETHER, bleu, encode, rows_of

BATCH, LONGEST, SCORED_TOGETHER = 32, 128, 512
TEXT_SHARE = 4
"""Of E2E's training rows one in so many, as the tuning runs of studies.table_to_text had."""
TAGGED = {"train": 2000, "validation": 500, "test": 2000}
"""Sentences at most."""


@dataclass(kw_only=True)
class Loaded:
    """A data set as tokens."""

    kind: str
    labels: tuple[str, ...]
    splits: dict[str, Any]
    unseen: list[bool] = field(default_factory=list)
    """Texts: of each test input, whether it is of a kind that is held out."""


def begin(arguments: argparse.Namespace) -> Any:
    """Backbones and data of one worker, loaded when a job first asks for them."""
    from intarsia.backbone import Backbone

    @cache
    def backbone(name: str) -> Any:
        return Backbone.load(BACKBONES.get(name, name), dtype="bfloat16", device=arguments.device)

    @cache
    def data(name: str, over: str) -> Loaded:
        makers = {"slots": slots, "e2e": texts, "e2e, seen kinds": texts}
        return makers.get(name, labelled)(name, arguments.data, backbone(over).tokenizer, arguments.rows)

    def together(jobs: tuple[Job, ...]) -> Iterator[tuple[Job, Run]]:
        part, over, name = jobs[0][:3]
        epochs = max(1, round(PARTS[part].epochs[name] * arguments.epochs))
        return trained_together(jobs, backbone(over), data(name, over), epochs)

    return together


# -- data --------------------------------------------------------------------------------------------------------------


def labelled(name: str, folder: Path, tokenizer: Any, most: int | None) -> Loaded:
    """MRPC, SST-2 or TREC."""
    from intarsia.data import encode as encode_rows
    from intarsia.data import load_data

    found = load_data(spec(name, folder, text_columns=TEXT[name]))
    kept = shortened(found, most)
    splits = {split: encode_rows(rows, tokenizer, LONGEST, found.kind) for split, rows in kept.items()}
    return Loaded(kind=found.kind, labels=found.labels, splits=splits)


def tagged_rows(folder: Path) -> dict[str, list[Tagged]]:
    """Sentences to tag by split: those of the held-out names are in validation and test, those of the others in train."""
    found: dict[str, list[Tagged]] = {}
    held: set[str] = set()
    for split, file in (("train", "train"), ("validation", "dev"), ("test", "test")):
        inputs, references = rows_of(folder, file)
        held = held or held_out_names(inputs)
        pairs = [(text, sentence) for text, some in zip(inputs, references, strict=True) for sentence in some]
        wanted = [pair for pair in pairs if (fields(pair[0])["name"] in held) == (split != "train")]
        drawn = random.Random(0).sample(wanted, len(wanted))
        rows: list[Tagged] = []
        for text, sentence in drawn:
            if len(rows) < TAGGED[split] and (one := tag(text, sentence)) is not None:
                rows.append(one)
        found[split] = rows
    return found


def slots(_name: str, folder: Path, tokenizer: Any, most: int | None) -> Loaded:
    """E2E's sentences, to be tagged."""
    from intarsia.data import Rows
    from intarsia.data import encode as encode_rows

    splits = {}
    for split, tagged in tagged_rows(folder / "e2e").items():
        rows = Rows([tuple(words) for words, _ in tagged[:most]], [tags for _, tags in tagged[:most]])
        splits[split] = encode_rows(rows, tokenizer, LONGEST, "token-classification")
    return Loaded(kind="token-classification", labels=TAGS, splits=splits)


def texts(name: str, folder: Path, tokenizer: Any, most: int | None) -> Loaded:
    """A quarter of E2E; with "seen kinds" no row of the others, and as many rows."""
    from intarsia.data import Rows

    inputs, references = rows_of(folder / "e2e", "train")
    count = most or len(inputs) // TEXT_SHARE
    wanted = range(len(inputs)) if name == "e2e" else seen_rows(inputs, [some[0] for some in references])
    train = Rows([(text,) for text in inputs], references).take(random.Random(0).sample(wanted, count))
    asked, answers = rows_of(folder / "e2e", "test")
    if most:  # of all kinds
        drawn = random.Random(0).sample(range(len(asked)), most)
        asked, answers = [asked[i] for i in drawn], [answers[i] for i in drawn]
    test = Rows([(text,) for text in asked], answers)
    splits = {"train": encode(train, tokenizer), "test": encode(test, tokenizer)}
    return Loaded(kind="generation", labels=(), splits=splits, unseen=[is_unseen(text) for text in asked])


# -- runs --------------------------------------------------------------------------------------------------------------


def trained_together(jobs: tuple[Job, ...], backbone: Any, data: Loaded, epochs: int) -> Iterator[tuple[Job, Run]]:
    """Trains and scores jobs on one data set; then the adapters of some are taken out again."""
    from intarsia.heads import Head
    from studies.members import Plan, settings, trained

    head = Head(kind=data.kind, labels=data.labels)  # type: ignore[arg-type]
    plans = []
    for job in jobs:
        part, _, _, variant, rate, seed = job
        chosen = settings(rate, BATCH, seed, epochs=epochs)
        method = PARTS[part].variants[variant].method
        plans.append(Plan(job=job, method=method, head=head, rows=data.splits["train"], settings=chosen))
    tasks: dict[Job, Any] = {}
    found: dict[Job, Run] = {}
    with trained(backbone, plans) as pack:
        yield from pack.lost()
        scores = written(pack, data, backbone) if data.kind == "generation" else {}
        for job, facts in pack.facts.items():
            task = pack.bank.tasks[pack.names[job]]
            found[job] = {**(scores.get(job) or answered(pack.bank, task, data)), **facts}
            if job[0] == "std" and task.method.init_std == ABLATED_STD and job[-1] < FIRST_SEEDS:
                tasks[job] = task
            else:
                yield job, found[job]
    for job, task in tasks.items():
        yield job, {**found[job], "without": ablated(task, backbone, data)}


def answered(bank: Any, task: Any, data: Loaded) -> Run:
    """Accuracy, or F1 over whole spans, on both splits."""
    return {split: score(bank, task, data, split) for split in ("validation", "test")}


def score(bank: Any, task: Any, data: Loaded, split: str) -> float:
    """Of one split."""
    from intarsia.data import EncodedSource
    from intarsia.training import evaluate, predict

    encoded = data.splits[split]
    source = EncodedSource(encoded, SCORED_TOGETHER, pad_id=bank.backbone.pad_id)
    if data.kind != "token-classification":
        return evaluate(bank, task, source).metrics["accuracy"]
    order = np.concatenate(source.plan(0))
    ours, theirs = [], []
    for row, answers in zip(order, predict(bank, task, source).predictions, strict=True):
        part = slice(encoded.offsets[row], encoded.offsets[row + 1])
        first = np.flatnonzero(encoded.words[part] >= 0)
        ours.append([data.labels[i] for i in np.asarray(answers)[first]])
        theirs.append([data.labels[i] for i in encoded.labels[part][first]])
    return span_f1(ours, theirs)


def ablated(task: Any, backbone: Any, data: Loaded) -> dict[str, float]:
    """Test scores without the modules of layers i to j, by "i-j", and without all, by "all"; nothing is trained again."""
    from intarsia.workflow.ablation_parts import between, stacks_of, without
    from intarsia.workflow.scoring import resident

    (stack,) = stacks_of(task, backbone)
    depth = stack.depth
    variants = {f"{i}-{j}": between(task, stack, i, j) for i in range(depth) for j in range(i, depth)}
    variants["all"] = without(task, lambda site: True)
    found = {}
    for name, variant in variants.items():
        with resident(backbone, [variant]) as bank:
            found[name] = score(bank, variant, data, "test")
    return found


def written(pack: Any, data: Loaded, backbone: Any) -> dict[Job, Run]:
    """BLEU of greedy texts: of all test inputs, of the kinds that were in training, and of those that were not."""
    from intarsia.data import GenerationSource
    from intarsia.heads import Decoding

    encoded = data.splits["test"]
    source = GenerationSource(encoded, 1, pad_id=backbone.pad_id)
    found = {}
    for job, texts in pack.texts(source, Decoding(max_new_tokens=NEW_TOKENS), TOGETHER[1]).items():
        # The learning rates were chosen before.
        found[job] = {"validation": 0.0, "test": bleu(texts, encoded.references)}
        for name, sort in (("seen", False), ("unseen", True)):
            some = [i for i, unseen in enumerate(data.unseen) if unseen == sort]
            if some:
                found[job][name] = bleu([texts[i] for i in some], [encoded.references[i] for i in some])
    return found
