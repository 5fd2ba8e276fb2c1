"""`POST /v1/classify` and `POST /v1/tag`: one or many tasks on one or many texts, scores side by side."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.routing import APIRoute
from pydantic import ValidationError

from intarsia.errors import IntarsiaError
from intarsia.serving.http.bodies import json_only
from intarsia.serving.http.calls import answers, asked
from intarsia.serving.http.classify_schemas import MOST_ANSWERS, Results, TaskAnswer, Text, Texts
from intarsia.serving.http.errors import ApiError, api_error, body_of
from intarsia.serving.http.schemas import ErrorBody
from intarsia.serving.http.service import Deadline, Service, Serving
from intarsia.serving.requests import Answer, Classify, Tag


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
            return Response(results.body(), media_type="application/json")

        return answered


router = APIRouter(tags=["tasks"], dependencies=[Depends(json_only)], route_class=Straight)


def classify_row(task: str, row: Text, deadline: float | None = None) -> Classify:
    """A task's question about a row."""
    return Classify(task=task, texts=(row,) if isinstance(row, str) else tuple(row), deadline=deadline)


def tag_row(task: str, row: Text, deadline: float | None = None) -> Tag:
    """The same of token classification."""
    return Tag(task=task, words=tuple(row.split()) if isinstance(row, str) else tuple(row), deadline=deadline)


@router.post("/v1/classify", response_model_exclude_unset=True)
async def classify(question: Texts, request: Request, service: Serving, deadline: Deadline) -> Results:
    """Labels and scores of classification, multi-label and regression tasks."""
    return await _asked(question, request, service, deadline, classify_row)


@router.post("/v1/tag", response_model_exclude_unset=True)
async def tag(question: Texts, request: Request, service: Serving, deadline: Deadline) -> Results:
    """A label for every word (token-classification tasks). A text is a list of words, or a string split at its spaces."""
    return await _asked(question, request, service, deadline, tag_row)


async def _asked(
    question: Texts,
    request: Request,
    service: Service,
    deadline: float | None,
    ask: Callable[[str, Text, float | None], Classify | Tag],
) -> Results:
    """Every task on every row."""
    tasks, rows = question.tasks, question.rows
    if len(tasks) * len(rows) > MOST_ANSWERS:
        raise ApiError(
            413, f"{len(rows)} texts for {len(tasks)} tasks are more than {MOST_ANSWERS} answers; send fewer"
        )
    calls = asked(service, [ask(task, row, deadline) for row in rows for task in tasks])
    found = await answers(request, calls)
    refuse_if_nothing(found)
    return Results.of(question, map(_answer, tasks * len(rows), found))


def refuse_if_nothing(found: Sequence[Answer | IntarsiaError]) -> None:
    """Where every answer failed, the first failure is that of the request."""
    errors = [one for one in found if isinstance(one, IntarsiaError)]
    if len(errors) == len(found):
        raise api_error(errors[0])


def _answer(task: str, found: Answer | IntarsiaError) -> TaskAnswer:
    if isinstance(found, IntarsiaError):
        return TaskAnswer(task=task, error=ErrorBody(**body_of(api_error(found))["error"]))
    said = found.prediction
    return TaskAnswer.of(task, said.label, said.prediction, said.scores)
