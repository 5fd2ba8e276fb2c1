"""OpenAI's completions, chat and models: a task is a model, and so is the plain backbone under its own name."""

import json
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
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
    MOST_CHOICES,
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
_END = "data: [DONE]\n\n"
NOT_KEPT = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""No proxy on the way keeps a stream back until it is complete."""


@router.post("/v1/completions", response_model=Completion, responses=STREAM, dependencies=[Depends(json_only)])
async def completions(asked: CompletionRequest, request: Request, service: Serving, deadline: Deadline) -> Any:
    """Text that follows a prompt."""
    prompts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
    _check_count(len(prompts), asked.n)
    task = _task(service, asked.model)
    questions = [
        Generate(task=task, prompt=prompt, sampling=sampling, deadline=deadline)
        for prompt in prompts
        for sampling in asked.samplings()
    ]
    frame = _Frame.of(asked)
    if asked.stream:
        return await _stream(service, request, questions, frame)
    done = await generated(service, request, questions)
    return Completion(
        id=frame.id,
        created=frame.created,
        model=asked.model,
        choices=[CompletionChoice(index=i, text=one.text, finish_reason=one.reason) for i, one in enumerate(done)],
        usage=_usage(done, asked.n),
    )


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=STREAM, dependencies=[Depends(json_only)])
async def chat(asked: ChatRequest, request: Request, service: Serving, deadline: Deadline) -> Any:
    """The next turn of a chat, through the chat template of the backbone's tokenizer."""
    _check_count(1, asked.n)
    task, chat = _task(service, asked.model), tuple(message.plain() for message in asked.messages)
    questions = [
        Generate(task=task, prompt="", sampling=sampling, deadline=deadline, chat=chat)
        for sampling in asked.samplings(asked.max_completion_tokens)
    ]
    frame = _Frame.of(asked)
    if asked.stream:
        return await _stream(service, request, questions, frame)
    done = await generated(service, request, questions)
    return ChatCompletion(
        id=frame.id,
        created=frame.created,
        model=asked.model,
        choices=[
            ChatChoice(index=i, message=ChatMessage(content=one.text), finish_reason=one.reason)
            for i, one in enumerate(done)
        ],
        usage=_usage(done, asked.n),
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


def _check_count(prompts: int, each: int) -> None:
    if prompts * each > MOST_CHOICES:
        raise ApiError(
            413, f"{prompts * each} outputs are more than {MOST_CHOICES}; send fewer prompts, or a smaller n"
        )


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

    def piece(self, index: int, text: str | None, reason: str | None = None) -> str:
        """A piece of an output; text None: none is left, and why."""
        choice: dict[str, Any] = {"index": index, "finish_reason": reason, "logprobs": None}
        if isinstance(self.asked, ChatRequest):
            choice["delta"] = {} if text is None else {"content": text}
        else:
            choice["text"] = text or ""
        return self._event([choice])

    def opening(self) -> str:
        """Who speaks: the first events of a chat."""
        delta = {"role": "assistant", "content": ""}
        return "".join(self._event([{"index": i, "finish_reason": None, "delta": delta}]) for i in range(self.asked.n))

    def ending(self, done: Mapping[int, Finished]) -> str:
        """The number of tokens where they were asked for, and the end."""
        options = self.asked.stream_options
        counted = options is not None and options.include_usage
        outputs = [done[index] for index in sorted(done)]
        usage = self._event([], _usage(outputs, self.asked.n).model_dump()) if counted else ""
        return usage + _END

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> str:
        kind = "chat.completion.chunk" if isinstance(self.asked, ChatRequest) else "text_completion"
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.asked.model}
        return _event({**head, "choices": choices, "usage": usage})


async def _stream(service: Service, request: Request, questions: Sequence[Generate], frame: _Frame) -> Response:
    """Server-sent events. A failure before the first one has a status of its own; a later one ends the stream."""
    events = pieces(service, request, questions)
    first = await anext(events)
    return StreamingResponse(_written(frame, first, events), media_type="text/event-stream", headers=NOT_KEPT)


async def _written(
    frame: _Frame, first: tuple[int, Piece | Finished], rest: AsyncGenerator[tuple[int, Piece | Finished]]
) -> AsyncGenerator[str]:
    done: dict[int, Finished] = {}
    async with aclosing(rest):
        if isinstance(frame.asked, ChatRequest):
            yield frame.opening()
        index, event = first
        try:
            while True:
                if isinstance(event, Finished):
                    done[index] = event
                    yield frame.piece(index, None, event.reason)
                elif event.text:
                    yield frame.piece(index, event.text)
                index, event = await anext(rest)
        except StopAsyncIteration:
            yield frame.ending(done)
        except IntarsiaError as error:
            yield _event(body_of(api_error(error))) + _END


def _event(data: Any) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def _usage(done: Sequence[Finished], each: int) -> Usage:
    """Of all outputs; a prompt counts once, however many it has."""
    prompts, new = sum(one.prompt_tokens for one in done[::each]), sum(one.new_tokens for one in done)
    return Usage(prompt_tokens=prompts, completion_tokens=new, total_tokens=prompts + new)
