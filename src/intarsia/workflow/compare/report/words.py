"""What the tables mean, in sentences; the page, its Markdown twin and the terminal share them."""

import platform
from collections.abc import Sequence

from intarsia.workflow.compare.budget import WORTHWHILE
from intarsia.workflow.compare.report.cells import duration, plus_minus, shown, size
from intarsia.workflow.compare.statistics import interval, proportion_error
from intarsia.workflow.compare.summary import Row, Summary

SIGNIFICANT = 0.05
SHORT = 0.7
"""Share of a recipe's length below which a reader is warned."""


def title(summary: Summary) -> str:
    """Data and backbone."""
    settings = summary.start["settings"]
    data = settings["data"].get("data") or settings["data"].get("train") or "files"
    return f"{str(data).rpartition('/')[2]} over {settings['backbone'].rpartition('/')[2]}"


def verdict(summary: Summary) -> list[str]:
    """The answer, first what was chosen."""
    best, baseline = summary.best, summary.baseline
    said = [_chosen(summary, best)]
    if baseline is not None and best is not baseline:
        said.append(_against(summary, best, baseline))
    if best is baseline:
        sharing = next((row for row in summary.finals if row is not baseline), None)
        if sharing is not None:
            said.append(
                f"Best of those that share the backbone: {_scored(summary, sharing)}. {_against(summary, sharing, best)}"
            )
    if not best.final:
        said.append(
            "The budget was too short for fresh seeds: this is the choice of one short run, and no more than a hint."
        )
    if (shares := _shares(summary)) and max(shares) < WORTHWHILE:
        said.append(
            f"The final runs had only {_range(shares)} % of their recipes' length: a hint, and no more; give it more time."
        )
    if short := _seeds_short(summary):
        said.append(short)
    return said


def cautions(summary: Summary) -> list[str]:
    """What a reader should know before trusting it."""
    said = []
    tested = [row.against for row in summary.finals if row.against is not None]
    if made := [one for one in tested if one.p is not None]:
        tests = " or ".join(sorted({one.test for one in made}))
        said.append(
            f"Against full fine-tuning: {tests}, two-sided; p is corrected for {len(made)} method{'s' * (len(made) > 1)} (Holm). "
            "With few seeds only large differences can show."
        )
    elif tested:
        said.append(
            "Against full fine-tuning no test was made: that takes two seeds at least, and differences that vary."
        )
    rows = summary.start["rows"]["test" if summary.tested else "validation"]
    if summary.metric == "accuracy" and rows:
        mean = interval(list(summary.best.scores("accuracy").values())).mean
        counted = f"{rows:,} rows"
        if summary.start["kind"] == "token-classification" and "confusion" in summary.answers:
            rows = sum(map(sum, summary.answers["confusion"]))
            counted = f"{rows:,} words"
        error = 100 * proportion_error(mean, rows)
        said.append(
            f"The intervals are over seeds. The {summary.split()} split has {counted}, which by themselves give an accuracy of "
            f"{100 * mean:.1f} % a standard error of {error:.1f} points."
        )
    if summary.tested:
        said.append("The ranking and the choice are by validation scores; the test split was scored after the choice.")
    else:
        said.append(
            "There is no labelled test split: these are validation scores, by which the choice was made, so they flatter."
        )
    shares = _shares(summary)
    if shares and min(shares) < SHORT:
        said.append(
            f"The final runs had {_range(shares)} % of their recipes' length, for want of time: methods that start slowly look "
            "worse here than they are."
        )
    if summary.cut:
        said.append(f"Cut short by the budget, and not counted: {', '.join(summary.cut)}.")
    if summary.not_tried:
        said.append(f"Not tried for want of time: {_grouped(summary.not_tried)}.")
    said += [f"Left out: {event['shape']}: {event['why']}" for event in summary.left_out]
    said += [f"Failed: {event['run']}: {event['message']}" for event in summary.failed]
    return said


