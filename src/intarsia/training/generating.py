"""Generated text, while training and afterwards: with which settings it is made, and how it is compared."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from intarsia.errors import ConfigError, nearest
from intarsia.heads import Decoding, Head
from intarsia.training.metrics import resolve_metric
from intarsia.training.source import BatchSource
from intarsia.training.textmetrics import TextMetrics

DECODING = tuple(f.name for f in dataclasses.fields(Decoding))
COMPARING = tuple(f.name for f in dataclasses.fields(TextMetrics))


@dataclass(frozen=True, kw_only=True, slots=True)
class Writing:
    """How a task's outputs become text, and how that text is scored."""

    decode: Callable[[Tensor], str]
    """Token ids (n,) of one output -> its text."""
    decoding: Decoding = field(default_factory=Decoding)
    metrics: TextMetrics = field(default_factory=TextMetrics)

    @classmethod
    def of(cls, task: Any, backbone: Any, changes: Mapping[str, Any] | None = None) -> "Writing":
        """As the task was trained to be used (`task.data["generation"]`), with some of its settings changed.

        changes: fields of Decoding and TextMetrics by name; ConfigError for another.
        """
        given = {**task.data.get("generation", {}), **(changes or {})}
        known = (*DECODING, *COMPARING)
        if unknown := [name for name in given if name not in known]:
            raise ConfigError(
                f"unknown generation setting {unknown[0]!r}{nearest(unknown[0], known) or '; known: ' + ', '.join(known)}"
            )
        return cls(
            decode=detokeniser(backbone.tokenizer),
            decoding=Decoding(**{name: value for name, value in given.items() if name in DECODING}),
            metrics=TextMetrics(**{name: value for name, value in given.items() if name in COMPARING}),
        )


def detokeniser(tokenizer: Any) -> Callable[[Tensor], str]:
    """Ids to text, without special tokens and blanks around it."""
    return lambda ids: str(tokenizer.decode(ids.tolist(), skip_special_tokens=True)).strip()


def validation_metric(name: str | None, kind: str, labels: Sequence[str]) -> str:
    """The metric by that name; None: accuracy, micro_f1, pearson, f1 or loss by the kind, and exact_match where the legal

    outputs are known: they are short, so generating them costs little. ConfigError for one that the kind does not have.
    """
    return resolve_metric("exact_match" if name is None and kind == "generation" and labels else name, kind, labels)


def wants_texts(head: Head, metric: str | None) -> bool:
    """Whether a metric can only be had from generated text."""
    return head.kind == "generation" and metric not in (None, "loss")


def write(bank: Any, source: Any, key: Any, tasks: str | list[str], writing: Writing, *, copies: int = 1) -> list[str]:
    """The texts for one batch of a GenerationSource; with `copies` each row stands so many times in a row, and has as many
    names in `tasks`."""
    batch = {name: x.repeat_interleave(copies, 0) for name, x in source.prompts(key).items()}
    return [writing.decode(ids.cpu()) for ids in bank.generate(batch, tasks, decoding=writing.decoding)]


def written(
    bank: Any, task: Any, source: BatchSource, writing: Writing, tick: Callable[[], None] | None
) -> Iterator[tuple[Any, list[str]]]:
    """Each batch's key and texts, in the order of the source's plan."""
    for key in source.plan(0):
        yield key, write(bank, source, key, task.name, writing)
        if tick is not None:
            tick()
