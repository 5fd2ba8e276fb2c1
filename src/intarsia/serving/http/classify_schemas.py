"""Questions and answers of `POST /v1/classify` and `POST /v1/tag`."""

import math
from collections.abc import Iterable
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from intarsia.serving.http.schemas import ErrorBody, Str

MOST_ANSWERS = 512
"""Texts times tasks of one request: half of the engine's queue, so that no single request can fill it."""
# Said to clients, and left to the route: a list that is too long is 413, whichever of the two it is, and not a wrong field's 422.
COUNTED: dict[str, Any] = {"maxItems": MOST_ANSWERS}

TaskName = Annotated[Str, Field(min_length=1, max_length=200)]
Text = Str | list[Str]


class Texts(BaseModel):
    """Texts for tasks. A text is a string, or a list with one string for each of the task's text columns."""

    model_config = ConfigDict(extra="forbid")

    task: TaskName | Annotated[list[TaskName], Field(min_length=1, json_schema_extra=COUNTED)]
    """One task, or several that all answer every text."""
    text: Text | None = None
    texts: Annotated[list[Text], Field(min_length=1, json_schema_extra=COUNTED)] | None = None

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

    @classmethod
    def of(cls, task: str, label: Any, prediction: Any, scores: Any) -> Self:
        """The answer of a prediction's parts."""
        return cls(task=task, label=label, prediction=finite(prediction), scores=finite(scores))


class TextAnswers(BaseModel):
    """All answers for one text."""

    text: Text
    answers: list[TaskAnswer]


class Results(BaseModel):
    """Texts in the order that they came, tasks in the order that they were named."""

    results: list[TextAnswers]

    @classmethod
    def of(cls, question: Texts, said: Iterable[TaskAnswer]) -> Self:
        """said: for each row the answer of every task."""
        said = iter(said)
        return cls(
            results=[TextAnswers(text=row, answers=[next(said) for _ in question.tasks]) for row in question.rows]
        )

    def body(self) -> str:
        """As JSON."""
        return self.model_dump_json(exclude_unset=True)


def finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity: null in their place."""
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
