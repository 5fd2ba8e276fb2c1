"""Tokens to text as they come: no half characters, and no beginning of a stop text, ever leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_CONTEXT = 6
"""Tokens before the output that are decoded along: a first token's blank depends on what stands before it."""


class TextStream:
    """The text of one output."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int], stop: Sequence[str]) -> None:
        """prompt: the tokens before the output."""
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.ids = [token for token in prompt[-_CONTEXT:] if token >= 0]  # a template's slots are below 0
        self._read = len(self.ids)
        """Tokens whose text has been taken."""
        self._from = 0
        """Where decoding begins: some tokens before those."""
        self.text = ""
        """What has left."""
        self._held = ""
        """Read, and kept back as it may begin a stop text."""
        self.stopped = False
        """A stop text has come."""

    def push(self, token: int) -> str:
        """One more token; returns the text that can leave now."""
        self.ids.append(token)
        before = self._decoded(self.ids[self._from : self._read])
        now = self._decoded(self.ids[self._from :])
        if len(now) <= len(before) or now.endswith("\ufffd"):  # the bytes of a character are not all there
            return ""
        self._from, self._read = self._read, len(self.ids)
        return self._leave(now[len(before) :])

    def finish(self) -> str:
        """The end: what was kept back."""
        if self.stopped:
            return ""
        before = self._decoded(self.ids[self._from : self._read])
        rest = self._decoded(self.ids[self._from :])[len(before) :]
        found = self._leave(rest)
        if self.stopped:
            return found
        held, self._held = self._held, ""
        self.text += held
        return found + held

    def _decoded(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True) if ids else ""

    def _leave(self, piece: str) -> str:
        waiting = self._held + piece
        places = [place for text in self.stop if (place := waiting.find(text)) >= 0]
        if places:
            self.stopped, out, self._held = True, waiting[: min(places)], ""
        else:
            keep = max((_overlap(waiting, text) for text in self.stop), default=0)
            out, self._held = waiting[: len(waiting) - keep], waiting[len(waiting) - keep :]
        self.text += out
        return out


def _overlap(text: str, stop: str) -> int:
    """The longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
