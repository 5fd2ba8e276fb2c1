"""What is served, and how it goes: tasks, load, health, numbers for Prometheus."""

from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel

from intarsia.serving.cards import Card
from intarsia.serving.http.classify_schemas import finite
from intarsia.serving.http.service import Serving

router = APIRouter(tags=["server"])


class TaskCard(BaseModel):
    """One task."""

    name: str
    version: str
    """A hash of its content."""
    method: dict[str, Any]
    kind: str
    labels: list[str]
    columns: list[str]
    """The text columns of a row, in the order that they are given in."""
    bytes: int
    trained_parameters: int
    metrics: dict[str, Any]
    """As training ended."""
    resident: bool
    """Whether its tensors are on the device now; else they are paged in from host memory when it is asked."""

    @classmethod
    def of(cls, card: Card) -> "TaskCard":
        return cls(
            name=card.name,
            version=card.version,
            method=finite(card.method),
            kind=card.kind,
            labels=list(card.labels),
            columns=list(card.columns),
            bytes=card.bytes,
            trained_parameters=card.trained_parameters,
            metrics=finite(card.metrics),
            resident=card.resident,
        )


class BackboneCard(BaseModel):
    """The frozen model under all tasks."""

    name: str
    fingerprint: str


class Tasks(BaseModel):
    """Everything that can be asked."""

    tasks: list[TaskCard]
    backbone: BackboneCard


class Latency(BaseModel):
    """Milliseconds, of the answers of the last minute; null without one."""

    p50: float | None
    p95: float | None
    p99: float | None


class Load(BaseModel):
    """The server at this moment."""

    queue: int
    """Requests that wait."""
    running: int
    """Requests that generate."""
    resident: int
    """Tasks on the device."""
    paged: int
    """Tasks in host memory."""
    requests_total: int
    tokens_total: int
    """Tokens read and written."""
    latency_ms: Latency
    uptime_s: float


class Health(BaseModel):
    """`ready`, `starting`, `draining` or `dead`."""

    status: str


@router.get("/health")
async def health(service: Serving, response: Response) -> Health:
    """200 when questions are answered, else 503."""
    state = service.engine.state
    response.status_code = 200 if state == "ready" else 503
    return Health(status=state)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(service: Serving) -> Response:
    """Numbers in Prometheus' text format."""
    text, media_type = service.meters.exposition(service.engine.gauges())
    return Response(text, media_type=media_type)


@router.get("/v1/tasks")
async def tasks(service: Serving) -> Tasks:
    """The tasks and their backbone."""
    backbone = service.engine.backbone
    cards = [TaskCard.of(card) for card in service.engine.cards()]
    return Tasks(tasks=cards, backbone=BackboneCard(name=backbone.name, fingerprint=backbone.fingerprint))


@router.get("/v1/tasks/{name}")
async def task(name: str, service: Serving) -> TaskCard:
    """One of the tasks."""
    return TaskCard.of(service.card(name))


@router.get("/v1/load")
async def load(service: Serving) -> Load:
    """What the page draws, once a second."""
    return Load.model_validate(service.meters.load(service.engine.gauges()))
