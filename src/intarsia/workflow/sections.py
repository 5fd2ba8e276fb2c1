"""The sections of a run's settings, each a strict model: an unknown key, or a value of another type, is an error."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, StrictFloat, StrictInt, field_validator

from intarsia.data import DataSpec
from intarsia.errors import ConfigError
from intarsia.heads import Decoding
from intarsia.training.settings import TrainSettings
from intarsia.training.textmetrics import TextMetrics
from intarsia.workflow.runfile import given_path

FILES = ("train", "validation", "test")
GivenPath = Annotated[Path, BeforeValidator(given_path)]
_DECODING, _COMPARING = Decoding(), TextMetrics()


class DataSettings(BaseModel, extra="forbid", frozen=True):
    """Where rows come from: `data` (embedded:NAME, hub:NAME) or files, never both."""

    data: str | None = None
    train: GivenPath | None = None
    validation: GivenPath | None = None
    test: GivenPath | None = None
    text_columns: tuple[str, ...] | None = None
    label_column: str | None = None
    kind: Literal["classification", "multi-label", "regression", "token-classification", "generation"] | None = None
    template: str | None = None
    text_to_text: bool = False
    label_words: dict[str, str] | None = None
    split_seed: StrictInt = 0
    validation_fraction: StrictFloat = Field(default=0.1, gt=0, lt=1)

    @field_validator("text_columns", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value

    def spec(self) -> DataSpec:
        """The same, as the data layer takes it."""
        return DataSpec(**self.model_dump())


class HeadSettings(BaseModel, extra="forbid", frozen=True):
    """The trained layer over the pooled states, or how the language model answers. Kind and labels come from the data."""

    pooling: Literal["auto", "cls", "mean", "last", "pooler"] = "auto"
    dropout: StrictFloat = Field(default=0.1, ge=0, lt=1)
    verbaliser: tuple[str, ...] | dict[str, str] | None = None
    loss: Literal["token", "sentence"] = "token"

    def words(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The verbaliser's word of each label, in the order of the labels; () without one."""
        if not isinstance(self.verbaliser, dict):
            return self.verbaliser or ()
        if wrong := [
            label for label in (*labels, *self.verbaliser) if label not in self.verbaliser or label not in labels
        ]:
            raise ConfigError(
                f"head.verbaliser needs a word for each of the labels {', '.join(labels)}, and for no other; look at {wrong[0]!r}"
            )
        return tuple(self.verbaliser[label] for label in labels)


class GenerationSettings(BaseModel, extra="forbid", frozen=True):
    """How text is generated (the fields of Decoding) and compared with its references (those of TextMetrics)."""

    max_new_tokens: StrictInt | None = None
    """None: 64, or what the longest legal output of a text-to-text task needs."""
    beams: StrictInt = _DECODING.beams
    length_penalty: StrictFloat = _DECODING.length_penalty
    sample: bool = _DECODING.sample
    temperature: StrictFloat = _DECODING.temperature
    top_k: StrictInt = _DECODING.top_k
    top_p: StrictFloat = _DECODING.top_p
    seed: StrictInt = _DECODING.seed
    static_cache: bool = _DECODING.static_cache
    lowercase: bool = _COMPARING.lowercase
    tokenize: str = _COMPARING.tokenize


class RunSettings(BaseModel, extra="forbid", frozen=True):
    """Everything that decides a run. `model_dump(mode="json")` goes to run.json and resolves to the same run again."""

    backbone: str
    data: DataSettings
    method: dict[str, Any]
    head: HeadSettings = HeadSettings()
    train: TrainSettings = TrainSettings()
    generation: GenerationSettings = GenerationSettings()
    out: GivenPath
    name: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8", "nf4"] = "auto"
    device: str = "auto"
    log: Literal["tensorboard", "wandb", "trackio"] | None = None
    threads: int | None = Field(default=None, ge=1, le=4096, strict=True)


SECTIONS: dict[str, type[BaseModel]] = {
    "data": DataSettings,
    "head": HeadSettings,
    "train": TrainSettings,
    "generation": GenerationSettings,
}
