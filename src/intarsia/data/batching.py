"""Batches of rows of like length, and their padded tensors. B rows, T tokens, C classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from intarsia.data.encoding import IGNORED, Encoded
from intarsia.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

Side = Literal["right", "left"]
CHUNK_BATCHES = 50  # batches sorted together: little padding, and still other neighbours each epoch


def batches(
    encoded: Encoded, batch_size: int, *, seed: int | None, epoch: int = 0, bucket: bool = True
) -> list[np.ndarray]:
    """Row indices of each batch; every row once; a function of (seed, epoch) alone.

    bucket: shuffle, sort by length within chunks of 50 batches, shuffle the batches. Without it, a plain shuffle.
    seed None, for evaluation: all rows in order of length.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    lengths = encoded.lengths
    if seed is None:
        return _cut(np.argsort(lengths, kind="stable"), batch_size)
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(encoded))
    if not bucket:
        return _cut(order, batch_size)
    chunks = _cut(order, batch_size * CHUNK_BATCHES)
    cut = [batch for chunk in chunks for batch in _cut(chunk[np.argsort(lengths[chunk], kind="stable")], batch_size)]
    return [cut[i] for i in rng.permutation(len(cut))]


def _cut(order: np.ndarray, size: int) -> list[np.ndarray]:
    return [order[at : at + size] for at in range(0, len(order), size)]


def collate(
    encoded: Encoded, indices: np.ndarray | Sequence[int], pad_id: int, padding_side: Side = "right"
) -> tuple[dict[str, Tensor], Tensor | None]:
    """({input_ids, attention_mask[, token_type_ids]: (B, T) int64}, labels), T the longest of these rows.

    Padding has id pad_id, mask 0, type 0, label -100. Labels: (B,) int64 | (B, C) float32 multi-label | (B,) float32
    regression | (B, T) int64 token-classification | None.
    """
    import torch

    indices = np.asarray(indices)
    starts, stops = encoded.offsets[indices], encoded.offsets[indices + 1]
    lengths = stops - starts
    width = int(lengths.max(initial=0))
    places = np.arange(width)
    real = places < lengths[:, None] if padding_side == "right" else places >= width - lengths[:, None]

    def padded(flat: np.ndarray, fill: int) -> Tensor:
        out = np.full(real.shape, fill, np.int64)
        out[real] = np.concatenate([flat[start:stop] for start, stop in zip(starts, stops, strict=True)])
        return torch.from_numpy(out)

    batch = {"input_ids": padded(encoded.ids, pad_id), "attention_mask": torch.from_numpy(real.astype(np.int64))}
    if encoded.type_ids is not None:
        batch["token_type_ids"] = padded(encoded.type_ids, 0)
    if encoded.labels is None:
        return batch, None
    if encoded.words is not None:
        return batch, padded(encoded.labels, IGNORED)
    return batch, torch.from_numpy(encoded.labels[indices])


class EncodedSource:
    """The batches of one split, as `train` takes them: plan an epoch, load a batch by its key.

    A key is the array of the batch's row indices, so `rows` is what leads predictions back to the order of the file.
    """

    def __init__(
        self,
        encoded: Encoded,
        batch_size: int,
        *,
        pad_id: int,
        padding_side: Side = "right",
        seed: int | None = None,
        bucket: bool = True,
    ) -> None:
        if padding_side not in ("right", "left"):
            raise ConfigError(f"padding_side must be right or left, got {padding_side!r}")
        self.encoded = encoded
        self.batch_size = batch_size
        self.pad_id = pad_id
        self.padding_side: Side = padding_side
        self.seed = seed
        self.bucket = bucket

    def plan(self, epoch: int = 0) -> list[np.ndarray]:
        """The keys of that epoch's batches, in order."""
        return batches(self.encoded, self.batch_size, seed=self.seed, epoch=epoch, bucket=self.bucket)

    def load(self, key: np.ndarray) -> tuple[dict[str, Tensor], Tensor | None]:
        """(batch, labels) on the CPU, as `collate` makes them."""
        return collate(self.encoded, key, self.pad_id, self.padding_side)

    def tokens(self, key: np.ndarray) -> int:
        """Real tokens of the batch, padding not counted."""
        return int(self.encoded.lengths[key].sum())

    def rows(self, key: np.ndarray) -> np.ndarray:
        """Row indices of the batch, in its order."""
        return key
