"""How much the engine takes on."""

import dataclasses
from dataclasses import dataclass

from intarsia.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Bounds of queue, batch and request."""

    queue: int = 1024
    """Requests that may wait, of rows and of texts so many each; one more is refused (429), unless its task has none there: for
    such a quarter more."""
    batch_tokens: int = 4096
    """Rows times the longest of them, in one pass; a single longer row goes alone."""
    batch_rows: int = 256
    """Rows of one pass at most."""
    wait_ms: float = 2.0
    """How long the first row of a batch waits for others while the engine has nothing else to do."""
    seconds: float = 60.0
    """A request's time, where it does not say another deadline."""
    text_bytes: int = 1 << 20
    """Of one request's texts, in UTF-8; more is refused (413). What a model cannot read is cut off as in training."""
    new_tokens: int = 1024
    """Longest output that may be asked for."""
    decode_rows: int = 64
    """Texts that are written at once."""
    decode_tokens: int = 65536
    """Rows times columns of the key-value cache."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not value > 0 and not (field.name == "wait_ms" and value == 0):
                raise ConfigError(f"Limits.{field.name} must be above 0, got {value}")
