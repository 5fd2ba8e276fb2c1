"""Behind a model's last attention no token sees another, so only those whose states are read have to go on.

A classifier reads one state a row. Three quarters of the last layer's products are behind its attention: with twelve layers a
sixteenth of all, with six an eighth, each way; and so much less is kept for gradients.

B rows, T tokens, Q places that are read in each row, D width of the states.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


def at_places(states: Tensor, places: Tensor) -> Tensor:
    """(B, T, D) and (B, Q) -> (B, Q, D)."""
    return states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))


class Ending:
    """Of a model whose last layer has a `Stack.meeting`."""

    def __init__(self, meeting: nn.Module) -> None:
        self._meeting = meeting
        self._places: Tensor | None = None
        self._met = False

    @contextmanager
    def only(self, places: Tensor) -> Iterator[None]:
        """The model's states meanwhile are those of these places (B, Q), its tokens' columns."""
        self._places, self._met = places, False
        handle = self._meeting.register_forward_pre_hook(self._pick)
        try:
            yield
        finally:
            handle.remove()
            self._places, self._met = None, False

    @property
    def met(self) -> bool:
        """Whether the pass is behind it, within `only`. Not even at its end, where stored states stood in for the last layer."""
        return self._met

    def at(self, states: Tensor) -> Tensor:
        """Of states (B, T, D) from before it, those that go on."""
        assert self._places is not None
        return at_places(states, self._places)

    def moved(self, columns: Tensor) -> bool:
        """Tokens stand elsewhere, since a prompt came in. columns: (B, T), where each is read. Returns whether anybody reads by
        places, and so needs nothing put back."""
        if self._places is None:
            return False
        self._places = columns.gather(1, self._places)
        return True

    def _pick(self, _module: nn.Module, args: tuple) -> tuple[Tensor, ...]:
        self._met = True
        return tuple(map(self.at, args))
