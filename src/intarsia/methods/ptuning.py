r"""P-tuning (Liu et al. 2021, "GPT Understands, Too", https://arxiv.org/abs/2103.10385).

    E <- [P; E],  or P in a template's slots          P = MLP(LSTM(X))  or  P = MLP(X)

X: (N, P, E) are trained embeddings of the virtual tokens; the encoder ties neighbours together while training. Afterwards only
P is kept: `fold()` gives a PromptDelta. Shapes, with h = E // 2 and i the LSTM's layer (0, 1), j its direction:

    lstm    weight_ih (N, 4h, E or 2h), weight_hh (N, 4h, h), biases (N, 4h) for each (i, j)
    layers  Linear(2h, E), ReLU, Linear(E, E) after the LSTM; Linear, ReLU, Linear, ReLU, Linear, all (E, E), without it

The LSTM is bidirectional with two layers and h units each way, as in the authors' code for LAMA; their few-shot code takes E
units each way. "mlp" is the option of their few-shot code without the LSTM; its depth of three is as in NVIDIA's and peft's.

Initialisation: X from N(0, 1), the LSTM and the linear layers as PyTorch's own.

The authors train the whole language model too on few-shot SuperGLUE; here the backbone stays frozen, as it does in their LAMA
experiments.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from intarsia.errors import ConfigError, UnsupportedError
from intarsia.methods.base import Delta, EmbeddingDelta, Method, Place, Pretrained, linear_parameters
from intarsia.methods.prompt import InsertAt, PromptDelta, PromptTuning, check_prompt, prompt_site
from intarsia.sites import Site

LSTM_LAYERS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class PTuning(Method):
    """P-tuning (Liu et al. 2021, https://arxiv.org/abs/2103.10385)."""

    name: ClassVar[str] = "ptuning"
    default_lr: ClassVar[float] = 1e-2

    length: int = 20
    """Virtual tokens P. The paper: 9 for LAMA, 1 or 2 in templates for few-shot tasks."""
    encoder: Literal["lstm", "mlp"] = "mlp"
    """What makes the prompt from the trained embeddings: lstm (the paper's), or mlp (its option without, faster)."""
    place: Place = "start"
    """start, after-first (after BOS or [CLS]), end, or template (in the input's prompt slots, as in the paper)."""
    insert_at: InsertAt = "auto"
    """word_embeddings (they get positions as words do); embedding_output (after positions and norm); auto: the first, if any."""

    def __post_init__(self) -> None:
        check_prompt("PTuning", self.length, self.place, self.insert_at)
        if self.encoder not in ("lstm", "mlp"):
            raise ConfigError(f"PTuning.encoder must be 'lstm' or 'mlp', got {self.encoder!r}")

    def sites(self, available: Sequence[Site]) -> list[Site]:
        """The one place where prompts join."""
        site = prompt_site("PTuning", self.insert_at, available)
        if self.encoder == "lstm" and site.width < 2:
            raise UnsupportedError("PTuning.encoder 'lstm' needs embeddings of at least 2 numbers; give 'mlp'.")
        return [site]

    def build(self, sites: Sequence[Site], pretrained: Pretrained, labels: Sequence[str] = ()) -> dict[str, Delta]:
        """An EncodedPromptDelta."""
        return {
            site.key: EncodedPromptDelta(self.length, site.width, lstm=self.encoder == "lstm", place=self.place)
            for site in sites
        }

    def folded(self) -> Method:
        """Plain prompt tuning with uniform values, at the same place."""
        return PromptTuning(length=self.length, place=self.place, insert_at=self.insert_at, init="uniform")


class EncodedPromptDelta(EmbeddingDelta):
    """P = MLP(LSTM(X)) or MLP(X).   prompt X: (N, P, E); the other tensors as nn.LSTM and nn.Linear name them, with N in front"""

    def __init__(self, length: int, width: int, *, lstm: bool, place: Place = "start") -> None:
        super().__init__()
        self.length, self.place = length, place
        self.prompt = nn.Parameter(torch.randn(1, length, width))
        # An odd width loses one number between the two directions; the MLP gives it back.
        hidden = width // 2
        self.lstm = _lstm_parameters(width, hidden) if lstm else None
        self.layers = nn.ModuleList(_Linear(each, width) for each in ([2 * hidden, width] if lstm else [width] * 3))

    def decay_free(self) -> frozenset[str]:
        """X and the biases."""
        names = (name for name, _ in self.named_parameters())
        return frozenset(name for name in names if name == "prompt" or "bias" in name)

    def forward(self) -> Tensor:
        """Returns (N, P, E)."""
        states: Tensor = self.prompt
        if self.lstm is not None:
            states = _lstm(states, list(self.lstm.values()))  # type: ignore[call-arg]
        for index, layer in enumerate(self.layers):
            states = layer(states.relu() if index else states)
        return states

    def fold(self) -> PromptDelta:
        """A PromptDelta with the encoder's output."""
        with torch.no_grad():
            return PromptDelta(self(), place=self.place)


class _Linear(nn.Module):
    """weight: (N, writes, reads), bias: (N, writes)"""

    def __init__(self, reads: int, writes: int) -> None:
        super().__init__()
        self.weight, self.bias = linear_parameters(reads, writes)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, P, reads). Returns (N, P, writes)."""
        return x @ self.weight.mT + self.bias[:, None]


def _lstm_parameters(width: int, hidden: int) -> nn.ParameterDict:
    """Drawn, named and ordered as nn.LSTM does it, with the task axis in front."""
    drawn = nn.LSTM(width, hidden, LSTM_LAYERS, bidirectional=True)
    # Pairs keep their order; a dict would be sorted by name.
    return nn.ParameterDict([(name, nn.Parameter(p.detach()[None].clone())) for name, p in drawn.named_parameters()])


@torch.compiler.disable  # Inductor cannot compile an LSTM; the graph goes on behind it.
def _lstm(x: Tensor, weights: list[Tensor]) -> Tensor:
    """x: (N, P, E). Returns (N, P, 2 hidden). weights: in nn.LSTM's order, (N, ...) each."""
    start = x.new_zeros(2 * LSTM_LAYERS, 1, weights[1].shape[2])
    outputs = []
    # cuDNN wants all weights in one piece of memory, and warns of slices. Under autocast some processors have no LSTM in bf16.
    with torch.backends.cudnn.flags(enabled=False), torch.autocast(x.device.type, enabled=False):
        for task, row in enumerate(x):
            own = [weight[task] for weight in weights]
            # input, (h, c), weights, has biases, layers, dropout, training, bidirectional, batch first
            outputs.append(torch.lstm(row[None], (start, start), own, True, LSTM_LAYERS, 0.0, True, True, True)[0])
    return torch.cat(outputs)
