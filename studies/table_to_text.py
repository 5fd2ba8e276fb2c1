"""Table to text: E2E over a small language model, with every kind of method; and with few rows, where the prefix begins.

    python -m studies.table_to_text run --data DIR --members packed --workers 2 --runs packed.jsonl
    python -m studies.table_to_text run --data DIR --members plain --workers 3 --runs plain.jsonl
    python -m studies.table_to_text report --data DIR --runs packed.jsonl plain.jsonl

`run` may be stopped and called again with the same --runs: what is there is not done again. Three parts, of five sorts of jobs:

    main    tune: every learning rate, on a quarter of the rows, one seed; scored by greedy BLEU on the dev split
            final: the best learning rate, all rows, three seeds; beam search on the test split
    few     grope: every learning rate with 200 rows; scored by greedy BLEU on the dev split
            few: 50, 100, 200, 500 rows, five draws; greedy on the test split
    long    as final, several times as many epochs, for the prefix and full fine-tuning

packed: the methods whose steps may be one pass for many runs; those that differ in seed, rate or draw go through the model
together (`intarsia.training.fit_pack`). plain: full fine-tuning and top layers, which train weights of the model, each run by
itself. `run` keeps the generated texts; `report` scores them, and writes results/table_to_text.{json,md} and the plot.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
from studies.pool import Job, Run, add_arguments, ranked, run_jobs

EPOCHS, LONG_EPOCHS, TUNE_SHARE = 1, 3, 4
"""Of the final and of the long runs; the tuning runs take one epoch over the rows divided by the last."""
SIZES, DRAWS = (50, 100, 200, 500), range(5)
TOGETHER_SIZES = ((50, 100), (200, 500))
"""Draws of these go through the model together."""
PARTS = ("main", "few", "long")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A method, the learning rates to choose from, and how the loss is summed."""

    method: Method
    rates: tuple[float, ...]
    loss: Literal["token", "sentence"] = "token"
    final: bool = True
    """Otherwise only its tuning runs are made: what a choice brings."""

    @property
    def alone(self) -> bool:
        """Whether its runs cannot share a pass."""
        return isinstance(self.method, FullFineTuning | TopLayers)


Wanted = Callable[[dict[str, Variant]], dict[str, Variant]]
"""Those of some variants that were asked for."""
LAST_ADAPTER = BottleneckAdapter(width=3, after=(Role.FFN_OUT,), train_layer_norms=False)
"""One adapter a block, as the adapters that the prefix-tuning paper compares with."""
WORDS = "Describe this restaurant in one or two short natural sentences:\n"
REAL = PrefixTuning(length=12, init="text", init_text=WORDS, position_offset=True)
"""With position_offset, the frozen model reads on from the words as if they stood in the text: the same logits."""
VARIANTS: dict[str, Variant] = {
    "prefix 0.1 %": Variant(method=REAL, rates=(2e-4, 5e-4, 1e-3, 2e-3)),
    "full fine-tuning": Variant(method=FullFineTuning(), rates=(1e-4, 3e-4, 6e-4)),
    "prompt 20": Variant(method=PromptTuning(length=20), rates=(2e-2, 6e-2, 2e-1)),
    "adapters 3 %": Variant(method=BottleneckAdapter(width=57), rates=(1e-3, 3e-3, 6e-3)),
    "adapters 0.1 %": Variant(method=LAST_ADAPTER, rates=(5e-3, 1.5e-2, 4e-2)),
    "LoRA r8": Variant(method=LoRA(rank=8), rates=(1e-3, 3e-3, 1e-2, 2e-2)),
    "P-tuning 20": Variant(method=PTuning(length=20), rates=(2e-3, 6e-3, 1.5e-2)),
    "prompt 10": Variant(method=PromptTuning(length=10), rates=(2e-2, 6e-2, 2e-1)),
    "top 2 layers": Variant(method=TopLayers(k=2), rates=(1e-3, 2e-3, 4e-3)),
    "prompt 100": Variant(method=PromptTuning(length=100), rates=(2e-2, 6e-2, 2e-1)),
    "prefix, random": Variant(method=PrefixTuning(length=12), rates=(5e-4, 1e-3), final=False),
    "prefix, flat": Variant(
        method=PrefixTuning(length=12, mid=None, init="text", init_text=WORDS, position_offset=True),
        rates=(5e-3, 2e-2),
        final=False,
    ),
    "prefix, sum loss": Variant(method=REAL, rates=(5e-4, 1e-3), loss="sentence", final=False),
    **{
        f"prefix, random, length {length}": Variant(method=PrefixTuning(length=length), rates=(5e-4, 1e-3), final=False)
        for length in (1, 5, 24, 48)
    },
}
"""The goals' own methods first: that is the order in which they run."""
LONG = {"prefix 0.1 %": 16, "full fine-tuning": 32}
"""Rows of a batch in the long runs: the authors of the prefix took 10, and it wants many steps."""
FEW_RATES = (1e-4, 3e-4, 1e-3)
"""Without 3e-3, which was tried first: best on the one draw that chooses, and then two of five draws of 100 rows diverged."""
FEW: dict[str, Variant] = {
    "prefix, real words": Variant(method=REAL, rates=FEW_RATES),
    "full fine-tuning": Variant(method=FullFineTuning(), rates=(3e-5, 1e-4, 3e-4)),
    "prefix, random": Variant(method=PrefixTuning(length=12, position_offset=True), rates=FEW_RATES),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run")
    add_arguments(run)
    run.add_argument("--backbone", default="embedded:smollm2")
    run.add_argument("--seeds", type=int, default=3, help="of the final and the long runs")
    run.add_argument("--epochs", type=int, default=EPOCHS, help="of the final runs; one for the tuning runs")
    run.add_argument("--long-epochs", type=int, default=LONG_EPOCHS, help="of the long runs")
    run.add_argument("--rows", type=int, help="training rows at most; default all 42,061")
    run.add_argument("--inputs", type=int, help="dev and test inputs at most, to try the script")
    run.add_argument(
        "--few-steps", type=int, default=400, help="steps of a run on few rows; the default is the paper's"
    )
    run.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="only these, in order")
    run.add_argument("--members", choices=("packed", "plain"), help="only these methods; default both")
    run.add_argument("--methods", nargs="+", help="only these methods, in order; default all")
    run.set_defaults(call=start)
    report = commands.add_parser("report")
    report.add_argument("--data", type=Path, required=True)
    report.add_argument("--runs", type=Path, nargs="+", required=True)
    report.set_defaults(call=write_report)
    arguments = parser.parse_args()
    arguments.call(arguments)


