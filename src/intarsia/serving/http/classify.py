"""`POST /v1/classify` and `POST /v1/tag`: one or many tasks on one or many texts, scores side by side."""

import math
from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated, Any, Self

from fastapi import APIRouter, Depends, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from intarsia.errors import IntarsiaError
from intarsia.serving.http.bodies import json_only
from intarsia.serving.http.calls import answers
from intarsia.serving.http.errors import ApiError, ErrorBody, Str, api_error, body_of
from intarsia.serving.http.service import Deadline, Question, Service, Serving
from intarsia.serving.requests import Answer, Classify, Tag

MOST_ANSWERS = 512
"""Texts times tasks of one request: half of the engine's queue, so that no single request can fill it."""

TaskName = Annotated[Str, Field(min_length=1, max_length=200)]
Text = Str | list[Str]


class Texts(BaseModel):
    """Texts for tasks. A text is a string, or a list with one string for each of the task's text columns."""

    model_config = ConfigDict(extra="forbid")

    task: TaskName | Annotated[list[TaskName], Field(min_length=1, max_length=MOST_ANSWERS)]
    """One task, or several that all answer every text."""
    text: Text | None = None
    texts: Annotated[list[Text], Field(min_length=1, max_length=MOST_ANSWERS)] | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.text is None) == (self.texts is None):
            raise ValueError("give `text` for one text, or `texts` for many, and not both")
        return self

    @property
    def tasks(self) -> list[str]:
        return [self.task] if isinstance(self.task, str) else self.task

    @property
    def rows(self) -> list[Text]:
        return self.texts if self.texts is not None else [self.text or ""]


class TaskAnswer(BaseModel):
    """What one task says of one text."""

    task: str
    label: str | list[str | None] | None = None
    """The label; of a multi-label task all labels above 0.5; of /v1/tag one a word, null for a word that was cut off;
    null for a regression task."""
    prediction: int | float | list[int | None] | None = None
    """The label's number, or numbers; of a regression task, its answer."""
    scores: dict[str, float | None] | list[float | None] | None = None
    """The probability of every label; of /v1/tag, that of the label chosen for each word."""
    error: ErrorBody | None = None
    """Why there is no answer. Where nothing at all was answered, the whole request gets this error's status instead."""


class TextAnswers(BaseModel):
    """All answers for one text."""

    text: Text
    answers: list[TaskAnswer]


class Results(BaseModel):
    """Texts in the order that they came, tasks in the order that they were named."""

    results: list[TextAnswers]


class Straight(APIRoute):
    """Takes a question that is as it should be past the framework's dependencies, over a quarter of the time that HTTP takes
    (results/http.md). All others go its way, and its refusals are theirs."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request."""
        usual = super().get_route_handler()

        async def answered(request: Request) -> Response:
            headers = request.headers
            if headers.get("content-type") != "application/json" or "x-deadline-ms" in headers:
                return await usual(request)
            try:
                question = Texts.model_validate_json(await request.body())
            except ValidationError:
                return await usual(request)
            results: Results = await self.endpoint(question, request, request.app.state.service, None)
            return Response(results.model_dump_json(exclude_unset=True), media_type="application/json")

        return answered


router = APIRouter(tags=["tasks"], dependencies=[Depends(json_only)], route_class=Straight)


@router.post("/v1/classify", response_model_exclude_unset=True)
async def classify(question: Texts, request: Request, service: Serving, deadline: Deadline) -> Results:
    """Labels and scores of classification, multi-label and regression tasks."""

    def ask(task: str, row: Text) -> Classify:
        return Classify(task=task, texts=(row,) if isinstance(row, str) else tuple(row), deadline=deadline)

    return await _asked(question, request, service, ask)


@router.post("/v1/tag", response_model_exclude_unset=True)
async def tag(question: Texts, request: Request, service: Serving, deadline: Deadline) -> Results:
    """A label for every word (token-classification tasks). A text is a list of words, or a string split at its spaces."""

    def ask(task: str, row: Text) -> Tag:
        return Tag(task=task, words=tuple(row.split()) if isinstance(row, str) else tuple(row), deadline=deadline)

    return await _asked(question, request, service, ask)


async def _asked(question: Texts, request: Request, service: Service, ask: Callable[[str, Text], Question]) -> Results:
    """Every task on every row."""
    tasks, rows = question.tasks, question.rows
    if len(tasks) * len(rows) > MOST_ANSWERS:
        raise ApiError(
            413, f"{len(rows)} texts for {len(tasks)} tasks are more than {MOST_ANSWERS} answers; send fewer"
        )
    questions = [ask(task, row) for row in rows for task in tasks]
    found = await answers(service, request, questions)
    refuse_if_nothing(found)
    said = iter(found)
    return Results(
        results=[TextAnswers(text=row, answers=[_answer(task, next(said)) for task in tasks]) for row in rows]
    )


def refuse_if_nothing(found: Sequence[Answer | IntarsiaError]) -> None:
    """Where every answer failed, the first failure is that of the request."""
    errors = [one for one in found if isinstance(one, IntarsiaError)]
    if len(errors) == len(found):
        raise api_error(errors[0])


def _answer(task: str, found: Answer | IntarsiaError) -> TaskAnswer:
    if isinstance(found, IntarsiaError):
        return TaskAnswer(task=task, error=ErrorBody(**body_of(api_error(found))["error"]))
    said = found.prediction
    return TaskAnswer(task=task, label=said.label, prediction=finite(said.prediction), scores=finite(said.scores))


def finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity: null in their place."""
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
