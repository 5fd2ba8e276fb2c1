"""The papers' claims on data that we have: what results/ does not answer yet is trained here.

    python -m studies.claims run --part width std length tagging --data DIR --workers 1 --seconds 300 --runs labels.jsonl
    python -m studies.claims run --part "unseen" "size" "text length" --data DIR --workers 1 --seconds 300 --runs texts.jsonl
    python -m studies.claims run --part "unseen, full" "size, full" "tagging, full" --data DIR --workers 6 --runs full.jsonl
    python -m studies.claims report --runs labels.jsonl texts.jsonl full.jsonl

`run` may be stopped and called again with the same --runs: what is there is not done again. The runs of a part on one data set
go through the model together (`intarsia.training.fit_pack`), three seeds of each learning rate; where further seeds are cheap, the
learning rate that is best on the validation split has two more. Full fine-tuning runs by itself: each learning rate with one seed,
the best with the others. Weights are those of the last step.

`report` writes results/claims.{json,md,runs.jsonl}, the plots, and docs/claims.md, with what other studies have left in results/.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from intarsia.methods import BottleneckAdapter, FullFineTuning, HeadOnly, Method, PrefixTuning, PromptTuning, PTuningV2
from studies.pool import Job, Run, add_arguments, ranked, run_jobs
from studies.table_to_text import WORDS

BACKBONES = {"minilm": "embedded:minilm", "smollm2": "embedded:smollm2"}
"""Any other name is that of a folder or of a model on the hub."""
FIRST_SEEDS, MORE_SEEDS = 3, 5
WIDTHS = (8, 16, 32, 64, 128, 256)
STDS = (1e-7, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
ABLATED_STD = 1e-2
"""The paper's own. From the tasks that begin with it, adapters are taken out again, layer by layer."""
LENGTHS = (1, 5, 10, 20, 50, 100)
TEXT_LENGTHS = (1, 5, 10, 20, 40)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A method, and the learning rates to choose from."""

    method: Method
    rates: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Variants that are compared with each other."""

    variants: dict[str, Variant]
    epochs: dict[str, int]
    """By data set."""
    backbones: tuple[str, ...] = ("minilm",)
    more: tuple[str, ...] = ()
    """Data sets on which the best learning rate has further seeds."""
    alone: bool = False
    """Whether its runs cannot share a pass."""


