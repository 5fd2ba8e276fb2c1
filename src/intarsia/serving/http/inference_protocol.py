"""Open Inference Protocol v2 (KServe, Triton clients), its JSON form: a task is a model with one BYTES input, `text`.

`text` has the shape [rows], or [rows, columns] for a task on several text columns. Outputs by kind of task:
classification `label` BYTES [rows] and `scores` FP32 [rows, labels]; multi-label `label` BOOL and `scores` FP32, both
[rows, labels]; regression `prediction` FP32 [rows]; token-classification takes one row, split at its spaces, and gives
`label` BYTES and `scores` FP32 [words]. The labels' order is in the model's metadata. A client may name a version; there is
only the one that is served now.
"""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from intarsia.errors import IntarsiaError
from intarsia.serving.cards import Card
from intarsia.serving.http.bodies import json_only
from intarsia.serving.http.calls import answers, asked
from intarsia.serving.http.classify_schemas import MOST_ANSWERS, finite
from intarsia.serving.http.errors import ApiError, api_error
from intarsia.serving.http.inference_schemas import (
    InferAnswer,
    InferRequest,
    ModelMetadata,
    OutputName,
    ServerMetadata,
    Tensor,
    TensorShape,
    TextTensor,
)
from intarsia.serving.http.schemas import ProtocolErrorAnswer
from intarsia.serving.http.service import Deadline, Question, Service, Serving
from intarsia.serving.requests import Answer, Classify, Tag

router = APIRouter(
    prefix="/v2",
    tags=["Open Inference Protocol"],
    responses={"default": {"model": ProtocolErrorAnswer, "description": "A refusal"}},
)
BINARY = "inference-header-content-length"
"""The header of a body that goes on in bytes after its JSON."""


class AssumeJson:
    """ASGI: Triton's client does not say that its JSON is JSON. A page of another origin may not be silent: browsers name it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v2/"):
            named = {name for name, _ in scope["headers"]}
            if not named & {b"content-type", b"origin", BINARY.encode()}:
                scope["headers"] = [*scope["headers"], (b"content-type", b"application/json")]
        await self.app(scope, receive, send)


async def _json_form(request: Request) -> None:
    if BINARY in request.headers:
        raise ApiError(415, "tensors in binary form are not taken; send the data as JSON (binary_data=False)")
    await json_only(request)


@router.get("")
async def server() -> ServerMetadata:
    """What this server is."""
    from importlib.metadata import version

    return ServerMetadata(version=version("intarsia"))


@router.get("/health/live")
async def live(service: Serving, response: Response) -> dict[str, bool]:
    """200 while the process can answer; 503 when its engine has died and it should be started again."""
    alive = service.engine.state != "dead"
    response.status_code = 200 if alive else 503
    return {"live": alive}


@router.get("/health/ready")
async def ready(service: Serving, response: Response) -> dict[str, bool]:
    """200 when questions are answered; 503 while starting, draining or dead."""
    able = service.engine.state == "ready"
    response.status_code = 200 if able else 503
    return {"ready": able}


@router.get("/models/{task}")
async def metadata(task: str, service: Serving) -> ModelMetadata:
    """A task's version, input and outputs."""
    return _metadata(service.card(task))


@router.get("/models/{task}/versions/{version}")
async def version_metadata(task: str, version: str, service: Serving) -> ModelMetadata:
    """The same where this version is served."""
    return _metadata(_card(service, task, version))


def _metadata(card: Card) -> ModelMetadata:
    columns = len(card.columns) or 1
    shape = [-1] if columns == 1 else [-1, columns]
    return ModelMetadata(
        name=card.name,
        versions=[card.version],
        inputs=[TensorShape(name="text", datatype="BYTES", shape=shape, parameters={"columns": list(card.columns)})],
        outputs=_output_shapes(card),
    )


@router.get("/models/{task}/ready")
async def model_ready(task: str, service: Serving, response: Response) -> dict[str, Any]:
    """200 when this task answers."""
    return _ready(service.card(task), service, response)


@router.get("/models/{task}/versions/{version}/ready")
async def version_ready(task: str, version: str, service: Serving, response: Response) -> dict[str, Any]:
    """200 when this version of the task answers."""
    return _ready(_card(service, task, version), service, response)


def _ready(card: Card, service: Service, response: Response) -> dict[str, Any]:
    able = service.engine.state == "ready"
    response.status_code = 200 if able else 503
    return {"name": card.name, "ready": able}


@router.post("/models/{task}/infer", response_model_exclude_none=True, dependencies=[Depends(_json_form)])
async def infer(task: str, body: InferRequest, request: Request, service: Serving, deadline: Deadline) -> InferAnswer:
    """A task's answers to the rows of `text`. All rows, or an error."""
    return await _infer(task, None, body, request, service, deadline)


