"""Is what `intarsia compare` chooses in ten minutes as good as the best of an exhaustive grid?

    python -m studies.compare_choice choose --data embedded:questions embedded:movies --budget 10m --out DIR
    python -m studies.compare_choice grid --out DIR
    python -m studies.compare_choice report --out DIR

For each data set: a comparison within its budget; then every candidate that it could have tried, each with fresh seeds, at the
length of the comparison's own final runs (`--length recipe`: at the full length of the recipes). The choice is one of them. `best`
is the candidate with the highest mean test score of all, found with all knowledge; the choice should lie within one standard
deviation (over the best's own seeds) of it. Both may be stopped and called again. A grid runs in packs, and may
run on another machine than the comparison: it needs only DIR/*/choice.json. What has been trained is kept, line by line, in
DIR/*/LENGTH.jsonl; those of the page lie in results/compare_choice.
"""

import argparse
import json
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import machine, write_results

SEEDS = range(101, 104)
"""None of them is a comparison's own."""
TOGETHER = 64
"""Runs of a pack on a GPU; on a CPU they are taken in turn anyway, and a small pack loses less when it is stopped."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    choose = commands.add_parser("choose")
    choose.add_argument("--data", nargs="+", default=["embedded:questions", "embedded:movies"])
    choose.add_argument("--backbone", default="embedded:minilm")
    choose.add_argument("--methods", default=None, help="as for intarsia compare")
    choose.add_argument("--budget", default="10m")
    choose.add_argument("--device", default="auto")
    choose.add_argument("--out", type=Path, required=True)
    choose.set_defaults(call=choose_all)
    grid = commands.add_parser("grid")
    grid.add_argument("--seeds", type=int, default=len(SEEDS), help="of each candidate")
    grid.add_argument("--length", choices=["own", "recipe"], default="own", help="of the runs")
    grid.add_argument("--device", default="auto")
    grid.add_argument("--out", type=Path, required=True)
    grid.set_defaults(call=grid_all)
    report = commands.add_parser("report")
    report.add_argument("--out", type=Path, required=True)
    report.set_defaults(call=write_report)
    arguments = parser.parse_args()
    arguments.call(arguments)


def choose_all(arguments: argparse.Namespace) -> None:
    from intarsia.workflow.compare import compare, resolve
    from intarsia.workflow.compare.live import open_view

    for data in arguments.data:
        folder = arguments.out / data.rpartition(":")[2]
        flags = {
            "backbone": arguments.backbone,
            "data.data": data,
            "methods": arguments.methods,
            "budget": arguments.budget,
            "device": arguments.device,
        }
        settings = resolve(None, {**flags, "out": folder / "compare"})
        view = open_view()
        found = compare(settings, resume=(folder / "compare").exists(), view=view)
        view.stop()
        facts = {
            "data": data,
            "flags": flags,
            "chosen": found.best.candidate,
            "spent": found.spent,
            "budget": settings.budget,
            "metric": found.metric,
            "higher": found.higher,
            "steps": found.best.steps,
            "about": machine(),
        }
        (folder / "choice.json").write_text(json.dumps(facts, indent=1))
        print(data, facts["chosen"], f"{found.spent:.0f} s", flush=True)


def grid_all(arguments: argparse.Namespace) -> None:
    from intarsia.workflow.compare import resolve
    from intarsia.workflow.training import load_backbone

    backbone = None
    for choice in sorted(arguments.out.glob("*/choice.json")):
        facts = json.loads(choice.read_text())
        folder = choice.parent
        settings = resolve(None, {**facts["flags"], "device": arguments.device, "out": folder / "unused"})
        backbone = backbone or load_backbone(settings.base)
        steps = None if arguments.length == "recipe" else facts["steps"]
        run_grid(settings, backbone, folder, arguments.length, steps, arguments.seeds)
        if found := finished(folder, arguments.length):
            print(verdict(facts | {"length": arguments.length, "runs": found}), flush=True)


def finished(folder: Path, length: str) -> list[dict[str, Any]]:
    """The runs that are done, as DIR/*/LENGTH.jsonl has them; those that lie beside it and are not in it yet come in."""
    path = folder / f"{length}.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {(line["candidate"], line["seed"]) for line in lines}
    for described in sorted((folder / f"grid-{length}").glob("*/task.json")):
        metrics = json.loads(described.read_text())["metrics"]
        test = {name.removeprefix("test_"): value for name, value in metrics.items() if name.startswith("test_")}
        candidate, _, seed = described.parent.name.rpartition("-seed-")
        if test and (candidate, int(seed)) not in known:
            hardware = machine()["hardware"]
            on = (hardware["gpus"] or [hardware["cpu"]])[0]
            lines.append({"candidate": candidate, "seed": int(seed), "test": test, "on": on})
    if not lines:
        return []
    lines.sort(key=lambda line: (line["candidate"], line["seed"]))
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
    temporary.replace(path)
    return lines


