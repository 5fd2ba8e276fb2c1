"""Which versions of a task may have answered a request of the soak."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

Version = str | None
"""A content hash; None: the task is not served."""


@dataclass(slots=True)
class Span:
    """When a version may have answered."""

    version: Version
    since: float
    until: float = float("inf")


class Timeline:
    """Of each task: which versions may answer a request. Two of them while a change is under way."""

    def __init__(self, names: Sequence[str]) -> None:
        self.spans = {name: [Span(None, 0.0)] for name in names}

    def now(self, name: str) -> Version:
        """The version that is served, while nothing changes."""
        return self.spans[name][-1].version

    def begins(self, name: str, version: Version) -> None:
        """From here on the version may answer."""
        self.spans[name].append(Span(version, time.monotonic()))

    def done(self, name: str) -> None:
        """From here on only the newest version may."""
        now = time.monotonic()
        for span in self.spans[name][:-1]:
            span.until = min(span.until, now)
        # No request is under way for so long.
        self.spans[name] = [span for span in self.spans[name] if span.until > now - 120]

    def between(self, name: str, start: float, end: float) -> set[Version]:
        """Those that may have answered a request."""
        return {span.version for span in self.spans[name] if span.since <= end and span.until >= start}
