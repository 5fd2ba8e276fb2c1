"""Bodies of the Open Inference Protocol's requests and answers."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from intarsia.serving.http.classify_schemas import MOST_ANSWERS
from intarsia.serving.http.schemas import Str

Count = Annotated[int, Field(ge=0, json_schema_extra={"maximum": MOST_ANSWERS})]  # more is 413, by the route


class TextTensor(BaseModel):
    """The one input."""

    model_config = ConfigDict(extra="forbid")

    name: Literal["text"]
    shape: Annotated[list[Count], Field(min_length=1, max_length=2)]
    datatype: Literal["BYTES"]
    data: list[Str] | list[list[Str]]
    parameters: dict[str, Any] = {}


class OutputName(BaseModel):
    """An output that the client wants."""

    name: Annotated[str, Field(max_length=200)]
    parameters: dict[str, Any] = {}


class InferRequest(BaseModel):
    """Rows for a task."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[Str, Field(max_length=200)] | None = None
    inputs: Annotated[list[TextTensor], Field(min_length=1, max_length=1)]
    outputs: list[OutputName] | None = None
    """Only these outputs.  [default: all]"""
    parameters: dict[str, Any] = {}


class Tensor(BaseModel):
    """An output; the data is flat, rows first."""

    name: str
    shape: list[int]
    datatype: Literal["BYTES", "FP32", "BOOL"]
    data: list[str | None] | list[float | None] | list[bool]


class InferAnswer(BaseModel):
    """The task's answers."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[Tensor]


class TensorShape(BaseModel):
    """An input or output; -1: any number."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = {}


class ModelMetadata(BaseModel):
    """A task as the protocol describes models."""

    name: str
    versions: list[str]
    platform: Literal["intarsia"] = "intarsia"
    inputs: list[TensorShape]
    outputs: list[TensorShape]


class ServerMetadata(BaseModel):
    """The server as the protocol describes servers."""

    name: Literal["intarsia"] = "intarsia"
    version: str
    extensions: list[str] = []
