r"""Prompt tuning (Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning",
https://arxiv.org/abs/2104.08691).

    E <- [P; E]          P: (N, length, E), the embeddings of virtual tokens; nothing else is trained

Of an encoder-decoder, E is the encoder's input, as in the paper.

Initialisation, the paper's three and one more: "uniform" in [-init_range, init_range]; "vocabulary": rows drawn without
replacement from the 5,000 commonest words; "labels": for each label the mean over its word pieces, the rest from the
vocabulary; "text": the words' own embeddings, the rest from the vocabulary.

The paper's default is 100 virtual tokens and "labels", for text-to-text tasks over models of up to 11 billion parameters. Ours,
20 and "vocabulary", also suit tasks whose labels have no words, and the paper sees little gain beyond 20.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intarsia.errors import ConfigError, UnsupportedError
from intarsia.methods.base import Delta, EmbeddingDelta, Method, Place, Pretrained, check_init, with_roles
from intarsia.sites import Role, Site

InsertAt = Literal["auto", "word_embeddings", "embedding_output"]
COMMON = 5000
"""Words that "vocabulary" draws from (paper, section 3.2)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptTuning(Method):
    """Prompt tuning (Lester et al. 2021, https://arxiv.org/abs/2104.08691)."""

    name: ClassVar[str] = "prompt"
    default_lr: ClassVar[float] = 5e-2

    length: int = 20
    """Virtual tokens P. The paper takes 100 and sees little gain beyond 20."""
    place: Place = "start"
    """start, after-first (after BOS or [CLS]), end, or template (in the input's prompt slots)."""
    insert_at: InsertAt = "auto"
    """word_embeddings (they get positions as words do); embedding_output (after positions and norm); auto: the first, if any."""
    init: Literal["auto", "uniform", "vocabulary", "text", "labels"] = "auto"
    """uniform, vocabulary, text, labels; auto: vocabulary, or uniform at the embedding output."""
    init_text: str | None = None
    """The words for init "text"; cut to `length`, or the rest is drawn from the vocabulary."""
    init_range: float = 0.5
    """init "uniform" draws from [-init_range, init_range]."""
    dropout: float = 0.0
    """Dropout on the prompt while training."""

    def __post_init__(self) -> None:
        check_prompt("PromptTuning", self.length, self.place, self.insert_at)
        check_init("PromptTuning", self.init, ("auto", "uniform", "vocabulary", "text", "labels"), self.init_text)
        if self.insert_at == "embedding_output" and self.init not in ("auto", "uniform"):
            raise ConfigError(
                f"PromptTuning.init is {self.init!r}, but words have no embeddings at the embedding output; give 'uniform'."
            )
        if not 0 <= self.init_range < math.inf:
            raise ConfigError(f"PromptTuning.init_range must be 0 or more, got {self.init_range}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"PromptTuning.dropout must be in [0, 1), got {self.dropout}")

    def sites(self, available: Sequence[Site]) -> list[Site]:
        """The one place where prompts join."""
        return [prompt_site("PromptTuning", self.insert_at, available)]

    def build(self, sites: Sequence[Site], pretrained: Pretrained, labels: Sequence[str] = ()) -> dict[str, Delta]:
        """A PromptDelta."""
        return {
            site.key: PromptDelta(self._rows(site, pretrained, labels)[None], place=self.place, dropout=self.dropout)
            for site in sites
        }

    def folded(self) -> Method:
        """The same prompt with uniform values."""
        return replace(self, init="uniform", init_text=None)

    def _rows(self, site: Site, pretrained: Pretrained, labels: Sequence[str]) -> Tensor:
        """The initial prompt, (length, E)."""
        words = site.role is Role.EMBED
        init = self.init if self.init != "auto" else "vocabulary" if words else "uniform"
        if init == "uniform":
            return (torch.rand(self.length, site.width) * 2 - 1) * self.init_range
        if not words:
            raise ConfigError(f"PromptTuning.init is {init!r}, but this backbone has no words; give 'uniform'.")
        rows = torch.empty(0, site.width)
        if init == "text":
            rows = pretrained.embeddings(self.init_text or "")
        elif init == "labels":
            if not labels:
                raise ConfigError("PromptTuning.init is 'labels', but the task has none; give 'vocabulary' or 'text'.")
            rows = torch.stack([pretrained.embeddings(label).mean(dim=0) for label in labels])
        rows = rows[: self.length]
        return torch.cat([rows, _sampled(pretrained, self.length - len(rows))]) if len(rows) < self.length else rows


class PromptDelta(EmbeddingDelta):
    """E <- [P; E].   prompt: (N, P, E)"""

    def __init__(self, prompt: Tensor, *, place: Place = "start", dropout: float = 0.0) -> None:
        super().__init__()
        self.length, self.place, self.dropout = prompt.shape[1], place, dropout
        self.prompt = nn.Parameter(prompt.detach().clone())

    def decay_free(self) -> frozenset[str]:
        """The prompt: decay would pull it towards an embedding of zero, which means nothing."""
        return frozenset({"prompt"})

    def forward(self) -> Tensor:
        """Returns (N, P, E)."""
        return F.dropout(self.prompt, self.dropout) if self.training and self.dropout else self.prompt


def check_prompt(owner: str, length: int, place: str, insert_at: str) -> None:
    """ConfigError unless the fields that all prompts share are in order."""
    if length < 1:
        raise ConfigError(f"{owner}.length must be at least 1, got {length}")
    for field, value, known in (("place", place, get_args(Place)), ("insert_at", insert_at, get_args(InsertAt))):
        if value not in known:
            raise ConfigError(f"{owner}.{field} must be {', '.join(repr(one) for one in known)}; got {value!r}")
    if place == "template" and insert_at == "embedding_output":
        raise ConfigError(f"{owner}.place is 'template', whose slots are words; give insert_at 'word_embeddings'.")


def prompt_site(owner: str, insert_at: InsertAt, available: Sequence[Site]) -> Site:
    """The site at the word embeddings, or at the embedding block's output."""
    found = {role: with_roles(available, (role,)) for role in (Role.EMBED, Role.EMBED_OUT)}
    if insert_at == "auto":
        insert_at = "word_embeddings" if found[Role.EMBED] else "embedding_output"
    if sites := found[Role.EMBED if insert_at == "word_embeddings" else Role.EMBED_OUT]:
        return sites[0]
    other = "embedding_output" if insert_at == "word_embeddings" else "word_embeddings"
    if not any(found.values()):
        raise UnsupportedError(
            f"{owner} needs word embeddings that are taken in place of tokens, which this backbone does not have; use prefix, "
            "adapter or lora."
        )
    raise UnsupportedError(
        f"{owner}.insert_at is {insert_at!r}, which this backbone does not have; give {other!r}, or use prefix, adapter or lora."
    )


def _sampled(pretrained: Pretrained, count: int) -> Tensor:
    """(count, E): embeddings of common words, without replacement until the vocabulary is used up."""
    common = pretrained.common_embeddings(COMMON)
    if len(common) == 0:
        raise ConfigError("this backbone's vocabulary has no whole words to start a prompt from; give init 'uniform'.")
    rounds = [torch.randperm(len(common)) for _ in range(math.ceil(count / len(common)))]
    return common[torch.cat(rounds)[:count]]
