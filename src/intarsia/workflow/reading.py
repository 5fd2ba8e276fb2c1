"""How rows reach a task: which columns, which template, how long. The same in training, scoring and prediction."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from intarsia.backbone import Backbone
from intarsia.data import (
    Arrangement,
    DataSpec,
    EncodedSource,
    GenerationSource,
    Rows,
    Template,
    encode,
    encode_generation,
)
from intarsia.data.files import encodes
from intarsia.errors import ConfigError, DataError
from intarsia.heads import Head
from intarsia.rows import TARGET_LENGTH, longest_input
from intarsia.task import Task
from intarsia.taskfile import read_description

Source = EncodedSource | GenerationSource
SCORED_TOKENS = 16_384
"""Of a batch that is scored on a GPU, padding included."""


def head_of(task: Task) -> Head:
    """The head; callers have refused tasks without one."""
    assert task.head is not None
    return task.head


def longest_label(labels: Sequence[str], tokenizer: Any) -> int:
    """Tokens of the longest legal output, with the end-of-sequence token."""
    texts = [text for label in labels for text in (label, " " + label)]
    return 1 + max(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])


def source_of(
    rows: Rows,
    task: Task,
    backbone: Backbone,
    batch_size: int,
    *,
    seed: int | None = None,
    arrangement: Arrangement = "like",
    cache: Path | None = None,
) -> Source:
    """The batches of some rows, as `task.data` says; in order of length without a seed. cache: a folder for the tokens."""
    kind, tokenizer = head_of(task).kind, backbone.tokenizer
    length = longest_input(task, backbone)
    text = task.data.get("template")
    template = None if text is None else Template.parse(text)
    if kind == "generation":
        seq2seq = backbone.kind == "encoder-decoder"
        pairs = encode_generation(
            rows,
            tokenizer,
            max_length=length,
            target_length=task.data.get("target_length", min(TARGET_LENGTH, length // 2)),
            template=template,
            encoder_decoder=seq2seq,
            cache=cache,
        )
        start = backbone.start_id if seq2seq else None
        return GenerationSource(
            pairs, batch_size, pad_id=backbone.pad_id, decoder_start_token_id=start, seed=seed, arrangement=arrangement
        )
    return EncodedSource(
        encode(rows, tokenizer, length, kind, cache, template=template),
        batch_size,
        pad_id=backbone.pad_id,
        padding_side=backbone.padding_side,
        seed=seed,
        arrangement=arrangement,
    )


def scored_together(source: Source, backbone: Backbone) -> Source:
    """The same rows in larger batches on a GPU, for scoring: it would wait for Python, and nothing is kept for a backward pass."""
    if backbone.device.type == "cuda" and isinstance(source, EncodedSource) and len(source.encoded):
        source.batch_size = max(source.batch_size, SCORED_TOKENS // int(source.encoded.lengths.max()))
    return source


def texts_per_row(folder: Path) -> int:
    """How many texts one row of a task folder's task has: 2 for pairs."""
    return len(read_description(folder)["data"].get("text_columns", ())) or 1


def columns_of(task: Task, given: Sequence[str] | None) -> tuple[str, ...] | None:
    """The text columns as given, or of the task's training; None, to be guessed, for a task made by hand. ConfigError where the
    task reads more or fewer texts a row than are given."""
    own = tuple(task.data.get("text_columns") or ())
    if given and own and len(given) != len(own):
        raise ConfigError(
            f"task {task.name!r} reads {len(own)} text(s) per row, {', '.join(own)} in training; "
            f"give as many --text-columns, got {', '.join(given)}"
        )
    return tuple(given or own) or None


def spec_of(task: Task, data: str | None, columns: tuple[str, ...] | None, label: str | None) -> DataSpec:
    """`data` with the columns, labels and split of the task's own training."""
    source = task.data.get("source") if data is None else origin(data)
    if source is None:
        raise ConfigError("this task was trained on files; say which to use now with --data FILE")
    # A file of any split goes in as the test file: as a training file, a share would be set aside.
    name = source.data if isinstance(source, DataSpec) else source if isinstance(source, str) else None
    head = head_of(task)
    return DataSpec(
        data=name,
        test=source if isinstance(source, Path) else None,
        text_columns=columns,
        label_column=label,
        kind=head.kind,
        labels=head.labels or None,
        template=task.data.get("template"),
        text_to_text=head.kind == "generation" and bool(head.labels),
        label_words=task.data.get("label_words"),
        split_seed=task.data.get("split_seed", 0),
        validation_fraction=task.data.get("validation_fraction", 0.1),
    )


def origin(data: str | DataSpec | None) -> Path | DataSpec:
    """A file, unless it is written like embedded:NAME and no such file exists."""
    if isinstance(data, DataSpec):
        return data
    assert data is not None
    if not data.strip():
        raise ConfigError("data is empty; give embedded:NAME, hub:NAME or a file")
    file = Path(data).expanduser()
    return DataSpec(data=data) if ":" in data and "://" not in data and not file.exists() else file


def typed_rows(texts: Sequence[str | tuple[str, ...]], task: Task) -> Rows:
    """Typed texts as rows of the task's shape. DataError for an empty one."""
    kind, columns = head_of(task).kind, len(task.data.get("text_columns") or ("text",))
    rows: list[tuple[str, ...]] = []
    for number, text in enumerate(texts, 1):
        parts = tuple(text.split()) if isinstance(text, str) and kind == "token-classification" else text
        row: tuple[Any, ...] = (
            (parts,) if isinstance(parts, str) else tuple(parts) if isinstance(parts, tuple | list) else (parts,)
        )
        if wrong := [part for part in row if not isinstance(part, str)]:
            raise DataError(f"text {number} must be a str, got {type(wrong[0]).__name__}")
        if not row or not all(part.strip() for part in row):
            raise DataError(f"text {number} is empty; expected at least one word")
        if not all(map(encodes, row)):
            raise DataError(f"text {number} is no text: it holds half a surrogate pair, or bytes that are not UTF-8")
        if kind != "token-classification" and len(row) != columns:
            raise DataError(f"text {number}: task {task.name!r} takes {columns} text(s) per row, got {len(row)}")
        rows.append(row)
    if not rows:
        raise DataError("no text to predict; give at least one")
    return Rows(rows)
