"""Heads: what turns the backbone's states into a prediction. Tensors have the task axis N in front, as all others do.

Two heads train nothing, and let the frozen language model speak: `generation`, and a classification head with a `verbaliser`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intarsia import ops
from intarsia.errors import ConfigError

Kind = Literal["classification", "multi-label", "regression", "token-classification", "generation"]
Pooling = Literal["auto", "cls", "mean", "last", "pooler"]
KINDS: tuple[str, ...] = ("classification", "multi-label", "regression", "token-classification", "generation")
POOLINGS: tuple[str, ...] = ("auto", "cls", "mean", "last", "pooler")
IGNORED = -100
"""A token without a label."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """What a task predicts, and from which state."""

    kind: Kind = "classification"
    """classification (of a text or a pair), multi-label, regression, token-classification, or generation."""
    labels: tuple[str, ...] = ()
    """Label names in the order of the scores; none for regression. Generation: the legal outputs, none for free text."""
    pooling: Pooling = "auto"
    """State that is read: of the first token (cls), the mean over the tokens, the last token's, or the backbone's own pretrained
    pooler. auto: the mean for encoders, the last token for models with a decoder. BERT and its kin leave out what is not read."""
    dropout: float = 0.1
    """Dropout on the pooled state while training."""
    verbaliser: tuple[str, ...] = ()
    """classification: a word for each label; its scores are the language model's for these words (the first token of each) at
    the [MASK] of a masked language model, or after the last token of a causal one. Nothing is trained in such a head."""
    loss: Literal["token", "sentence"] = "token"
    """generation: the loss is the mean over target tokens, or their sum in each sentence as in the authors' prefix-tuning code."""
    mean: float = 0.0
    """regression: of the training labels. `train` reads it and `scale` off them; in a loop of your own give both."""
    scale: float = 1.0
    """regression: the labels' standard deviation, in which the loss is measured. Scores are in the labels' own units."""

    @property
    def reads_one(self) -> bool:
        """Whether it reads one state of each row, at `place`."""
        return self.kind not in ("token-classification", "generation") and self.pooling not in ("mean", "auto")

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"Head.kind must be one of {', '.join(KINDS)}; got {self.kind!r}")
        if self.pooling not in POOLINGS:
            raise ConfigError(f"Head.pooling must be one of {', '.join(POOLINGS)}; got {self.pooling!r}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"Head.dropout must be in [0, 1), got {self.dropout}")
        if self.loss not in ("token", "sentence"):
            raise ConfigError(f"Head.loss must be 'token' or 'sentence', got {self.loss!r}")
        if self.verbaliser and (self.kind != "classification" or len(self.verbaliser) != len(self.labels)):
            raise ConfigError(
                f"Head.verbaliser needs kind classification and a word for each of the {len(self.labels)} labels, got "
                f"{len(self.verbaliser)} words and kind {self.kind}"
            )
        object.__setattr__(self, "labels", _names(self.labels))
        if self.kind == "regression" and len(self.labels) > 1:
            raise ConfigError(f"a regression head predicts one number and has no labels, got {list(self.labels)}")
        least = {"classification": 2, "token-classification": 2, "multi-label": 1}.get(self.kind, 0)
        if len(self.labels) < least:
            raise ConfigError(f"a {self.kind} head needs at least {least} label names, got {len(self.labels)}")
        usable = self.kind == "regression" and abs(self.mean) < float("inf") and 0 < self.scale < float("inf")
        if not usable and (self.mean, self.scale) != (0, 1):
            got = f"mean {self.mean}, scale {self.scale} and kind {self.kind}"
            raise ConfigError(f"Head.mean and Head.scale are for regression, finite, and scale above 0; got {got}")
        if len(set(self.labels)) != len(self.labels):
            raise ConfigError(f"Head.labels must differ from one another, got {list(self.labels)}")

    @property
    def trained(self) -> bool:
        """Whether it has weights of its own; the others read the language model's scores."""
        return self.kind != "generation" and not self.verbaliser

    @property
    def outputs(self) -> int:
        """Scores per text (or token)."""
        return len(self.labels) or 1

    def in_units(self, scores: Tensor) -> Tensor:
        """What the weights put out, in the labels' units; of other kinds than regression the same."""
        return scores if (self.mean, self.scale) == (0, 1) else scores * self.scale + self.mean


def _names(labels: Any) -> tuple[Any, ...]:
    """Labels as a tuple of what json has words for, also where an array, a list or a view of a dictionary was given."""
    if isinstance(labels, str | set | frozenset) or not isinstance(labels, Iterable):
        raise ConfigError(f'Head.labels must be a tuple of names, such as ("no", "yes"), got {labels!r}')
    plain = tuple(one.item() if hasattr(one, "item") else one for one in labels)
    if wrong := [one for one in plain if not isinstance(one, str | int | float)]:
        raise ConfigError(f"Head.labels must be names, got {wrong[0]!r}")
    return plain


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """How text is generated, in transformers' names. A checkpoint's own settings (penalties, forced tokens) have no part in it."""

    max_new_tokens: int = 64
    """Longest output, in tokens."""
    beams: int = 1
    """Beams of beam search; 1 is greedy."""
    length_penalty: float = 1.0
    """Exponent of the length by which a beam's score is divided; above 0 favours long outputs."""
    sample: bool = False
    """Draw each token instead of taking the likeliest."""
    temperature: float = 1.0
    """Sampling: below 1 sharpens the distribution."""
    top_k: int = 50
    """Sampling: from so many of the likeliest tokens; 0: all."""
    top_p: float = 1.0
    """Sampling: from the likeliest tokens that hold this much of the probability."""
    seed: int = 0
    """Of sampling; the same seed gives the same text on the same machine and batch. Other batches draw other numbers."""
    static_cache: bool = False
    """A key-value cache of fixed size, as compiled decoding wants."""

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 1), ("beams", 1), ("top_k", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"Decoding.{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"Decoding.temperature must be above 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"Decoding.top_p must be above 0 and at most 1, got {self.top_p}")
        if not abs(self.length_penalty) < float("inf"):
            raise ConfigError(f"Decoding.length_penalty must be a finite number, got {self.length_penalty}")

    def settings(self) -> dict[str, Any]:
        """As keyword arguments of transformers' generate."""
        found: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.beams,
            "do_sample": self.sample,
            "use_cache": True,
        }
        if self.beams > 1:
            found["length_penalty"] = self.length_penalty
        if self.sample:
            found |= {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        if self.static_cache:
            found["cache_implementation"] = "static"
        return found


def place(mask: Tensor, pooling: Pooling) -> Tensor:
    """(B,): the column of each row whose state is read, where it is one. mask: (B, T) of real tokens, on either side."""
    if pooling in ("cls", "pooler"):
        return mask.int().argmax(dim=1)
    return (torch.arange(mask.shape[1], device=mask.device) * mask.ne(0)).argmax(dim=1)


def pool(states: Tensor, mask: Tensor | None, pooling: Pooling) -> Tensor:
    """(B, T, D) states and (B, T) mask of real tokens (None: all are) -> (B, D). Right for padding on either side."""
    if pooling == "mean":
        if mask is None:
            return states.mean(dim=1)
        weight = mask.unsqueeze(-1).float()  # a sum of 512 tokens overflows fp16, and bf16 cannot count them
        return (states * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
    if mask is None:
        return states[:, -1 if pooling == "last" else 0]
    return states[torch.arange(len(states), device=states.device), place(mask, pooling)]


class Reader:
    """scores = W dropout(pooled) + c, in the labels' units.   W: (N, C, D), c: (N, C)"""

    __slots__ = ()
    head: Head
    weight: Tensor
    bias: Tensor
    training: bool

    def forward(self, states: Tensor, mask: Tensor | None, pooler: nn.Module | None = None) -> Tensor:
        """states: (B, T, D), mask: (B, T) or None. Returns fp32 scores (B, C); (B, T, C) for token classification."""
        scores = ops.linear(self.read(states, mask, pooler), self.weight, self.bias)
        return self.head.in_units(scores.to(self.weight.dtype))  # autocast's bf16 has no steps for years

    def read(self, states: Tensor, mask: Tensor | None, pooler: nn.Module | None = None) -> Tensor:
        """What the scores are made from: (B, D); (B, T, D) for token classification."""
        if self.head.kind != "token-classification":
            pooled = pool(states, mask, self.head.pooling)
            if self.head.pooling == "pooler":
                assert pooler is not None, "Task.new checks that the backbone has one"
                pooled = pooler(pooled.unsqueeze(1))  # transformers' poolers take the first of (B, T, D)
            states = pooled
        states = states.to(self.weight.dtype)
        return F.dropout(states, self.head.dropout) if self.training and self.head.dropout else states


class HeadModule(Reader, nn.Module):
    """A head that is trained."""

    def __init__(self, head: Head, hidden: int) -> None:
        super().__init__()
        self.head = head
        self.weight = nn.Parameter(torch.empty(1, head.outputs, hidden))
        self.bias = nn.Parameter(torch.zeros(1, head.outputs))
        nn.init.trunc_normal_(self.weight, std=0.02, a=-0.04, b=0.04)  # as google-research/adapter-bert


class FrozenHead(Reader):
    """A head that only answers. It is no nn.Module, whose dictionaries count beside the tensors of a prompt."""

    __slots__ = ("flat", "head", "hidden")
    training = False

    def __init__(self, head: Head, module: Reader) -> None:
        """A copy of the module's numbers, where they are."""
        self.head, self.hidden = head, module.weight.shape[-1]
        weight, bias = (x.detach().flatten() for x in (module.weight, module.bias))
        spare = weight.new_zeros(-(len(weight) + len(bias)) % ops.ALIGN)
        self.flat = torch.cat([weight, bias, spare])
        """All numbers, so that they come and go as one copy."""

    @property
    def nbytes(self) -> int:
        """Of its numbers."""
        return self.flat.numel() * self.flat.element_size()

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(1, C, D), a view."""
        return _matrix(self, self.flat[None])

    @property
    def bias(self) -> Tensor:  # type: ignore[override]
        """(1, C), a view."""
        return _vector(self, self.flat[None])

    def __call__(self, states: Tensor, mask: Tensor | None, pooler: nn.Module | None = None) -> Tensor:
        """See `forward`."""
        return self.forward(states, mask, pooler)

    def module(self) -> HeadModule:
        """The module that it was, on the CPU; it takes no gradients."""
        with torch.device("meta"):  # draws no random numbers
            made = HeadModule(self.head, self.weight.shape[-1])
        made.weight, made.bias = (
            nn.Parameter(x.to("cpu", copy=True), requires_grad=False) for x in (self.weight, self.bias)
        )
        return made.eval()


def _matrix(head: FrozenHead, flats: Tensor) -> Tensor:
    """(N, C, D) of N flat tensors (N, size) like this head's."""
    return flats[:, : head.head.outputs * head.hidden].unflatten(1, (head.head.outputs, head.hidden))


def _vector(head: FrozenHead, flats: Tensor) -> Tensor:
    """(N, C), likewise."""
    return flats[:, head.head.outputs * head.hidden :][:, : head.head.outputs]


def _together(modules: Sequence[Reader]) -> tuple[Tensor, Tensor]:
    """W and c of heads of one shape: (N, C, D) and (N, C)."""
    first, frozen = modules[0], [module for module in modules if isinstance(module, FrozenHead)]
    if isinstance(first, FrozenHead) and len(frozen) == len(modules):
        flats = torch.stack([module.flat for module in frozen])
        return _matrix(first, flats), _vector(first, flats)
    return torch.cat([module.weight for module in modules]), torch.cat([module.bias for module in modules])


def score_rows(states: Tensor, mask: Tensor | None, heads: Sequence[Reader | None]) -> list[Tensor]:
    """The scores of each row by its own head; its states (T, D) where it has none. states: (B, T, D), mask: (B, T) or None.

    Heads of one shape are one product, however many tasks they are of.
    """
    found = list(states)
    alike: dict[tuple[object, ...], list[int]] = {}
    for row, module in enumerate(heads):
        if module is not None:
            head = module.head
            alike.setdefault((head.kind, head.pooling, head.outputs, head.dropout, module.training), []).append(row)
    for rows in alike.values():
        modules = [module for row in rows if (module := heads[row]) is not None]
        own, seen = states, mask
        if len(rows) < len(heads):
            # Not by torch.tensor(device=...), which waits for all that the GPU was given before.
            index = torch.tensor(rows).to(states.device, non_blocking=True)
            own, seen = states[index], None if mask is None else mask[index]
        read = modules[0].read(own, seen)
        same = all(module is modules[0] for module in modules)
        weight, bias = (modules[0].weight, modules[0].bias) if same else _together(modules)
        scores = ops.linear(read, weight, bias).to(weight.dtype).unbind()
        for row, module, score in zip(rows, modules, scores, strict=True):
            found[row] = module.head.in_units(score)
    return found