@router.post(
    "/models/{task}/versions/{version}/infer",
    response_model_exclude_none=True,
    dependencies=[Depends(_json_form)],
)
async def version_infer(
    task: str, version: str, body: InferRequest, request: Request, service: Serving, deadline: Deadline
) -> InferAnswer:
    """The same where this version is served."""
    return await _infer(task, version, body, request, service, deadline)


async def _infer(
    task: str, version: str | None, body: InferRequest, request: Request, service: Service, deadline: float | None
) -> InferAnswer:
    rows = _rows(body.inputs[0])
    with service.engine.still():  # so that the card is of the version that answers
        card = _card(service, task, version)
        calls = asked(service, _questions(card, rows, deadline))
    found = await answers(request, calls)
    said = [one for one in found if isinstance(one, Answer)]
    if len(said) < len(found):
        raise api_error(next(one for one in found if isinstance(one, IntarsiaError)))
    return InferAnswer(
        model_name=card.name,
        model_version=card.version,
        id=body.id,
        outputs=_chosen(_outputs(card, said), body.outputs),
    )


def _card(service: Service, task: str, version: str | None) -> Card:
    """The task's card; 404 where this version is not the one that is served."""
    card = service.card(task)
    if version not in (None, card.version):
        raise ApiError(404, f"this version of the task is not served; the one that is served now is {card.version}")
    return card


def _rows(tensor: TextTensor) -> list[tuple[str, ...]]:
    """The rows of the input, whether its data is nested as its shape says or flat."""
    count, width = tensor.shape[0], (tensor.shape[1] if len(tensor.shape) == 2 else 1)
    flat = [text for item in tensor.data for text in ([item] if isinstance(item, str) else item)]
    if len(flat) != count * width or not flat:
        raise ApiError(
            422, f"inputs.0: the shape says {count * width} texts, the data has {len(flat)}; at least 1 is needed"
        )
    if count > MOST_ANSWERS:
        raise ApiError(413, f"inputs.0: {count} rows are more than {MOST_ANSWERS} answers; send fewer")
    return [tuple(flat[at : at + width]) for at in range(0, len(flat), width)]


def _questions(card: Card, rows: Sequence[tuple[str, ...]], deadline: float | None) -> list[Question]:
    if card.kind == "generation":
        raise ApiError(422, "this task writes text; ask it through POST /v1/completions")
    if card.kind != "token-classification":
        return [Classify(task=card.name, texts=row, deadline=deadline) for row in rows]
    if len(rows) > 1:
        raise ApiError(
            422, "inputs.0: a token-classification task takes one row a request, or many through POST /v1/tag"
        )
    return [Tag(task=card.name, words=tuple(" ".join(rows[0]).split()), deadline=deadline)]


def _output_shapes(card: Card) -> list[TensorShape]:
    count, names = len(card.labels), {"labels": list(card.labels)}
    label = TensorShape(name="label", datatype="BYTES", shape=[-1], parameters=names)
    scores = TensorShape(name="scores", datatype="FP32", shape=[-1, count], parameters=names)
    return {
        "multi-label": [TensorShape(name="label", datatype="BOOL", shape=[-1, count], parameters=names), scores],
        "regression": [TensorShape(name="prediction", datatype="FP32", shape=[-1])],
        "token-classification": [label, TensorShape(name="scores", datatype="FP32", shape=[-1])],
        "generation": [TensorShape(name="text", datatype="BYTES", shape=[-1])],
    }.get(card.kind, [label, scores])


def _outputs(card: Card, said: Sequence[Answer]) -> list[Tensor]:
    """All outputs of the rows."""
    found = [one.prediction for one in said]
    if card.kind == "regression":
        return [
            Tensor(name="prediction", datatype="FP32", shape=[len(found)], data=finite([p.prediction for p in found]))
        ]
    if card.kind == "token-classification":
        words = len(found[0].label)
        return [
            Tensor(name="label", datatype="BYTES", shape=[words], data=list(found[0].label)),
            Tensor(name="scores", datatype="FP32", shape=[words], data=finite(found[0].scores)),
        ]
    shape = [len(found), len(card.labels)]
    scores = finite([prediction.scores[name] for prediction in found for name in card.labels])
    if card.kind == "multi-label":
        chosen = [name in prediction.label for prediction in found for name in card.labels]
        label = Tensor(name="label", datatype="BOOL", shape=shape, data=chosen)
    else:
        label = Tensor(name="label", datatype="BYTES", shape=shape[:1], data=[prediction.label for prediction in found])
    return [label, Tensor(name="scores", datatype="FP32", shape=shape, data=scores)]


def _chosen(outputs: list[Tensor], wanted: Sequence[OutputName] | None) -> list[Tensor]:
    if not wanted:
        return outputs
    names = {one.name for one in wanted}
    if unknown := names - {output.name for output in outputs}:
        raise ApiError(422, f"outputs: {len(unknown)} of these names are not outputs of this task; GET its metadata")
    return [output for output in outputs if output.name in names]
