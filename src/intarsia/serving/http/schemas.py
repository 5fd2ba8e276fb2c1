"""What the bodies of all routes are made of."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel

NOT_TEXT = "is not text: it holds half of a surrogate pair"


def whole(text: str) -> str:
    """The text; ValueError where JSON's escapes made one that no encoding can say, and no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(NOT_TEXT) from None
    return text


Str = Annotated[str, AfterValidator(whole)]
"""A string of a request's body."""


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    code: int


class ErrorAnswer(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorBody


class ProtocolErrorAnswer(BaseModel):
    """The same under /v2."""

    error: str
