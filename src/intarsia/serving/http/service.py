"""What every route needs: the engine, the numbers, and how long this request may take."""

import json
import logging
import time
from dataclasses import asdict, dataclass, field
from typing import Annotated

from fastapi import Depends, Header, Request
from pydantic import WithJsonSchema

from intarsia.serving.cards import Card
from intarsia.serving.engine import Engine
from intarsia.serving.http.metrics import Meters
from intarsia.serving.http.post import Post
from intarsia.serving.library import Library
from intarsia.serving.requests import Classify, Generate, Tag

log = logging.getLogger("intarsia.serving")
Question = Classify | Tag | Generate
HOUR_MS = 3_600_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """One server's parts."""

    engine: Engine
    library: Library | None
    meters: Meters
    log_texts: bool
    """Whether each request's texts go to the log."""
    upload_bytes: int
    """The largest task that an admin may upload."""
    since: int
    """When the server began, in seconds of Unix time."""
    post: Post = field(default_factory=Post)

    def card(self, task: str) -> Card:
        """What is known of a task; 404 where there is none."""
        return self.engine.card(task)

    def note(self, question: Question) -> None:
        """Counts an accepted question, and logs it where the person who runs the server asked for that."""
        self.meters.asked(question.task)
        if self.log_texts:
            log.info("%s %s", type(question).__name__, json.dumps(asdict(question), ensure_ascii=False, default=str))


# Dependencies are coroutines though they wait for nothing: the framework runs plain functions on a thread, with two hops.
async def _service(request: Request) -> Service:
    return request.app.state.service


async def _deadline(
    milliseconds: Annotated[
        int | None,
        Header(alias="X-Deadline-Ms", ge=1, le=HOUR_MS, description="Answer within so many milliseconds, or 504."),
        WithJsonSchema({"type": "integer", "minimum": 1, "maximum": HOUR_MS}),  # a header is there or not, never null
    ] = None,
) -> float | None:
    return None if milliseconds is None else time.monotonic() + milliseconds / 1000


Serving = Annotated[Service, Depends(_service)]
Deadline = Annotated[float | None, Depends(_deadline)]