def start(arguments: argparse.Namespace) -> None:
    from studies.table_to_text_runs import begin

    run_jobs(arguments, lambda done: todo(done, arguments), begin)


def write_report(arguments: argparse.Namespace) -> None:
    from studies.table_to_text_report import report

    report(arguments.runs, arguments.data)


def todo(done: list[Run], asked: argparse.Namespace) -> list[tuple[Job, ...]]:
    """What can be started now: (sort, variant, learning rate, seed), or ("few", variant, rows, learning rate, draw), in packs.

    Part by part in the order asked for; a study cut short has whole methods of everything that stands in front.
    """

    def wanted(variants: dict[str, Variant]) -> dict[str, Variant]:
        kept = [name for name in (asked.methods or variants) if name in variants]
        groups = {None: (True, False), "plain": (True,), "packed": (False,)}[asked.members]
        return {name: variants[name] for name in kept if variants[name].alone in groups}

    makers = {"main": main_packs, "few": few_packs, "long": long_packs}
    return [pack for part in asked.parts for pack in makers[part](done, wanted, range(asked.seeds))]


def main_packs(done: list[Run], wanted: Wanted, seeds: range) -> Iterator[tuple[Job, ...]]:
    """Tuning and final runs, method by method; those that are only tuned, in one pack at the end."""
    tuned: list[Job] = []
    for name, variant in wanted(VARIANTS).items():
        jobs: list[Job] = [("tune", name, rate, 0) for rate in variant.rates]
        if not variant.final:
            tuned += jobs
            continue
        yield from packed(variant, jobs)
        for rate in best_rate(done, "tune", name, variant):
            yield from packed(variant, [("final", name, rate, seed) for seed in seeds])
    if tuned:
        yield tuple(tuned)


def long_packs(done: list[Run], wanted: Wanted, seeds: range) -> Iterator[tuple[Job, ...]]:
    """The best learning rate of the tuning runs."""
    for name, variant in wanted(VARIANTS).items():
        for rate in best_rate(done, "tune", name, variant) if name in LONG else ():
            yield from packed(variant, [("long", name, rate, seed) for seed in seeds])


def few_packs(done: list[Run], wanted: Wanted, _seeds: range) -> Iterator[tuple[Job, ...]]:
    """The two prefixes together."""
    variants = wanted(FEW)
    plain = [(name, variant) for name, variant in variants.items() if variant.alone]
    shared = [(name, variant) for name, variant in variants.items() if not variant.alone]
    yield tuple(("grope", name, rate, 0) for name, variant in shared for rate in variant.rates)
    for name, variant in plain:
        yield from packed(variant, [("grope", name, rate, 0) for rate in variant.rates])
    for sizes in TOGETHER_SIZES:
        best = [(name, rate) for name, variant in shared for rate in best_rate(done, "grope", name, variant)]
        if len(best) == len(shared):
            yield tuple(("few", name, size, rate, draw) for name, rate in best for size in sizes for draw in DRAWS)
    for draw in DRAWS:
        for name, variant in plain:
            for rate in best_rate(done, "grope", name, variant):
                yield from packed(variant, [("few", name, size, rate, draw) for size in SIZES])


def packed(variant: Variant, jobs: list[Job]) -> list[tuple[Job, ...]]:
    """All together, or each alone where the method wants that."""
    return [(job,) for job in jobs] if variant.alone else [tuple(jobs)]


def best_rate(done: list[Run], sort: str, name: str, variant: Variant) -> list[float]:
    """The learning rate with the best validation score; [] while one is missing."""
    return ranked(done, (sort, name), variant.rates, (0,))[:1]


if __name__ == "__main__":
    main()
