"""Batches of rows of like length, and their padded tensors. B rows, T tokens, C classes; S and U of input and target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from intarsia.data.encoding import IGNORED, Encoded
from intarsia.data.generation import EncodedPairs
from intarsia.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

Side = Literal["right", "left"]
Arrangement = Literal["like", "balanced", "shuffled"]
"""Which rows share a batch: of like length (little padding); of lengths that add up to nearly the same in every batch (packed
rows, which have no padding, in one shape); or any."""
CHUNK_BATCHES = 50  # batches sorted together: little padding, and still other neighbours each epoch


class Flat(NamedTuple):
    """The rows of a batch one after the other, without padding. L tokens in all, B rows."""

    ids: np.ndarray
    """(L,)"""
    lengths: np.ndarray
    """(B,)"""
    types: np.ndarray | None
    """(L,) token types."""
    labels: np.ndarray | None
    """(B,), (B, C), or (L,) at each token's own place, -100 where there is none."""


def batches(
    encoded: Encoded | EncodedPairs,
    batch_size: int,
    *,
    seed: int | None,
    epoch: int = 0,
    arrangement: Arrangement = "like",
) -> list[np.ndarray]:
    """Row indices of each batch; every row once; a function of (seed, epoch) alone.

    like: shuffle, sort by length within chunks of 50 batches, shuffle the batches. balanced: rows of like length are
    dealt to the batches, the shorter ones to those that have more tokens. shuffled: a plain shuffle. seed None, for evaluation:
    all rows in order of length.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    lengths = encoded.lengths
    if seed is None:
        return _cut(np.argsort(lengths, kind="stable"), batch_size)
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(encoded))
    if arrangement == "shuffled":
        return _cut(order, batch_size)
    if arrangement == "balanced":
        cut = _deal(order[np.argsort(lengths[order], kind="stable")], lengths, batch_size, rng)
    else:
        chunks = [chunk[np.argsort(lengths[chunk], kind="stable")] for chunk in _cut(order, batch_size * CHUNK_BATCHES)]
        cut = [batch for chunk in chunks for batch in _cut(chunk, batch_size)]
    return [cut[i] for i in rng.permutation(len(cut))]


def _cut(order: np.ndarray, size: int) -> list[np.ndarray]:
    return [order[at : at + size] for at in range(0, len(order), size)]


def _deal(order: np.ndarray, lengths: np.ndarray, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Whole batches of nearly equal sums, and the odd rows that do not fill one (drawn from all lengths) in a last, smaller one.

    order: of length. Each round gives every batch a row of like length, the shortest to the batch that has most; the rounds
    whose lengths differ least come last, and make up for what the others have left.
    """
    count, odd = divmod(len(order), size)
    spare = np.linspace(0, len(order) - 1, odd, dtype=np.int64) if odd else np.empty(0, np.int64)
    rounds = np.delete(order, spare).reshape(size, count)
    dealt, sums = np.empty_like(rounds), np.zeros(count, np.int64)
    spread = lengths[rounds[:, -1]] - lengths[rounds[:, 0]] if count else np.zeros(size, np.int64)
    for turn in np.argsort(-spread, kind="stable"):
        most_first = np.lexsort((rng.random(count), -sums))
        dealt[turn, most_first] = rounds[turn]
        sums[most_first] += lengths[rounds[turn]]
    return [*dealt.T, *([order[spare]] if odd else [])]


