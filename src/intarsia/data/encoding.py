"""Texts to tokens, once: flat arrays for a whole split, cached by content."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from intarsia.data.cache import cached
from intarsia.data.filling import CHUNK, fill, flatten, parsed
from intarsia.data.spec import Rows
from intarsia.data.template import Template
from intarsia.errors import ConfigError, DataError

IGNORED = -100  # torch's cross_entropy skips this label


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """The tokens of a split; row i is `ids[offsets[i] : offsets[i + 1]]`. L is the number of tokens in all."""

    kind: str
    ids: np.ndarray
    """(L,) int32"""
    offsets: np.ndarray
    """(rows + 1,) int64"""
    type_ids: np.ndarray | None
    """(L,) int32; None where the tokenizer makes none, or all are 0 (a single text)."""
    words: np.ndarray | None
    """(L,) int32, token-classification only: the index of the word that a token begins, -1 for any other token."""
    labels: np.ndarray | None
    """(rows,) int64 classes; (rows, C) float32 multi-label; (rows,) float32 regression; (L,) int64 for
    token-classification: the word's label on its first token, -100 elsewhere. None: no labels."""
    truncated: int
    """Rows that were cut to max_length."""
    lost_words: int
    """token-classification: words without a token, because the row was cut or the tokenizer drops the word."""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(rows,) int64: tokens of each row."""
        return np.diff(self.offsets)


def encode(
    rows: Rows,
    tokenizer: Any,
    max_length: int,
    kind: str,
    cache: Path | None = None,
    *,
    template: Template | None = None,
) -> Encoded:
    """Tokenise `rows` with the special tokens of `tokenizer`, a PreTrainedTokenizerFast, which is left as it was.

    Rows of more than max_length tokens are cut as transformers' `truncation=True` does: the longer of a pair first.
    template: the rows' texts are its fields; a slot j of the prompt becomes the id -1 - j (intarsia.data.filling).
    cache: a folder; the arrays are found there again as long as all that they were made from is the same.
    """
    words = kind == "token-classification"
    if template is None:
        _check_room(rows, tokenizer, max_length, words)
    serialised = serialise(tokenizer, words)
    typed = template is None and "token_type_ids" in tokenizer.model_input_names
    settings: list[Any] = [tokenizer.truncation_side, typed, max_length, kind]
    if template is not None:
        settings += [repr(template.parts), tokenizer.mask_token]
    key = cache_key(settings, serialised, rows.texts)

    def make() -> dict[str, np.ndarray]:
        return tokens_of(rows.texts, tokenizer, serialised, max_length, words=words, template=template)

    arrays, notes = cached(cache, key, make)
    offsets, starts = arrays["offsets"], arrays.get("words")
    refuse_empty(rows, offsets)
    return Encoded(
        kind=kind,
        ids=arrays["ids"],
        offsets=offsets,
        type_ids=arrays.get("type_ids"),
        words=starts,
        labels=_labels(rows, kind, offsets, starts),
        truncated=int(arrays["truncated"][0]),
        lost_words=0 if starts is None else sum(map(len, rows.texts)) - int((starts >= 0).sum()),
        notes=tuple(notes),
    )


def tokens_of(
    texts: list[tuple[str, ...]],
    tokenizer: Any,
    serialised: str,
    max_length: int,
    *,
    words: bool,
    template: Template | None,
) -> dict[str, np.ndarray]:
    """The arrays of `encode`, without its checks and its cache. serialised: `serialise(tokenizer, words)`."""
    if template is not None:
        return fill(texts, template, tokenizer, serialised, max_length)
    made = _tokenise(texts, serialised, tokenizer.truncation_side, max_length, words)
    if "token_type_ids" not in tokenizer.model_input_names or not made["type_ids"].any():
        del made["type_ids"]
    return made


def _check_room(rows: Rows, tokenizer: Any, max_length: int, words: bool) -> None:
    pair = not words and len(rows) > 0 and len(rows.texts[0]) == 2
    special = _backend(tokenizer).num_special_tokens_to_add(pair)
    if max_length < (least := special + 1 + pair):
        raise ConfigError(
            f"max_length must be at least {least} ({special} special tokens and the text), got {max_length}"
        )


def refuse_empty(rows: Rows, offsets: np.ndarray) -> None:
    """DataError for a row without a token."""
    if empty := np.flatnonzero(np.diff(offsets) == 0).tolist():
        raise DataError(
            f"row {empty[0] + 1}: the tokenizer makes no token of {rows.texts[empty[0]]!r}; {len(empty)} such rows"
        )


def serialise(tokenizer: Any, words: bool = False) -> str:
    """The tokenizer as JSON, less the state that transformers leaves in it: the last call's truncation and padding."""
    return _stateless(_backend(tokenizer).to_str(), words)


