"""What callers of a bank give: batches, names of tasks, texts; what is none of these is said in one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from intarsia.backbone import Backbone
from intarsia.errors import ConfigError
from intarsia.heads import Head
from intarsia.losses import check_classes
from intarsia.rows import Row, RowReader
from intarsia.task import Task


def rows_in(batch: Mapping[str, Tensor]) -> int:
    """How many rows a batch has; ConfigError for what is no batch."""
    entries: Any = batch if isinstance(batch, Mapping) else {}
    if not entries or not all(isinstance(own, Tensor) for own in entries.values()):
        got = ", ".join(f"{k}: {type(v).__name__}" for k, v in entries.items()) or type(batch).__name__
        raise ConfigError(
            "a batch is tensors (rows, tokens) by name, as backbone.tokenizer(texts, padding=True, return_tensors='pt') gives "
            f"them; got {got}"
        )
    if (ids := entries.get("input_ids")) is not None and ids.dim() != 2:
        raise ConfigError(
            f"input_ids must be of shape (rows, tokens), got {list(ids.shape)}; of one row give ids[None]"
        )
    if ids is not None and (ids.is_floating_point() or (len(ids) and not ids.shape[1])):
        dtype = str(ids.dtype).removeprefix("torch.")
        got = f"{dtype}, make whole numbers of them with ids.long()" if ids.shape[1] else "rows without a token"
        raise ConfigError(f"input_ids must be the tokenizer's whole numbers, one at least in a row; got {got}")
    for name, like in _BESIDE.items():
        if name in entries and like in entries and entries[name].shape != entries[like].shape:
            raise ConfigError(
                f"{name} must be of the shape of {like}, {list(entries[like].shape)}; got {list(entries[name].shape)}"
            )
    return len(next(iter(entries.values())))


_BESIDE = {
    "attention_mask": "input_ids",
    "token_type_ids": "input_ids",
    "decoder_attention_mask": "decoder_input_ids",
}
"""What has an entry for each token of what."""


def check_positions(
    batch: Mapping[str, Tensor],
    backbone: Backbone,
    tasks: Mapping[str, Task],
    virtual: Mapping[str, int],
    names: Sequence[str | None],
    new: int = 0,
) -> None:
    """ConfigError where a row, its task's virtual tokens and `new` ones behind it have no place in a table of positions, or a token
    none in that of tokens: torch would look outside (and a GPU be lost). virtual: rows.virtual of each task; names: of each row."""
    _check_ids(batch, backbone, tasks, names)
    limit, ids = backbone.positions, batch.get("input_ids")
    if limit is None or ids is None:
        return
    behind = new if backbone.kind == "decoder" else 0
    added = max((virtual[name] for name in set(names) if name is not None), default=0) + behind
    written = max(new, batch["decoder_input_ids"].shape[1] if "decoder_input_ids" in batch else 0)
    longest, mask = ids.shape[1], batch.get("attention_mask")
    if longest + added > limit and mask is not None and backbone.counts_positions:
        # Padding takes no position, nor do the virtual tokens of other rows; asked for only here, as a GPU would be waited for.
        own = (0 if name is None else virtual[name] for name in names)
        longest, added = max(zip(mask.sum(1).tolist(), own, strict=True), key=sum)
        added += behind
    if longest + added <= limit and (backbone.kind != "encoder-decoder" or written <= limit):
        return
    beside = f", {added} more with what is virtual or written" if added else ""
    raise ConfigError(
        f"the longest row has {longest} tokens{beside}, and {backbone.name} has positions for {limit}; cut the rows, as with "
        f"tokenizer(..., truncation=True, max_length={max(1, limit - added)})"
        if longest + added > limit
        else f"{written} tokens are written, and {backbone.name} has positions for {limit}; write fewer"
    )


def _check_ids(
    batch: Mapping[str, Tensor], backbone: Backbone, tasks: Mapping[str, Task], names: Sequence[str | None]
) -> None:
    """ConfigError for tokens, or types of them, that the backbone does not have. Looked at on the CPU alone: a GPU would be waited
    for."""
    for key, what in (("input_ids", "token"), ("decoder_input_ids", "token"), ("token_type_ids", "token type")):
        if (ids := batch.get(key)) is None or ids.device.type != "cpu" or not ids.numel():
            continue
        known = backbone.vocabulary if what == "token" else backbone.token_types
        least, most = (int(one) for one in ids.aminmax())
        # Slots are asked for only where there may be some: a batch has hundreds of tasks.
        if known is not None and (most >= known or (least < 0 and (what != "token" or least < -_slots(tasks, names)))):
            raise ConfigError(
                f"{key} holds {what} {most if most >= known else least}, and {backbone.name} has {what}s 0 to {known - 1}; give "
                "those of its own tokenizer; tokens that were added to it want model.resize_token_embeddings(len(tokenizer))"
            )


def _slots(tasks: Mapping[str, Task], names: Sequence[str | None]) -> int:
    """How many numbers below 0 may stand for tokens: a template's slots."""
    prompts = [tasks[name].prompt for name in set(names) if name is not None]
    return max((one.length for one in prompts if one is not None and one.place == "template"), default=0)