def collate(
    encoded: Encoded,
    indices: np.ndarray | Sequence[int],
    pad_id: int,
    padding_side: Side = "right",
) -> tuple[dict[str, Tensor], Tensor | None]:
    """({input_ids, attention_mask[, token_type_ids]: (B, T) int64}, labels), T the longest of these rows.

    Padding has id pad_id, mask 0, type 0, label -100. Labels: (B,) int64 | (B, C) float32 multi-label | (B,) float32
    regression | (B, T) int64 token-classification | None.
    """
    import torch

    indices = np.asarray(indices)

    def padded(flat: np.ndarray, fill: int) -> Tensor:
        return pad(rows_of(flat, encoded.offsets, indices), fill, padding_side)[0]

    ids, mask = pad(rows_of(encoded.ids, encoded.offsets, indices), pad_id, padding_side)
    batch = {"input_ids": ids, "attention_mask": mask}
    if encoded.type_ids is not None:
        batch["token_type_ids"] = padded(encoded.type_ids, 0)
    if encoded.labels is None:
        return batch, None
    if encoded.words is not None:
        return batch, padded(encoded.labels, IGNORED)
    return batch, torch.from_numpy(encoded.labels[indices])


def rows_of(flat: np.ndarray, offsets: np.ndarray, indices: np.ndarray) -> list[np.ndarray]:
    """The parts of `flat` that belong to these rows."""
    return [flat[start:stop] for start, stop in zip(offsets[indices], offsets[indices + 1], strict=True)]


def pad(rows: Sequence[np.ndarray], fill: int, side: Side = "right") -> tuple[Tensor, Tensor]:
    """Rows side by side, (B, T) int64, and their mask, (B, T) int64: 1 where the row is, 0 where `fill` stands."""
    import torch

    lengths = np.array([len(row) for row in rows], np.int64)
    width = int(lengths.max(initial=0))
    places = np.arange(width)
    real = places < lengths[:, None] if side == "right" else places >= width - lengths[:, None]
    out = np.full(real.shape, fill, np.int64)
    out[real] = np.concatenate(rows)
    return torch.from_numpy(out), torch.from_numpy(real.astype(np.int64))


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
        arrangement: Arrangement = "like",
    ) -> None:
        if padding_side not in ("right", "left"):
            raise ConfigError(f"padding_side must be right or left, got {padding_side!r}")
        self.encoded = encoded
        self.batch_size = batch_size
        self.pad_id = pad_id
        self.padding_side: Side = padding_side
        self.seed = seed
        self.arrangement: Arrangement = arrangement

    def plan(self, epoch: int = 0) -> list[np.ndarray]:
        """The keys of that epoch's batches, in order."""
        return batches(self.encoded, self.batch_size, seed=self.seed, epoch=epoch, arrangement=self.arrangement)

    def load(self, key: np.ndarray) -> tuple[dict[str, Tensor], Tensor | None]:
        """(batch, labels) on the CPU, as `collate` makes them."""
        return collate(self.encoded, key, self.pad_id, self.padding_side)

    def flat(self, key: np.ndarray) -> Flat:
        """The same rows without padding."""
        encoded = self.encoded

        def of(flat: np.ndarray) -> np.ndarray:
            return np.concatenate(rows_of(flat, encoded.offsets, key))

        labels = encoded.labels
        if labels is not None:
            labels = of(labels) if encoded.words is not None else labels[key]
        types = None if encoded.type_ids is None else of(encoded.type_ids)
        return Flat(of(encoded.ids), encoded.lengths[key], types, labels)

    def tokens(self, key: np.ndarray) -> int:
        """Real tokens of the batch, padding not counted."""
        return int(self.encoded.lengths[key].sum())

    def rows(self, key: np.ndarray) -> np.ndarray:
        """Row indices of the batch, in its order."""
        return key


