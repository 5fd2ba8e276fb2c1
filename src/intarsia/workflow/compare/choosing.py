"""The choice, made on validation scores alone."""

from collections.abc import Sequence

from intarsia.errors import ConfigError
from intarsia.workflow.compare.ledger import Event, Ledger

FINAL = "final"


def complete(runs: Sequence[Event]) -> list[Event]:
    """The final runs that came to their ends."""
    return [run for run in runs if run["stage"] == FINAL and run["stopped"] != "pruned"]


def choose(ledger: Ledger, sign: float) -> str:
    """Writes the choice down, and returns it as a sentence. sign: -1 where a lower value is better.

    By the mean over fresh seeds, among the candidates that have most of them; the task to ship is the best of their runs. Where
    time was too short for any final run: by the last scores that there are. ConfigError where there are none.
    """
    every = list(ledger.all("run"))
    runs, by = complete(every), "the mean validation score over fresh seeds"
    if not runs:
        stages = {run["stage"]: [one for one in every if one["stage"] == run["stage"]] for run in every}
        if not stages:
            why = next((event["message"] for event in ledger.all("failed")), "no run was finished")
            raise ConfigError(f"there is nothing to choose from: {why}")
        runs, by = list(stages.values())[-1], "the validation score of one seed, as no final run was done in time"
    scores: dict[str, list[float]] = {}
    for run in runs:
        scores.setdefault(run["candidate"], []).append(sign * run["value"])
    most = max(map(len, scores.values()))
    means = {name: sum(found) / most for name, found in scores.items() if len(found) == most}
    best = max(means, key=lambda name: means[name])
    own = max((run for run in runs if run["candidate"] == best), key=lambda run: sign * run["value"])
    ledger.add("choice", candidate=best, run=own["run"], by=by)
    return f"chosen by {by}: {best}"
