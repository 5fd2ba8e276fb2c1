"""How each request's next token is chosen: it draws from a generator of its own, so its text does not depend on neighbours."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from intarsia.errors import ConfigError

MOST_STOPS = 16
COLDEST = 1e-6
"""A lower temperature than this is taken for it: the likeliest token is as good as certain, and scores stay within fp32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """One request's settings; the names are OpenAI's."""

    max_tokens: int = 64
    """Longest output, in tokens."""
    temperature: float = 0.0
    """0: the likeliest token (greedy); below 1 sharpens the distribution."""
    top_k: int = 0
    """Draw from so many of the likeliest tokens; 0: all."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that hold this much of the probability."""
    seed: int = 0
    """The same seed gives the same text on the same machine."""
    stop: tuple[str, ...] = ()
    """Texts that end the output; they are not part of it."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if not 0 <= self.temperature <= 100:
            raise ConfigError(f"temperature must be between 0 and 100, got {self.temperature}")
        if self.top_k < 0:
            raise ConfigError(f"top_k must be at least 0, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if not -(1 << 63) <= self.seed < 1 << 63:
            raise ConfigError(f"seed must fit in 64 bits, got {self.seed}")
        if len(self.stop) > MOST_STOPS or not all(self.stop):
            raise ConfigError(f"stop must be at most {MOST_STOPS} texts, none of them empty")


class Chooser:
    """The state of one request's draws."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        # On the CPU: the same draws whatever the device, and no generator on a GPU for each request.
        self.generator = torch.Generator().manual_seed(sampling.seed) if sampling.temperature else None

    def draw(self, scores: Tensor) -> int:
        """scores: (V,), fp32, on the CPU."""
        assert self.generator is not None
        scores = scores / max(self.sampling.temperature, COLDEST)
        if 0 < self.sampling.top_k < len(scores):
            least = scores.topk(self.sampling.top_k).values[-1]
            scores = scores.masked_fill(scores < least, float("-inf"))
        weights = scores.softmax(-1)
        if self.sampling.top_p < 1:
            ordered, places = weights.sort(descending=True)
            # The first token that reaches the mass is still in.
            out = ordered.cumsum(-1) - ordered >= self.sampling.top_p
            weights = weights.index_fill(0, places[out], 0.0)
        return int(torch.multinomial(weights, 1, generator=self.generator))


def choose(scores: Tensor, choosers: Sequence[Chooser]) -> list[int]:
    """The next token of each row. scores: (B, V)."""
    best = scores.argmax(-1).tolist()
    drawn = [row for row, chooser in enumerate(choosers) if chooser.generator is not None]
    if drawn:
        own = scores[drawn].float().cpu()
        for place, row in enumerate(drawn):
            best[row] = choosers[row].draw(own[place])
    return best
