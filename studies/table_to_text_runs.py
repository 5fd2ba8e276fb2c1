"""The runs of studies.table_to_text: E2E's rows, and what a worker does with a pack of jobs."""

import argparse
import csv
import gzip
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intarsia.errors import DataError
from studies.pool import Job, Run
from studies.table_to_text import FEW, LONG, TUNE_SHARE, VARIANTS

BATCH = 32
LONGEST, TARGET = 192, 96
"""Tokens of input and target together, and of the target; no row of E2E is cut."""
BEAMS, NEW_TOKENS = 5, 72
TOGETHER = {1: 2000, BEAMS: 640}
"""Rows of one call of generate, greedy and with beams."""
FEW_BATCH, GROPE_ROWS = 16, 200


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
    """Rows, and the same as tokens."""
    tokens: Any
    share: Any
    """The tokens of the rows that the tuning runs take."""
    dev: Any
    test: Any
    """GenerationSources."""
    epochs: dict[str, int]
    few_steps: int


def encode(rows: Any, tokenizer: Any) -> Any:
    """The rows as tokens; none is cut."""
    from intarsia.data import encode_generation

    pairs = encode_generation(
        rows, tokenizer, max_length=LONGEST, target_length=TARGET, template=None, encoder_decoder=False
    )
    if pairs.truncated or pairs.truncated_targets:
        raise DataError(f"{pairs.truncated} inputs and {pairs.truncated_targets} targets are too long; raise LONGEST")
    return pairs


def begin(arguments: argparse.Namespace) -> Any:
    """Backbone and data of one worker."""
    from intarsia.backbone import Backbone
    from intarsia.data import GenerationSource, Rows

    def rows(split: str, most: int | None) -> Rows:
        texts, references = rows_of(arguments.data, split)
        return Rows([(text,) for text in texts[:most]], references[:most])

    backbone = Backbone.load(arguments.backbone, dtype="bfloat16", device=arguments.device)
    # The rows lie in order of their inputs; a share of them should be a share of all inputs.
    train = rows("train", None)
    train = train.take(random.Random(0).sample(range(len(train)), arguments.rows or len(train)))
    dev, test = (
        GenerationSource(encode(rows(split, arguments.inputs), backbone.tokenizer), 1, pad_id=backbone.pad_id)
        for split in ("dev", "test")
    )
    epochs = {"tune": 1, "final": arguments.epochs, "long": arguments.long_epochs}
    share = train.take(range(max(BATCH, len(train) // TUNE_SHARE)))
    tokens, part = (encode(some, backbone.tokenizer) for some in (train, share))
    study = Study(backbone, train, tokens, part, dev, test, epochs, arguments.few_steps)
    return lambda jobs: together(jobs, study)


def together(jobs: tuple[Job, ...], study: Study) -> Iterator[tuple[Job, Run]]:
    """Trains and scores jobs of one sort."""
    from intarsia.heads import Decoding
    from studies.members import trained

    sort = jobs[0][0]
    source = study.dev if sort in ("tune", "grope") else study.test
    beams = BEAMS if sort in ("final", "long") else 1
    with trained(study.backbone, [plan(job, study) for job in jobs]) as pack:
        yield from pack.lost()
        written = pack.texts(source, Decoding(max_new_tokens=NEW_TOKENS, beams=beams), TOGETHER[beams])
        for job, texts in written.items():
            score = bleu(texts, source.encoded.references)
            found: Run = {"validation": score} if source is study.dev else {"test": score}
            # The texts are kept where further measures are taken of them.
            kept = {"texts": texts} if beams > 1 else {}
            yield job, {**found, **kept, **pack.facts[job]}


def plan(job: Job, study: Study) -> Any:
    """What a job trains, on which rows and for how long."""
    from intarsia.heads import Head
    from studies.members import Plan, settings

    sort, name, *_, rate, seed = job
    few = sort in ("grope", "few")
    variant = (FEW if few else VARIANTS)[name]
    if few:
        size = GROPE_ROWS if sort == "grope" else job[2]
        # The draw for the learning rates is none of those that count.
        drawn = random.Random(f"{size} {'grope' if sort == 'grope' else seed}")
        rows = encode(study.train.take(drawn.sample(range(len(study.train)), size)), study.backbone.tokenizer)
        chosen = settings(rate, FEW_BATCH, seed, max_steps=study.few_steps)
    else:
        rows = study.share if sort == "tune" else study.tokens
        chosen = settings(rate, LONG[name] if sort == "long" else BATCH, seed, epochs=study.epochs[sort])
    return Plan(
        job=job, method=variant.method, head=Head(kind="generation", loss=variant.loss), rows=rows, settings=chosen
    )


def bleu(texts: list[str], references: list[list[str]]) -> float:
    """As the E2E scorer: lower-cased, 13a, all references."""
    from sacrebleu.metrics.bleu import BLEU

    streams: Any = [[row[i] if i < len(row) else None for row in references] for i in range(max(map(len, references)))]
    return BLEU(lowercase=True, tokenize="13a", force=True).corpus_score(texts, streams).score