class GenerationSource:
    """The batches of a generation task: as `train` takes them, and the prompts alone for `bank.generate`.

    Keys as those of EncodedSource; length is that of input and target together.
    """

    def __init__(
        self,
        encoded: EncodedPairs,
        batch_size: int,
        *,
        pad_id: int,
        decoder_start_token_id: int | None = None,
        seed: int | None = None,
        arrangement: Arrangement = "like",
    ) -> None:
        if encoded.encoder_decoder and decoder_start_token_id is None:
            raise ConfigError("an encoder-decoder needs decoder_start_token_id, which its config holds; got None")
        self.encoded = encoded
        self.batch_size = batch_size
        self.pad_id = pad_id
        self.decoder_start_token_id = decoder_start_token_id
        self.seed = seed
        self.arrangement: Arrangement = arrangement

    def plan(self, epoch: int = 0) -> list[np.ndarray]:
        """The keys of that epoch's batches, in order."""
        return batches(self.encoded, self.batch_size, seed=self.seed, epoch=epoch, arrangement=self.arrangement)

    def load(self, key: np.ndarray) -> tuple[dict[str, Tensor], Tensor | None]:
        """(batch, labels) on the CPU, right padded; labels are -100 where nothing is to be learnt, None without targets.

        Decoder: input_ids, attention_mask and labels, (B, S + U): the input, then the target; labels[:, t] is the id AT
        t. Encoder-decoder: input_ids and attention_mask (B, S), decoder_input_ids (the target one place later, behind
        the start token), decoder_attention_mask and labels (B, U).
        """
        inputs, targets = self._inputs(key), self._targets(key)
        if targets is None:
            return self.prompts(key), None
        if not self.encoded.encoder_decoder:
            ids, mask = pad([np.concatenate(pair) for pair in zip(inputs, targets, strict=True)], self.pad_id)
            silent = [np.full(len(row), IGNORED) for row in inputs]
            labels, _ = pad([np.concatenate(pair) for pair in zip(silent, targets, strict=True)], IGNORED)
            return {"input_ids": ids, "attention_mask": mask}, labels
        ids, mask = pad(inputs, self.pad_id)
        start = np.array([self.decoder_start_token_id])
        before, decoded = pad([np.concatenate([start, row[:-1]]) for row in targets], self.pad_id)
        batch = {
            "input_ids": ids,
            "attention_mask": mask,
            "decoder_input_ids": before,
            "decoder_attention_mask": decoded,
        }
        return batch, pad(targets, IGNORED)[0]

    def flat(self, key: np.ndarray) -> Flat:
        """A decoder's rows without padding: each input with its target behind it. DataError without targets."""
        inputs, targets = self._inputs(key), self._targets(key)
        if targets is None:
            raise DataError("training needs texts to generate, and these rows have none; give a file with that column")
        pairs = list(zip(inputs, targets, strict=True))
        labels = np.concatenate([part for own, target in pairs for part in (np.full(len(own), IGNORED), target)])
        ids = np.concatenate([part for pair in pairs for part in pair])
        return Flat(ids, np.array([len(own) + len(target) for own, target in pairs]), None, labels)

    def prompts(self, key: np.ndarray) -> dict[str, Tensor]:
        """{input_ids, attention_mask}, (B, S): the inputs alone, padded on the left for a decoder, which goes on there."""
        ids, mask = pad(self._inputs(key), self.pad_id, "right" if self.encoded.encoder_decoder else "left")
        return {"input_ids": ids, "attention_mask": mask}

    def references(self, key: np.ndarray) -> list[list[str]]:
        """Of each row of the batch, the texts that its output is compared with. DataError where there are none."""
        if self.encoded.references is None:
            raise DataError("these rows have no texts to compare with; give a file with the column of the targets")
        return [self.encoded.references[i] for i in key]

    def tokens(self, key: np.ndarray) -> int:
        """Real tokens of the batch, input and target, padding not counted."""
        return int(self.encoded.lengths[key].sum())

    def rows(self, key: np.ndarray) -> np.ndarray:
        """Row indices of the batch, in its order."""
        return key

    def _inputs(self, key: np.ndarray) -> list[np.ndarray]:
        return rows_of(self.encoded.ids, self.encoded.offsets, key)

    def _targets(self, key: np.ndarray) -> list[np.ndarray] | None:
        if self.encoded.targets is None or self.encoded.target_offsets is None:
            return None
        return rows_of(self.encoded.targets, self.encoded.target_offsets, key)
