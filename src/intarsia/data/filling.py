"""Rows put into a template, as tokens. Slot j of the prompt is the id -1 - j, so that any batching carries it along.

The literal text and the fields between two slots (or slot and mask) form one string and are tokenised as one. Blanks
before a slot, before the mask and at the end are dropped: byte-level BPE would make a token of its own of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from intarsia.data.template import BLANKS, Field, Slots, Template
from intarsia.errors import ConfigError, DataError

CHUNK = 4096  # rows tokenised at once: enough for every thread, and few enough to bound memory

Piece = tuple[str | Field, ...] | list[int]
"""Text to be tokenised as one string, or ids of slots or of the mask."""


def fill(
    texts: list[tuple[str, ...]],
    template: Template,
    tokenizer: Any,
    serialised: str,
    max_length: int,
    *,
    closed: bool = True,
) -> dict[str, np.ndarray]:
    """{"ids": (L,) int32, "offsets": (rows + 1,) int64, "truncated": (1,)}; each row at most max_length tokens.

    serialised: the backend tokenizer as JSON, without truncation and padding. closed: with the special tokens that the
    tokenizer puts at the end; those at the start always are. Of a row that is too long the fields are cut, the longest
    first, on the tokenizer's truncation side; never a slot, the mask or literal text.
    """
    if texts and len(texts[0]) != len(template.columns):
        raise DataError(
            f"the template takes {len(template.columns)} text(s) per row ({', '.join(template.columns)}), "
            f"got {len(texts[0])}"
        )
    filler = _Filler(template, tokenizer, serialised, closed)
    rows, truncated = [], 0
    for at in range(0, len(texts), CHUNK):
        chunk = texts[at : at + CHUNK]
        for row, ids in zip(chunk, filler.whole(chunk), strict=True):
            if len(ids) > max_length:
                truncated += 1
                ids = filler.cut(row, max_length, tokenizer.truncation_side)
            rows.append(np.array(ids, np.int32))
    return flatten(rows) | {"truncated": np.array([truncated])}


def flatten(rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Rows as one flat array, {"ids": (L,) int32, "offsets": (rows + 1,) int64}."""
    lengths = np.array([len(row) for row in rows], np.int64)
    ids = np.concatenate(rows) if len(rows) else np.zeros(0, np.int32)
    return {"ids": ids, "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)}


@lru_cache(maxsize=4)
def parsed(serialised: str) -> Any:
    """The tokenizer of a JSON text, to be used as it is: nobody sets its truncation or padding."""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(serialised)


def special_ids(fresh: Any) -> tuple[list[int], list[int]]:
    """The special tokens before and behind a single text."""
    encoding = fresh.encode("a")
    own = [i for i, sequence in enumerate(encoding.sequence_ids) if sequence is not None] or [len(encoding.ids)]
    return encoding.ids[: own[0]], encoding.ids[own[-1] + 1 :]


@dataclass(slots=True)
class _Token:
    """A token of a row that is cut: the field it is part of, or -1."""

    id: int
    field: int


class _Filler:
    def __init__(self, template: Template, tokenizer: Any, serialised: str, closed: bool) -> None:
        if template.has_mask and tokenizer.mask_token_id is None:
            raise ConfigError(
                "the template holds {mask}, and this backbone's tokenizer has no mask token; leave {mask} out for a "
                "decoder, where the answer follows the text"
            )
        self.template = template
        self.pieces = _pieces(template, tokenizer.mask_token_id)
        # A mask token in a row's own text would be a second place of the answer.
        self.mask = tokenizer.mask_token if template.has_mask else None
        self.fresh = parsed(serialised)
        self.prefix, suffix = special_ids(self.fresh)
        self.suffix = suffix if closed else []
        self.columns = {name: i for i, name in enumerate(template.columns)}

    def whole(self, chunk: list[tuple[str, ...]]) -> list[list[int]]:
        """The ids of each row, uncut."""
        rows = [list(self.prefix) for _ in chunk]
        for piece in self.pieces:
            if isinstance(piece, list):
                for ids in rows:
                    ids += piece
                continue
            strings = ["".join(self._strings(piece, row)).rstrip(BLANKS) for row in chunk]
            encodings = self.fresh.encode_batch_fast(strings, add_special_tokens=False)
            for ids, encoding in zip(rows, encodings, strict=True):
                ids += encoding.ids
        for ids in rows:
            ids += self.suffix
        return rows

    def cut(self, row: tuple[str, ...], max_length: int, side: str) -> list[int]:
        """The ids of one row, its fields cut until it fits."""
        tokens = [_Token(id, -1) for id in self.prefix]
        fields = 0
        for piece in self.pieces:
            if isinstance(piece, list):
                tokens += [_Token(id, -1) for id in piece]
            else:
                tokens += self._owned(piece, row, fields)
                fields += sum(isinstance(part, Field) for part in piece)
        tokens += [_Token(id, -1) for id in self.suffix]
        sizes = [sum(token.field == i for token in tokens) for i in range(fields)]
        room = max_length - (len(tokens) - sum(sizes))
        if room < 1:
            raise ConfigError(
                f"max_length must be at least {len(tokens) - sum(sizes) + 1}, the template's own tokens and one of the "
                f"row, got {max_length}"
            )
        shares = _shares(sizes, room)
        seen, kept = [0] * fields, []
        for token in tokens if side == "right" else reversed(tokens):
            if token.field >= 0:
                seen[token.field] += 1
                if seen[token.field] > shares[token.field]:
                    continue
            kept.append(token.id)
        return kept if side == "right" else kept[::-1]

    def _strings(self, piece: tuple[str | Field, ...], row: tuple[str, ...]) -> list[str]:
        strings = []
        for part in piece:
            text = part if isinstance(part, str) else row[self.columns[part.column]]
            strings.append(text.replace(self.mask, " ") if self.mask and isinstance(part, Field) else text)
        return strings

    def _owned(self, piece: tuple[str | Field, ...], row: tuple[str, ...], fields: int) -> list[_Token]:
        """Tokens of one string. A token is of the part that holds its last character: the blank before a word is not it."""
        strings = self._strings(piece, row)
        owners: list[int] = []
        for part, string in zip(piece, strings, strict=True):
            owners += [fields if isinstance(part, Field) else -1] * len(string)
            fields += isinstance(part, Field)
        encoding = self.fresh.encode("".join(strings).rstrip(BLANKS), add_special_tokens=False)
        return [
            _Token(id, owners[max(start, stop - 1)])
            for id, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
        ]


def _pieces(template: Template, mask_id: int | None) -> list[Piece]:
    pieces: list[Piece] = []
    text: tuple[str | Field, ...] = ()
    for part in template.parts:
        if isinstance(part, str | Field):
            text = (*text, part)
            continue
        if text:
            pieces.append(text)
            text = ()
        if isinstance(part, Slots):
            pieces.append([-1 - j for j in range(part.first, part.first + part.count)])
        else:
            assert mask_id is not None, "checked by _Filler"
            pieces.append([mask_id])
    return [*pieces, text] if text else pieces


def _shares(sizes: list[int], room: int) -> list[int]:
    """How much of each field stays, `room` in all: short ones whole, and the rest shared evenly among the longer ones."""
    shares = list(sizes)
    for rank, i in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
        shares[i] = min(sizes[i], room // (len(sizes) - rank))
        room -= shares[i]
    return shares
