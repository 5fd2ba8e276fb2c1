"""One text that is being written: what it is asked for with, and what each new token brings its caller."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from intarsia.backbone import Backbone
from intarsia.serving.sampling import Chooser, Sampling, choose
from intarsia.serving.text import TextStream
from intarsia.sites import Role


@dataclass(slots=True, eq=False)
class Writing:
    """One text that is asked for."""

    prompt: list[int]
    """Its tokens; below 0: slots of a template."""
    task: str | None
    """By the bank's name; None: the plain backbone."""
    sampling: Sampling
    owner: Any = None
    """The caller's own."""
    new: list[int] = field(default_factory=list)
    """The tokens so far, without the one that ends it."""
    columns: int = 0
    """At its end, once a decoder has taken it."""
    text: TextStream = field(init=False)
    chooser: Chooser = field(init=False)


@dataclass(frozen=True, slots=True)
class Emitted:
    """What a step brought a text."""

    writing: Writing
    text: str
    """What can be shown now; may be empty."""
    finish: str | None
    """`stop` or `length` with the last one."""
    error: Exception | None = None
    """The model failed on it, or on a row beside it; it is gone, and groups of other rows go on."""


def next_tokens(
    rows: Sequence[Writing], scores: Tensor, ends: Collection[int]
) -> tuple[list[int | None], list[Emitted]]:
    """As `taken`, of the tokens that each row's settings choose. scores: (B, V)."""
    return taken(rows, choose(scores, [row.chooser for row in rows]), ends)


def taken(
    rows: Sequence[Writing], chosen: Sequence[int], ends: Collection[int]
) -> tuple[list[int | None], list[Emitted]]:
    """The next token of each row, None where it has ended, and what its caller sees of it. ends: tokens that end a text."""
    tokens: list[int | None] = []
    emitted: list[Emitted] = []
    for row, token in zip(rows, chosen, strict=True):
        finish, text = None, ""
        if token in ends:
            finish, text = "stop", row.text.finish()
        else:
            row.new.append(token)
            text = row.text.push(token)
            if row.text.stopped:
                finish = "stop"
            elif len(row.new) == row.sampling.max_tokens:
                finish, text = "length", text + row.text.finish()
                finish = "stop" if row.text.stopped else finish
        tokens.append(None if finish else token)
        emitted.append(Emitted(row, text, finish))
    return tokens, emitted


@torch.no_grad()
def keeps_rows(backbone: Backbone) -> bool:
    """Whether every site's output has one entry a row. To be known before a cache is half written."""
    seen: set[int] = set()
    handles = [
        backbone.base.get_submodule(site.module).register_forward_hook(lambda _m, _a, y: seen.add(y.shape[0]))
        for site in backbone.sites
        if site.role not in (Role.EMBED, Role.EMBED_OUT, Role.KV, Role.WEIGHT)
    ]
    ids = torch.zeros(2, 3, dtype=torch.long)
    try:
        backbone.features({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    finally:
        for handle in handles:
            handle.remove()
    return seen == {2}