def _backend(tokenizer: Any) -> Any:
    """Of the tokenizers library; ConfigError where transformers' class splits texts in Python (BERTweet's, CTRL's, ByT5's)."""
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ConfigError(
            f"texts are read with the tokenizers library, and {type(tokenizer).__name__} splits them in Python; give a "
            "PreTrainedTokenizerFast, or tokenise in a loop of your own and give TaskBank the batches"
        )
    return tokenizer.backend_tokenizer


@lru_cache(maxsize=2)  # every split of every run of a pack asks again, and a vocabulary is long
def _stateless(serialised: str, words: bool) -> str:
    state = json.loads(serialised)
    state["truncation"] = state["padding"] = None
    if words:
        _prefix_words(state["pre_tokenizer"])
    return json.dumps(state)


def _prefix_words(step: dict[str, Any] | None) -> None:
    """Byte-level BPE knows a word by the space before it: put one before each word of a list."""
    if step is None:
        return
    if step["type"] == "ByteLevel":
        step["add_prefix_space"] = True
    for inner in step.get("pretokenizers", ()):
        _prefix_words(inner)


def cache_key(settings: list[Any], serialised: str, texts: Any) -> str:
    """sha256 over everything that the tokens are made from."""
    digest = hashlib.sha256(json.dumps(["intarsia tokens 1", *settings]).encode())
    digest.update(serialised.encode())
    digest.update(json.dumps(texts).encode())
    return digest.hexdigest()


def _tokenise(
    texts: list[tuple[str, ...]], serialised: str, side: str, max_length: int, words: bool
) -> dict[str, np.ndarray]:
    """{"ids", "type_ids", "offsets", "truncated"}, and "words" where asked for."""
    fresh = parsed(serialised)
    # Cutting is done here: tokenizers' own keeps every overflowing part, for a pair every combination of them.
    encode_batch = fresh.encode_batch if words else fresh.encode_batch_fast  # the fast one does not know words
    ids, types, starts, truncated = [], [], [], 0
    for at in range(0, len(texts), CHUNK):
        chunk = texts[at : at + CHUNK]
        inputs = [row[0] for row in chunk] if len(chunk[0]) == 1 and not words else chunk
        for encoding in encode_batch(inputs, is_pretokenized=words):
            row, row_types = encoding.ids, encoding.type_ids
            kept = None
            if len(row) > max_length:
                truncated += 1
                kept = _kept(encoding.sequence_ids, max_length, side)
                row, row_types = [row[i] for i in kept], [row_types[i] for i in kept]
            if words:
                of = _word_starts(encoding.word_ids)
                starts.append(np.array(of if kept is None else [of[i] for i in kept], np.int32))
            ids.append(np.array(row, np.int32))
            types.append(np.array(row_types, np.int32))
    arrays = flatten(ids) | {"type_ids": flatten(types)["ids"], "truncated": np.array([truncated])}
    return arrays | ({"words": flatten(starts)["ids"]} if words else {})


def _kept(sequences: list[int | None], max_length: int, side: str) -> list[int]:
    """Positions that stay: all special tokens, and of each text what fits; the longer text is cut first.

    The arithmetic is that of tokenizers' "longest_first", odd lengths included.
    """
    sizes = [sequences.count(0), sequences.count(1)]
    budget = max_length - (len(sequences) - sum(sizes))
    if not sizes[1]:
        keep = [budget, 0]
    else:
        short, long = (1, 0) if sizes[0] > sizes[1] else (0, 1)
        keep = [0, 0]
        keep[short] = min(sizes[short], budget // 2)
        keep[long] = budget - keep[short]
    kept, seen = [], [0, 0]
    for position, sequence in enumerate(sequences):
        if sequence is None:
            kept.append(position)
            continue
        rank = seen[sequence] if side == "right" else sizes[sequence] - 1 - seen[sequence]
        seen[sequence] += 1
        if rank < keep[sequence]:
            kept.append(position)
    return kept


def _word_starts(word_ids: list[int | None]) -> list[int]:
    before = [None, *word_ids[:-1]]
    return [-1 if word is None or word == last else word for word, last in zip(word_ids, before, strict=True)]


def _labels(rows: Rows, kind: str, offsets: np.ndarray, starts: np.ndarray | None) -> np.ndarray | None:
    if rows.labels is None:
        return None
    if starts is None:
        return np.array(rows.labels, np.int64 if kind == "classification" else np.float32)
    labels = np.full(len(starts), IGNORED, np.int64)
    for row, tags in enumerate(rows.labels):
        part = slice(offsets[row], offsets[row + 1])
        words = starts[part]
        labels[part][words >= 0] = np.array(tags, np.int64)[words[words >= 0]]
    return labels
