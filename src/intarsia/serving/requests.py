"""What can be asked of the engine, what comes back, and how it can fail.

IntarsiaError
└── RequestError              one request cannot be answered; `status` is HTTP's
    ├── BadRequest        422 it says something that the task cannot take
    ├── UnknownTask       404 no task has this name
    ├── TooLarge          413 its text is too long
    ├── Busy              429 the queue is full; `retry_after` seconds
    ├── Unavailable       503 the engine is starting, draining or dead
    ├── DeadlineExceeded  504 its time is over
    ├── EngineFailure     500 the model failed on it, also when it was tried alone
    └── NoMemory          507 the device has none left for a task that comes
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from intarsia.errors import IntarsiaError
from intarsia.rows import Prediction
from intarsia.serving.sampling import Sampling


class RequestError(IntarsiaError):
    """One request cannot be answered."""

    status: ClassVar[int] = 422


class BadRequest(RequestError):  # noqa: N818 - HTTP's word
    """It says something that the task cannot take."""


class UnknownTask(RequestError):  # noqa: N818
    """No task has this name."""

    status = 404


class TooLarge(RequestError):  # noqa: N818
    """Its text is too long."""

    status = 413


class Busy(RequestError):  # noqa: N818
    """The queue is full."""

    status = 429

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds after which it is worth another try."""


class Unavailable(RequestError):  # noqa: N818
    """The engine is starting, draining or dead."""

    status = 503


class DeadlineExceeded(RequestError):  # noqa: N818
    """Its time was over before it was answered."""

    status = 504


class EngineFailure(RequestError):  # noqa: N818
    """The model failed on it, also when it was tried alone."""

    status = 500


class NoMemory(RequestError):  # noqa: N818
    """The device has none left for a task that comes."""

    status = 507


@dataclass(frozen=True, kw_only=True, slots=True)
class Classify:
    """Labels and scores for one row of a classification, multi-label or regression task."""

    task: str
    texts: tuple[str, ...]
    """All text columns of the row."""
    deadline: float | None = None
    """By time.monotonic()."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tag:
    """A label for each word, from a token-classification task."""

    task: str
    words: tuple[str, ...]
    deadline: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Generate:
    """A text that goes on from a prompt."""

    task: str | None
    """None: the plain backbone."""
    prompt: str
    """A task reads it as its text; one with several text columns takes a JSON object of them."""
    sampling: Sampling
    deadline: float | None = None
    chat: tuple[dict[str, str], ...] | None = None
    """Messages ({"role", "content"}) instead of a prompt: through the tokenizer's chat template on the plain backbone; a task
    reads the last message of the user."""


Request = Classify | Tag | Generate


@dataclass(frozen=True, slots=True)
class Answer:
    """The end of a Classify or Tag."""

    prediction: Prediction


@dataclass(frozen=True, slots=True)
class Piece:
    """Some more of a generated text."""

    text: str
    tokens: int
    """New tokens since the last piece."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a Generate."""

    reason: str
    """`stop`: the model or a stop text ended it; `length`: max_tokens did."""
    prompt_tokens: int
    new_tokens: int
    text: str
    """All of it."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The end of a request that could not be answered."""

    error: RequestError


Event = Answer | Piece | Finished | Failed
Deliver = Callable[[Event], None]
"""Called on the engine's thread for each event; must not block."""


class Ticket:
    """A request that was taken."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel

    def cancel(self) -> None:
        """Nobody wants the answer any more; no event comes after the engine has seen it. May be called at any time."""
        self._cancel()