def run_grid(settings: Any, backbone: Any, folder: Path, length: str, steps: int | None, seeds: int) -> None:
    """Every candidate with every seed; what has been done is not done again."""
    from intarsia.data import load_data
    from intarsia.workflow.compare.expansion import expand, member, slug
    from intarsia.workflow.pack import run_pack

    known = {(line["candidate"], line["seed"]) for line in finished(folder, length)}
    splits = load_data(settings.base.data.spec())
    wanted = []
    for seed in SEEDS[:seeds]:
        for one in expand(settings, splits.kind, len(splits.split("train"))):
            count = one.steps if steps is None else min(steps, one.steps)
            own = folder / f"grid-{length}" / slug(f"{one.name} seed {seed}")
            if (slug(one.name), seed) not in known:
                wanted.append(member(settings, one, folder=own, seed=seed, steps=count, evaluations=4))
    together = TOGETHER if backbone.device.type == "cuda" else 4
    for at in range(0, len(wanted), together):
        run_pack(wanted[at : at + together], resume=True, score_test=True, backbone=backbone)
        print(f"{min(at + together, len(wanted))} of {len(wanted)} runs of the grid", flush=True)


def verdict(facts: dict[str, Any]) -> dict[str, Any]:
    """Where the choice stands among all candidates, by mean test score over fresh seeds."""
    from intarsia.workflow.compare.expansion import slug

    sign = 1 if facts["higher"] else -1
    scores: dict[str, list[float]] = {}
    for run in facts["runs"]:
        scores.setdefault(run["candidate"], []).append(run["test"][facts["metric"]])
    means = {name: statistics.fmean(values) for name, values in scores.items()}
    machines = Counter(run["on"] for run in facts["runs"])
    order = sorted(means, key=lambda name: -sign * means[name])
    best, chosen = order[0], slug(facts["chosen"])
    spread = statistics.stdev(scores[best]) if len(scores[best]) > 1 else None
    behind = sign * (means[best] - means[chosen])
    return {
        "data": facts["data"],
        "length": facts["length"],
        "budget s": facts["budget"],
        "spent s": round(facts["spent"], 1),
        "chosen": chosen,
        "test of the choice": round(means[chosen], 4),
        "rank": f"{order.index(chosen) + 1} of {len(order)}",
        "best of the grid": best,
        "test of the best": round(means[best], 4),
        "std of the best": None if spread is None else round(spread, 4),
        "behind": round(behind, 4),
        "within one std": "yes" if behind <= (spread or 0.0) else "no" if spread is not None else "not known",
        "mean of the grid": round(statistics.fmean(means.values()), 4),
        "seeds": min(len(own) for own in scores.values()),
        "runs": len(facts["runs"]),
        "grid on": ", ".join(f"{name}: {count}" for name, count in machines.most_common()),
    }


def write_report(arguments: argparse.Namespace) -> None:
    found = []
    for choice in sorted(arguments.out.glob("*/choice.json")):
        facts = json.loads(choice.read_text())
        runs = {length: finished(choice.parent, length) for length in ("own", "recipe")}
        found += [facts | {"length": length, "runs": own} for length, own in runs.items() if own]
    if not found:
        raise SystemExit(f"{arguments.out} holds no finished grid; call `choose` and `grid` first")
    rows = [verdict(facts) for facts in found]
    write_results(
        "compare_choice",
        "What compare chooses, against every candidate",
        rows,
        text=summary(rows),
        about=found[-1]["about"],
    )


def summary(rows: Sequence[dict[str, Any]]) -> str:
    held = sum(row["within one std"] == "yes" for row in rows)
    return (
        "`intarsia compare` within its budget, then every candidate that it could have tried, each trained with fresh seeds and "
        "scored on the test split. `own`: at the length of the comparison's own final runs; `recipe`: at the recipes' full length, "
        "so that it is also asked whether a choice after short training holds after long. `seeds`: that every candidate has at "
        "least; a grid that was stopped has fewer. The best of the grid is the best by "
        "test score itself, so it is flattered by its luck; the choice saw no test score.\n\n"
        f"The choice is within one standard deviation of the best in {held} of {len(rows)}."
    )


if __name__ == "__main__":
    main()
