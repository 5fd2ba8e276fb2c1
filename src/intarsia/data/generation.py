"""Inputs and targets of a generation task to tokens: flat arrays for a whole split, cached by content."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from intarsia.data.cache import cached
from intarsia.data.encoding import cache_key, refuse_empty, serialise
from intarsia.data.filling import CHUNK, fill, flatten, parsed
from intarsia.data.spec import Rows
from intarsia.data.template import Template
from intarsia.errors import ConfigError


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPairs:
    """The tokens of a split; row i is `ids[offsets[i] : offsets[i + 1]]` and its target likewise."""

    encoder_decoder: bool
    ids: np.ndarray
    """(L,) int32: the inputs, with special tokens."""
    offsets: np.ndarray
    """(rows + 1,) int64"""
    targets: np.ndarray | None
    """(M,) int32: each row's first reference and the end-of-sequence token. None: no references."""
    target_offsets: np.ndarray | None
    """(rows + 1,) int64"""
    references: list[list[str]] | None
    """Of each row, every text that its output is compared with."""
    truncated: int
    """Rows whose input was cut."""
    truncated_targets: int
    """Rows whose target was cut to target_length; it does not end, so no end-of-sequence token follows it."""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(rows,) int64: tokens of each row, input and target."""
        inputs = np.diff(self.offsets)
        return inputs if self.target_offsets is None else inputs + np.diff(self.target_offsets)

    def targets_over(self, tokens: int) -> int:
        """How many targets are of more tokens, the end-of-sequence token aside: more than so long an output can say."""
        return 0 if self.target_offsets is None else int((np.diff(self.target_offsets) > tokens + 1).sum())


def encode_generation(
    rows: Rows,
    tokenizer: Any,
    *,
    max_length: int,
    target_length: int,
    template: Template | None,
    encoder_decoder: bool,
    cache: Path | None = None,
) -> EncodedPairs:
    """Tokenise inputs and first references with `tokenizer`, a PreTrainedTokenizerFast, which is left as it was.

    template None: the texts with " | " between them; for a decoder a line break follows.
    target_length: most tokens of a target, its end-of-sequence token included. max_length: most tokens of an
    encoder-decoder's input; for a decoder of input and target together, so that an input has max_length - target_length
    at most. That does not look at the target's own length: scoring and predicting cut an input alike.
    cache: a folder, as for `encode`.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError("generation needs a tokenizer with an end-of-sequence token, and this one has none")
    room = input_room(max_length, target_length, encoder_decoder)
    width = len(rows.texts[0]) if len(rows) else 1
    template, blanks = (template or plain_template(width, encoder_decoder)).split_end()
    firsts = None if rows.labels is None else [references[0] for references in rows.labels]
    before = "" if encoder_decoder else blanks
    arrays, notes = _arrays(rows, firsts, before, tokenizer, room, target_length, template, encoder_decoder, cache)
    refuse_empty(rows, arrays["offsets"])
    return EncodedPairs(
        encoder_decoder=encoder_decoder,
        ids=arrays["ids"],
        offsets=arrays["offsets"],
        targets=arrays.get("targets"),
        target_offsets=arrays.get("target_offsets"),
        references=None if rows.labels is None else list(rows.labels),
        truncated=int(arrays["truncated"][0]),
        truncated_targets=int(arrays["truncated_targets"][0]) if firsts is not None else 0,
        notes=tuple(notes),
    )


def plain_template(width: int, encoder_decoder: bool) -> Template:
    """What stands for a template where nobody gave one, for rows of so many texts."""
    return Template.joined([f"text {i}" for i in range(1, width + 1)], end="" if encoder_decoder else "\n")


def input_room(max_length: int, target_length: int, encoder_decoder: bool) -> int:
    """Most tokens of an input; ConfigError where there are none."""
    room = max_length if encoder_decoder else max_length - target_length
    if target_length < 2 or room < 2:
        least = 2 if encoder_decoder else target_length + 2
        raise ConfigError(
            f"target_length must be at least 2, got {target_length}, and max_length at least {least}, got {max_length}"
        )
    return room


def _arrays(
    rows: Rows,
    firsts: list[str] | None,
    before: str,
    tokenizer: Any,
    room: int,
    target_length: int,
    template: Template,
    encoder_decoder: bool,
    cache: Path | None,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays, from the cache where they are there, and what is to be said of the cache."""
    serialised = serialise(tokenizer)
    settings = ["generation", tokenizer.truncation_side, room, target_length, repr(template.parts), encoder_decoder]
    key = cache_key([*settings, before, tokenizer.eos_token_id], serialised, [rows.texts, firsts])

    def make() -> dict[str, np.ndarray]:
        made = fill(rows.texts, template, tokenizer, serialised, room, closed=encoder_decoder)
        if firsts is not None:
            made |= _targets(firsts, before, serialised, tokenizer.eos_token_id, target_length)
        return made

    return cached(cache, key, make)


def _targets(firsts: list[str], before: str, serialised: str, eos: int, length: int) -> dict[str, np.ndarray]:
    """{"targets", "target_offsets", "truncated_targets"}; `before` is the blanks that the template has before a target."""
    fresh = parsed(serialised)
    if before and fresh.encode("a", add_special_tokens=False).tokens[0].startswith("▁"):
        before = before[1:]  # SentencePiece puts a blank of its own before a text
    firsts = [before + first for first in firsts] if before else firsts
    rows, truncated = [], 0
    for at in range(0, len(firsts), CHUNK):
        for encoding in fresh.encode_batch_fast(firsts[at : at + CHUNK], add_special_tokens=False):
            ids = [*encoding.ids, eos]
            truncated += len(ids) > length
            rows.append(np.array(ids[:length], np.int32))
    flat = flatten(rows)
    return {"targets": flat["ids"], "target_offsets": flat["offsets"], "truncated_targets": np.array([truncated])}
