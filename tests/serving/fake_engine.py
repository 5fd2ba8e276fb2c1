"""An engine without a model, for the tests of HTTP alone: it answers at once, or as a test tells it to."""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

from fastapi.testclient import TestClient

from intarsia.serving.cards import Card
from intarsia.serving.counts import Counts
from intarsia.serving.http import Keys, create_app
from intarsia.serving.requests import (
    Answer,
    BadRequest,
    Classify,
    Failed,
    Finished,
    Generate,
    Piece,
    Tag,
    Ticket,
    Unavailable,
    UnknownTask,
)


def card(name: str, kind: str = "classification", labels=("no", "yes"), columns=("text",), **changes: Any) -> Card:
    fields: dict[str, Any] = {
        "name": name,
        "version": f"{hash(name) & 0xFFFF:064x}",
        "method": {"name": "adapter", "width": 4},
        "kind": kind,
        "labels": labels,
        "columns": columns,
        "bytes": 1234,
        "trained_parameters": 308,
        "metrics": {"accuracy": 0.9},
        "resident": True,
    }
    return Card(**{**fields, **changes})


CARDS = (
    card("mood"),
    card("spam"),
    card("pair", columns=("premise", "hypothesis")),
    card("topics", "multi-label", ("art", "law", "sea")),
    card("stars", "regression", ()),
    card("names", "token-classification", ("O", "PER")),
    card("writer", "generation", ()),
)


class FakeEngine:
    """Scores depend on the length of the text alone. `on[task] = f(request, deliver)` replaces what a task does."""

    def __init__(self) -> None:
        self.state = "ready"
        self.backbone = SimpleNamespace(name="tiny", fingerprint="f" * 64, kind="decoder")
        self.found = {one.name: one for one in CARDS}
        self.asked: list[Any] = []
        self.cancelled: list[Any] = []
        self.cancellation = threading.Event()
        self.on: dict[str, Callable] = {}
        self.counts = Counts()

    def cards(self) -> list[Card]:
        return list(self.found.values())

    def card(self, name: str) -> Card:
        if name not in self.found:
            raise UnknownTask("there is no such task; GET /v1/tasks lists them")
        return self.found[name]

    def serves(self, name: str) -> bool:
        return name in self.found

    def still(self) -> Any:
        return nullcontext()

    def gauges(self) -> dict[str, Any]:
        """As the engine's."""
        return {
            **{"queue": 3, "running": 2, "resident": 6, "paged": 1, "bytes_device": 600, "bytes_host": 100},
            **{"tokens_in": 40, "tokens_out": 2, "requests": {("classify", "ok"): len(self.asked)}},
            **{"seconds": self.counts.seconds, "rows": self.counts.rows},
        }

    def submit(self, request: Any, deliver: Callable) -> Ticket:
        if self.state != "ready":
            raise Unavailable(f"the engine is {self.state}")
        if request.task is not None and request.task not in self.found:
            raise UnknownTask("there is no such task; GET /v1/tasks lists them")
        self.asked.append(request)
        if request.task in self.on:
            self.on[request.task](request, deliver)
        else:
            for event in self._events(request):
                deliver(event)
        return Ticket(lambda: self._cancel(request))

    def _cancel(self, request: Any) -> None:
        self.cancelled.append(request)
        self.cancellation.set()

    def _events(self, request: Any) -> list[Any]:
        kind = "generation" if request.task is None else self.found[request.task].kind
        wanted = {"generation": Generate, "token-classification": Tag}.get(kind, Classify)
        if not isinstance(request, wanted):
            raise BadRequest(f"task {request.task!r} is of kind {kind}; ask it elsewhere")
        if isinstance(request, Generate):
            words = ["one ", "two ", "thrée"][: request.sampling.max_tokens]
            pieces = [Piece(word, 1) for word in words]
            return [*pieces, Finished("stop", 3, len(words), "".join(words))]
        if isinstance(request, Classify) and len(request.texts) != len(self.found[request.task].columns):
            raise BadRequest(f"task {request.task!r} takes {len(self.found[request.task].columns)} texts")
        return [Answer(self._prediction(request, self.found[request.task]))]

    def _prediction(self, request: Any, its: Card) -> Any:
        if isinstance(request, Tag):
            chosen = [len(word) % 2 for word in request.words]
            return SimpleNamespace(
                label=[its.labels[i] for i in chosen], prediction=chosen, scores=[0.75] * len(chosen)
            )
        length = len(" ".join(request.texts))
        if its.kind == "regression":
            return SimpleNamespace(label=None, prediction=length / 10, scores=None)
        if its.kind == "multi-label":
            return SimpleNamespace(label=["art", "sea"], prediction=[0, 2], scores={"art": 0.9, "law": 0.1, "sea": 0.8})
        first = 1 / (1 + length)
        chosen = int(first < 0.5)
        scores = {its.labels[0]: first, its.labels[1]: 1 - first}
        return SimpleNamespace(label=its.labels[chosen], prediction=chosen, scores=scores)


def failing(error: Exception) -> Callable:
    """What a task does whose every request fails."""
    return lambda request, deliver: deliver(Failed(error))


def serving(engine: Any, keys: Keys | None = None, **more: Any) -> TestClient:
    """A client of an application over this engine, in this process."""
    return TestClient(create_app(engine, keys, **more), raise_server_exceptions=False)


def refusal(response: Any, status: int, fragment: str = "") -> None:
    """Checks that this is a refusal in the one shape (under /v2 its protocol's), in one line."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    if response.request.url.path.startswith("/v2"):
        error = {"message": error, "type": "", "code": status}
    assert set(error) == {"message", "type", "code"}
    assert error["code"] == status
    assert fragment in error["message"], error["message"]
    assert "\n" not in error["message"]
