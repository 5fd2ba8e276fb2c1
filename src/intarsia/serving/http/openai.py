"""OpenAI's completions, chat and models: a task is a model, and so is the plain backbone under its own name."""

import json
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse

from intarsia.errors import IntarsiaError
from intarsia.serving.http.bodies import json_only
from intarsia.serving.http.calls import generated, pieces
from intarsia.serving.http.errors import ApiError, api_error, body_of
from intarsia.serving.http.openai_schemas import (
    ChatChoice,
    ChatCompletion,
    ChatMessage,
    ChatRequest,
    Completion,
    CompletionChoice,
    CompletionRequest,
    Model,
    Models,
    Usage,
)
from intarsia.serving.http.service import Deadline, Service, Serving
from intarsia.serving.requests import Finished, Generate, Piece

router = APIRouter(tags=["OpenAI"])
STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
NOT_KEPT = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""No proxy on the way keeps a stream back until it is complete."""


@router.post("/v1/completions", response_model=Completion, responses=STREAM, dependencies=[Depends(json_only)])
async def completions(asked: CompletionRequest, request: Request, service: Serving, deadline: Deadline) -> Any:
    """Text that follows a prompt."""
    prompt = asked.prompt if isinstance(asked.prompt, str) else asked.prompt[0]
    question = Generate(task=_task(service, asked.model), prompt=prompt, sampling=asked.sampling(), deadline=deadline)
    frame = _Frame.of(asked)
    if asked.stream:
        return await _stream(service, request, question, frame)
    done = await generated(service, request, question)
    return Completion(
        id=frame.id,
        created=frame.created,
        model=asked.model,
        choices=[CompletionChoice(text=done.text, finish_reason=done.reason)],
        usage=_usage(done),
    )


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=STREAM, dependencies=[Depends(json_only)])
async def chat(asked: ChatRequest, request: Request, service: Serving, deadline: Deadline) -> Any:
    """The next turn of a chat, through the chat template of the backbone's tokenizer."""
    question = Generate(
        task=_task(service, asked.model),
        prompt="",
        sampling=asked.sampling(asked.max_completion_tokens),
        deadline=deadline,
        chat=tuple(message.plain() for message in asked.messages),
    )
    frame = _Frame.of(asked)
    if asked.stream:
        return await _stream(service, request, question, frame)
    done = await generated(service, request, question)
    return ChatCompletion(
        id=frame.id,
        created=frame.created,
        model=asked.model,
        choices=[ChatChoice(message=ChatMessage(content=done.text), finish_reason=done.reason)],
        usage=_usage(done),
    )


@router.get("/v1/models")
async def models(service: Serving) -> Models:
    """The generation tasks, and the backbone where it writes text itself."""
    return Models(data=_models(service))


@router.get("/v1/models/{model:path}")
async def model(model: str, service: Serving) -> Model:
    """One of them."""
    for one in _models(service):
        if one.id == model:
            return one
    raise ApiError(404, "no such model; GET /v1/models lists them")


def _models(service: Service) -> list[Model]:
    names = [card.name for card in service.engine.cards() if card.kind == "generation"]
    backbone = service.engine.backbone
    if backbone.kind == "decoder" and backbone.name not in names:
        names.append(backbone.name)
    return [Model(id=name, created=service.since) for name in names]


def _task(service: Service, model: str) -> str | None:
    """The task of that name; None, the plain backbone, for the backbone's own name, unless a task goes by it."""
    if model == service.engine.backbone.name and not service.engine.serves(model):
        return None
    return model


@dataclass(frozen=True, slots=True)
class _Frame:
    """What all parts of one answer have in common, and how a part is written as a server-sent event."""

    asked: CompletionRequest | ChatRequest
    id: str
    created: int

    @classmethod
    def of(cls, asked: CompletionRequest | ChatRequest) -> "_Frame":
        start = "chatcmpl" if isinstance(asked, ChatRequest) else "cmpl"
        return cls(asked, f"{start}-{uuid.uuid4().hex}", int(time.time()))

    def piece(self, text: str | None, reason: str | None = None) -> str:
        """A piece of the output; text None: none is left."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason, "logprobs": None}
        if isinstance(self.asked, ChatRequest):
            choice["delta"] = {} if text is None else {"content": text}
        else:
            choice["text"] = text or ""
        return self._event([choice])

    def opening(self) -> str:
        """Who speaks: the first event of a chat."""
        return self._event([{"index": 0, "finish_reason": None, "delta": {"role": "assistant", "content": ""}}])

    def ending(self, done: Finished) -> str:
        """Why it ends, and the number of tokens where they were asked for."""
        options = self.asked.stream_options
        counted = options is not None and options.include_usage
        usage = self._event([], _usage(done).model_dump()) if counted else ""
        return self.piece(None, done.reason) + usage

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> str:
        kind = "chat.completion.chunk" if isinstance(self.asked, ChatRequest) else "text_completion"
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.asked.model}
        return _event({**head, "choices": choices, "usage": usage})


async def _stream(service: Service, request: Request, question: Generate, frame: _Frame) -> Response:
    """Server-sent events. A failure before the first one has a status of its own; a later one ends the stream."""
    events = pieces(service, request, question)
    first = await anext(events)
    return StreamingResponse(_written(frame, first, events), media_type="text/event-stream", headers=NOT_KEPT)


async def _written(
    frame: _Frame, first: Piece | Finished, rest: AsyncGenerator[Piece | Finished]
) -> AsyncGenerator[str]:
    async with aclosing(rest):
        if isinstance(frame.asked, ChatRequest):
            yield frame.opening()
        event = first
        try:
            while isinstance(event, Piece):
                if event.text:
                    yield frame.piece(event.text)
                event = await anext(rest)
        except IntarsiaError as error:
            yield _event(body_of(api_error(error)))
        else:
            yield frame.ending(event)
        yield "data: [DONE]\n\n"


def _event(data: Any) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def _usage(done: Finished) -> Usage:
    return Usage(
        prompt_tokens=done.prompt_tokens,
        completion_tokens=done.new_tokens,
        total_tokens=done.prompt_tokens + done.new_tokens,
    )
