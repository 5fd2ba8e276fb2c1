"""Settings and candidates of a comparison, for the tests of its pure parts."""

from intarsia.workflow.compare.expansion import expand
from intarsia.workflow.compare.settings import from_mapping

BASE = {"backbone": "b", "data": {"data": "embedded:questions"}, "out": "o"}


def settings(**changes):
    return from_mapping({**BASE, **changes})


def candidates(rows=3200, **changes):
    return expand(settings(**changes), "classification", rows)