def row_names(batch: Mapping[str, Tensor], tasks: Any) -> list[Any]:
    """The name for each row; ConfigError where there is not one for each."""
    rows = rows_in(batch)
    if isinstance(tasks, str):
        if not rows:
            raise ConfigError("the batch has no rows; leave such batches out")
        return [tasks] * rows
    if not isinstance(tasks, Sequence):
        raise ConfigError(
            "tasks must be the name of a task, or a list with a name for each row (None: the plain backbone); "
            f"got {type(tasks).__name__}"
        )
    if len(tasks) != rows:
        raise ConfigError(f"the batch has {rows} rows but {len(tasks)} task names were given; give one for each row.")
    return list(tasks)


def check_targets(batch: Mapping[str, Tensor], labels: Any, head: Head, backbone: Backbone) -> None:
    """ConfigError unless there is a label for each token that is written, and a word of the backbone's."""
    rows_in(batch)
    name = "decoder_input_ids" if backbone.kind == "encoder-decoder" else "input_ids"
    if not isinstance(labels, Tensor) or name not in batch or labels.shape != batch[name].shape:
        shape = list(batch[name].shape) if name in batch else "a batch without it"
        got = list(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        raise ConfigError(
            f"generation wants a tensor of labels like {name}, {shape}, -100 where nothing is learnt; got {got}"
        )
    if backbone.vocabulary is not None:
        check_classes(head, labels, backbone.vocabulary)


def text_names(texts: Any, tasks: Any, batch_size: int) -> list[str]:
    """The name for each text; ConfigError where there is not one for each."""
    if isinstance(texts, str) or not hasattr(texts, "__len__"):
        raise ConfigError(f"predict takes a list of texts, got {type(texts).__name__}; give [text], or list(texts)")
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    names = [tasks] * len(texts) if isinstance(tasks, str) else list(tasks) if hasattr(tasks, "__len__") else []
    if len(names) != len(texts) or None in names:
        raise ConfigError(
            f"{len(texts)} texts need {len(texts)} names of tasks, one for each; got {names[:8] or type(tasks).__name__}"
        )
    return names


def parts_of(text: str | list[str], reader: RowReader) -> list[str]:
    """A row's texts, or words."""
    if isinstance(text, list):
        if wrong := [one for one in text if not isinstance(one, str)]:
            raise ConfigError(f"a row is a str, or the str of its columns or words; got {type(wrong[0]).__name__}")
        return text
    return text.split() if reader.kind == "token-classification" else [text]


def alike(rows: Sequence[Row], names: Sequence[str], tasks: Mapping[str, Task], most: int) -> list[list[int]]:
    """Batches of like length whose rows all classify, or all generate in the same way."""
    sorts: dict[str, list[int]] = {}
    for index in sorted(range(len(rows)), key=lambda index: len(rows[index].ids)):
        head = tasks[names[index]].head
        writes = head is not None and head.kind == "generation"
        sorts.setdefault(repr(tasks[names[index]].data.get("generation")) if writes else "", []).append(index)
    return [own[at : at + most] for own in sorts.values() for at in range(0, len(own), most)]


@contextmanager
def out_of_training(backbone: Backbone, tasks: Sequence[Task]) -> Iterator[None]:
    """No dropout meanwhile, in the backbone or in these tasks."""
    trunk, training = backbone.model.training, [task for task in tasks if task.training]
    try:
        backbone.train_mode(False)
        for task in training:
            task.eval()
        yield
    finally:
        backbone.train_mode(trunk)
        for task in training:
            task.train()