def _shares(summary: Summary) -> list[float]:
    """Of their recipes' length, of the final runs."""
    return [row.steps / row.full_steps for row in summary.finals if row.full_steps]


def _range(shares: Sequence[float]) -> str:
    low, high = (f"{100 * share:.0f}" for share in (min(shares), max(shares)))
    return low if low == high else f"{low} to {high}"


def _grouped(candidates: Sequence[str]) -> str:
    """`lora rank 8 lr 0.001, 0.004; full lr 3e-05`."""
    rates: dict[str, list[str]] = {}
    for name in candidates:
        shape, _, rate = name.rpartition(" lr ")
        rates.setdefault(shape, []).append(rate)
    return "; ".join(f"{shape} lr {', '.join(found)}" for shape, found in rates.items())


def how(summary: Summary) -> list[str]:
    """How it was done, and on what."""
    start = summary.start
    rows = ", ".join(f"{count:,} {name}" for name, count in start["rows"].items() if count)
    budget = "no budget" if summary.budget is None else f"of a budget of {duration(summary.budget)}"
    commit, dash, changed = (start["commit"] or "unknown").partition("-")
    hardware, versions = start["hardware"], start["versions"]
    where = ", ".join(
        filter(None, [", ".join(hardware["gpus"]), hardware["cpu"] or platform.machine(), f"{hardware['cores']} cores"])
    )
    return [
        f"{rows} rows; {start['kind']}; {start['backbone_parameters']:,} parameters in {start['dtype']} on {start['device']}.",
        f"{duration(summary.spent)} in all, {budget}. Successive halving over the candidates with one seed, then fresh seeds of "
        "the best of each method that went on.",
        "Time is a run's share of the packs that were trained, from its measured steps; memory is the largest of the whole "
        "process while it trains alone (on a GPU, of the GPU). A thousand tasks share one backbone on disk; "
        "each of them is its own part and a thousandth of the backbone.",
        f"{where}; {', '.join(f'{name} {version}' for name, version in versions.items())}; commit {commit[:10]}{dash}{changed}.",
    ]


def _chosen(summary: Summary, best: Row) -> str:
    return f"{_scored(summary, best)}: chosen by {summary.choice['by']}."


def _scored(summary: Summary, row: Row) -> str:
    seeds = f" over {len(row.validation)} seeds" if len(row.validation) > 1 else ""
    score = plus_minus(summary.score(row), summary.metric)
    what = f"{summary.split()} {summary.metric.replace('_', ' ')}"
    return f"{row.shape} at learning rate {row.learning_rate:g}, {what} {score}{seeds}"


def _against(summary: Summary, row: Row, baseline: Row) -> str:
    disk, mine = summary.many(baseline)[0], summary.many(row)[0]
    theirs = plus_minus(summary.score(baseline), summary.metric)
    cost = (
        f"It trains {100 * row.parameters / max(1, baseline.parameters):.2g} % as many parameters, and 1,000 such tasks take "
        f"{size(mine)} on disk instead of {size(disk)}."
    )
    if row.against is None:
        return f"Full fine-tuning: {theirs}. {cost}"
    mean = row.against.mean
    gain = mean if summary.higher else -mean
    word = "ahead of" if gain > 0 else "behind" if gain < 0 else "level with"
    by = "" if gain == 0 else f" by {shown(abs(mean), summary.metric)}"
    if row.p is None:
        sure = "no test can tell whether that is chance"
    else:
        sure = f"{'significant' if row.p < SIGNIFICANT else 'not significant'}, p = {row.p:.2g}"
    return f"It is {word} full fine-tuning ({theirs}){by}: {sure}. {cost}"


def _seeds_short(summary: Summary) -> str:
    asked, done = summary.start["settings"]["seeds"], len(summary.best.validation)
    return f"Time was enough for {done} of {asked} seeds." if summary.best.final and done < asked else ""


__all__: Sequence[str] = ("cautions", "how", "title", "verdict")
