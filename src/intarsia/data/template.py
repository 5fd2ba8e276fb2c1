"""Templates: how the columns of a row become one string, where the prompt's virtual tokens stand in it, and the mask.

    "{sentence1} ? {prompt:3} {mask}"        a field, an anchor, three slots and a mask (P-tuning)
    "name: {mr}\\n"                           one column of a generation task

`{column}` is a field. `{prompt}` or `{prompt:3}` are slots of the trained prompt, numbered from 0 over the template.
`{mask}` is the tokenizer's mask token. `{{` and `}}` are braces. A column that is named prompt or mask has to be renamed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from intarsia.errors import ConfigError

TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
BLANKS = " "  # only these: a line break before a slot is an anchor


@dataclass(frozen=True, slots=True)
class Field:
    """The text of one column."""

    column: str


@dataclass(frozen=True, slots=True)
class Slots:
    """Prompt vectors `first`, ..., `first + count - 1`."""

    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Mask:
    """The tokenizer's mask token."""


Part = str | Field | Slots | Mask
"""A str is literal text: an anchor."""


@dataclass(frozen=True, slots=True)
class Template:
    """The parts of a template, in order. Made by `parse` from what a user wrote, or by `joined` where nothing was."""

    parts: tuple[Part, ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """ConfigError shows the place of what cannot be read."""
        parts: list[Part] = []
        at = slots = 0
        for found in TOKEN.finditer(text):
            literal = text[at : found.start()]
            at = found.end()
            if found[0] in ("{{", "}}"):
                parts += [literal, found[0][0]]
                continue
            if found[1] is None:
                raise _bad(text, found.start(), f"a single {found[0]!r}; write {found[0] * 2!r} for a brace")
            part = _part(text, found.start(), found[1].strip(), slots)
            slots += part.count if isinstance(part, Slots) else 0
            parts += [literal, part]
        template = cls(_merged([*parts, text[at:]]))
        if not template.columns:
            raise ConfigError(f"template {text!r} names no column; write the column of the text as {{column}}")
        if sum(isinstance(part, Mask) for part in template.parts) > 1:
            raise ConfigError(f"template {text!r} holds more than one {{mask}}; the answer is read at one")
        return template

    @classmethod
    def joined(cls, columns: Sequence[str], end: str = "") -> Template:
        """The columns with " | " between them, and `end` behind."""
        between = [part for column in columns for part in (" | ", Field(column))]
        return cls(_merged([*between[1:], end]))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it needs, in the order of their first field."""
        return tuple(dict.fromkeys(part.column for part in self.parts if isinstance(part, Field)))

    @property
    def prompt_length(self) -> int:
        """Slots for prompt vectors."""
        return sum(part.count for part in self.parts if isinstance(part, Slots))

    @property
    def has_mask(self) -> bool:
        return any(isinstance(part, Mask) for part in self.parts)

    def split_end(self) -> tuple[Template, str]:
        """The template without the blanks at its end, and these blanks.

        A word of byte-level BPE begins with its blank. Blanks before a generated word therefore belong to that word.
        """
        last = self.parts[-1]
        if not isinstance(last, str):
            return self, ""
        kept = last.rstrip(BLANKS)
        return Template(_merged([*self.parts[:-1], kept])), last[len(kept) :]


def _part(text: str, at: int, name: str, slots: int) -> Part:
    if name == "mask":
        return Mask()
    if name == "prompt":
        return Slots(slots, 1)
    if name.startswith("prompt:"):
        count = name.removeprefix("prompt:").strip()
        if not re.fullmatch(r"[1-9][0-9]{0,4}", count):
            raise _bad(text, at, f"{{{name}}}, expected the number of slots, as in {{prompt:3}}")
        return Slots(slots, int(count))
    if not name:
        raise _bad(text, at, "empty braces, expected {column}, {prompt}, {prompt:3} or {mask}")
    return Field(name)


def _bad(text: str, at: int, what: str) -> ConfigError:
    before, after = text[max(0, at - 12) : at], text[at : at + 12]
    return ConfigError(f"template, character {at + 1} ({before + after!r}, at {after!r}): {what}")


def _merged(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Literals that touch become one; empty ones go."""
    merged: list[Part] = []
    for part in parts:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        elif part != "":
            merged.append(part)
    return tuple(merged)
