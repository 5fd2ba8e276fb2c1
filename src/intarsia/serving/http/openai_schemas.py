"""The requests of OpenAI's completions and chat, as far as they mean something here.

A field that would change the output and that we do not do is typed as its harmless value alone, so that anything else is
refused in one line rather than passed over in silence.
"""

import dataclasses
import secrets
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from intarsia.serving.http.schemas import Str
from intarsia.serving.sampling import Sampling

MOST_TOKENS = 1_000_000
"""No backbone writes so much; its own limit is checked by the engine."""
MOST_CHOICES = 128
"""Prompts times outputs of one request."""
Zero = Annotated[float, Field(ge=0, le=0)]
ShortText = Annotated[Str, Field(max_length=200)]


class StreamOptions(BaseModel):
    """What a stream tells besides the text."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False
    """Ends the stream with a chunk that counts the tokens."""


class Generation(BaseModel):
    """What completions and chat share."""

    model_config = ConfigDict(extra="forbid")

    model: ShortText
    """A generation task's name, or the backbone's own for the plain backbone."""
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    """The longest output in tokens.  [default: the server's]"""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """0, the default, always takes the likeliest token; OpenAI's default is 1."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = None
    """Draw from the k likeliest tokens only; 0: from all."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """The same seed, task version and prompt give the same text.  [default: another one each time]"""
    stop: ShortText | Annotated[list[ShortText], Field(max_length=4)] | None = None
    """The output ends before any of these."""
    stream: bool = False
    """Server-sent events, a piece each, instead of one answer."""
    stream_options: StreamOptions | None = None
    user: str | None = None
    """Taken and not used."""

    n: Annotated[int, Field(ge=1, le=MOST_TOKENS, json_schema_extra={"maximum": MOST_CHOICES})] = 1
    """Outputs of each prompt: the first with the seed, the next with the seed plus one, and so on."""
    presence_penalty: Zero = 0
    frequency_penalty: Zero = 0
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_as_if_left_out(cls, given: Any) -> Any:
        """OpenAI's API says that of all fields that may be left out, and its clients send it."""
        return {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given

    @field_validator("stop")
    @classmethod
    def _stop_says_something(cls, value: str | list[str] | None) -> str | list[str] | None:
        if value is not None and "" in ([value] if isinstance(value, str) else value):
            raise ValueError("a stop string must not be empty")
        return value

    def samplings(self, most: int | None = None) -> list[Sampling]:
        """How the tokens of each of a prompt's outputs are drawn."""
        first = self._sampling(most)
        return [dataclasses.replace(first, seed=(first.seed + number) % 2**63) for number in range(self.n)]

    def _sampling(self, most: int | None) -> Sampling:
        stop = self.stop or ()
        drawn = self.temperature is not None and self.temperature > 0
        given = {
            "max_tokens": most or self.max_tokens,
            "temperature": 0.0 if self.temperature is None else self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k or None,
            "seed": secrets.randbits(63) if self.seed is None and drawn else self.seed,
            "stop": (stop,) if isinstance(stop, str) else tuple(stop),
        }
        return Sampling(**{name: value for name, value in given.items() if value is not None})


class CompletionRequest(Generation):
    """`POST /v1/completions`."""

    prompt: Str | Annotated[list[Str], Field(min_length=1, json_schema_extra={"maxItems": MOST_CHOICES})]
    """One text, or several: the choices of the first, then those of the second, and so on."""
    best_of: Literal[1] = 1
    echo: Literal[False] = False
    logprobs: None = None
    suffix: None = None


class ContentPart(BaseModel):
    """A part of a message; only text is understood."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: Str


class Message(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: Str | list[ContentPart]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """As a tokenizer's chat template takes it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(Generation):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    """OpenAI's newer name of max_tokens; it wins where both are given."""
    logprobs: Literal[False] | None = None
    top_logprobs: None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None


class Usage(BaseModel):
    """Tokens of the prompt and of the output."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionChoice(BaseModel):
    """An output."""

    index: int
    text: str
    finish_reason: str | None
    """`stop` or `length`."""
    logprobs: None = None


class Completion(BaseModel):
    """The answer of `POST /v1/completions`, and the shape of each of its chunks."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class ChatMessage(BaseModel):
    """The turn that was written."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    """An output."""

    index: int
    message: ChatMessage
    finish_reason: str | None
    """`stop` or `length`."""
    logprobs: None = None


class ChatCompletion(BaseModel):
    """The answer of `POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Model(BaseModel):
    """What may be named as `model`."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["intarsia"] = "intarsia"


class Models(BaseModel):
    """Every model."""

    object: Literal["list"] = "list"
    data: list[Model]