LABELS = {"trec": 8, "mrpc": 10, "sst2": 4}
"""Epochs, as in results/adapters_classification.md."""
FULL = Variant(method=FullFineTuning(), rates=(5e-5, 2e-4))
_TEXT = {"init": "text", "init_text": WORDS, "position_offset": True}
PARTS: dict[str, Part] = {
    "width": Part(
        variants={f"width {m}": Variant(method=BottleneckAdapter(width=m), rates=(1e-3,)) for m in WIDTHS},
        epochs=LABELS,
        more=("trec", "mrpc", "sst2"),
    ),
    "std": Part(
        variants={
            f"std {std:g}": Variant(method=BottleneckAdapter(width=48, init_std=std, init_up="normal"), rates=(1e-3,))
            for std in STDS
        },
        epochs=LABELS,
        more=("trec", "mrpc", "sst2"),
    ),
    "tagging": Part(
        variants={
            "P-tuning v2 20": Variant(method=PTuningV2(), rates=(1e-2, 3e-2)),
            "prompt 20": Variant(method=PromptTuning(), rates=(2e-2, 5e-2)),
            "adapters 48": Variant(method=BottleneckAdapter(width=48), rates=(5e-4, 2e-3)),
            "head": Variant(method=HeadOnly(), rates=(5e-3,)),
        },
        epochs={"slots": 5},
        more=("slots",),
    ),
    "length": Part(
        variants={f"length {n}": Variant(method=PrefixTuning(length=n, mid=None), rates=(1e-2, 3e-2)) for n in LENGTHS},
        epochs=LABELS,
    ),
    # The rates are the best of results/table_to_text.md, tuned on as many rows.
    "unseen": Part(
        variants={
            "prefix 0.1 %": Variant(method=PrefixTuning(length=12, **_TEXT), rates=(5e-4,)),
            "adapters 3 %": Variant(method=BottleneckAdapter(width=57), rates=(6e-3,)),
        },
        epochs={"e2e, seen kinds": 1},
        backbones=("smollm2",),
    ),
    "size": Part(
        variants={"prompt 20": Variant(method=PromptTuning(), rates=(1e-2, 5e-2))},
        epochs={"sst2": 2, "trec": 2},
        backbones=("smollm2", "minilm"),
    ),
    "text length": Part(
        variants={f"length {n}": Variant(method=PrefixTuning(length=n, **_TEXT), rates=(5e-4,)) for n in TEXT_LENGTHS},
        epochs={"e2e": 1},
        backbones=("smollm2",),
    ),
    "unseen, full": Part(
        variants={"full": Variant(method=FullFineTuning(), rates=(3e-4,))},
        epochs={"e2e, seen kinds": 1},
        backbones=("smollm2",),
        alone=True,
    ),
    "size, full": Part(
        variants={"full": FULL}, epochs={"sst2": 2, "trec": 2}, backbones=("smollm2", "minilm"), alone=True
    ),
    "tagging, full": Part(variants={"full": FULL}, epochs={"slots": 5}, alone=True),
}
"""Most telling first."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run")
    add_arguments(run)
    run.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS), help="only these, in order")
    run.add_argument("--backbone", nargs="+", help="minilm, smollm2, a folder ...; default: each part's own")
    run.add_argument("--epochs", type=float, default=1.0, help="share of the full number of epochs, to try the script")
    run.add_argument("--rows", type=int, help="rows of each split at most, to try the script")
    run.set_defaults(call=start)
    report = commands.add_parser("report")
    report.add_argument("--runs", type=Path, nargs="+", default=[], help="default: results/claims.runs.jsonl")
    report.set_defaults(call=write_report)
    arguments = parser.parse_args()
    arguments.call(arguments)


def start(arguments: argparse.Namespace) -> None:
    from studies.claims_runs import begin

    run_jobs(arguments, lambda done: todo(done, arguments.part, arguments.backbone), begin)


def write_report(arguments: argparse.Namespace) -> None:
    from studies.claims_report import report

    report(arguments.runs)


def todo(done: list[Run], parts: list[str], backbones: list[str] | None = None) -> list[tuple[Job, ...]]:
    """What can be started now, in packs of (part, backbone, data, variant, learning rate, seed).

    The first seeds of all parts, then the further ones: a study cut short has three seeds of whatever stands in front.
    """
    asked = [
        (name, backbone, data)
        for name in parts
        for data in PARTS[name].epochs
        for backbone in backbones or PARTS[name].backbones
    ]
    # Of all parts one data set before the next.
    asked.sort(key=lambda what: list(PARTS[what[0]].epochs).index(what[2]))
    first = [pack for what in asked for pack in first_packs(done, *what)]
    return first + [pack for what in asked if what[2] in PARTS[what[0]].more for pack in more_packs(done, *what)]


def first_packs(done: list[Run], name: str, backbone: str, data: str) -> Iterator[tuple[Job, ...]]:
    """Three seeds of everything at once; of what runs alone, those of the best learning rate."""
    part, seeds = PARTS[name], range(FIRST_SEEDS)
    each = [(name, backbone, data, variant, rate) for variant, own in part.variants.items() for rate in own.rates]
    if not part.alone:
        yield tuple((*what, seed) for what in each for seed in seeds)
        return
    yield from (((*what, 0),) for what in each)
    for variant in part.variants:
        for rate in best_rate(done, name, backbone, data, variant, seeds=1):
            yield from (((name, backbone, data, variant, rate, seed),) for seed in seeds[1:])


def more_packs(done: list[Run], name: str, backbone: str, data: str) -> Iterator[tuple[Job, ...]]:
    """The further seeds of each variant's best learning rate, when all have one."""
    best = [(v, rate) for v in PARTS[name].variants for rate in best_rate(done, name, backbone, data, v)]
    if len(best) == len(PARTS[name].variants):
        seeds = range(FIRST_SEEDS, MORE_SEEDS)
        yield tuple((name, backbone, data, *each, seed) for each in best for seed in seeds)


def best_rate(
    done: list[Run], name: str, backbone: str, data: str, variant: str, *, seeds: int = FIRST_SEEDS
) -> list[float]:
    """The learning rate with the best mean validation score; [] while one is missing."""
    return ranked(done, (name, backbone, data, variant), PARTS[name].variants[variant].rates, range(seeds))[:1]


if __name__ == "__main__":
    main()
