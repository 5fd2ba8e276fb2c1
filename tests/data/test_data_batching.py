"""Each epoch's batches hold every row once, are a function of (seed, epoch), and hold rows of like length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intarsia.data import Encoded, EncodedSource, Rows, batches, collate, encode
from intarsia.errors import ConfigError

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=400)


def encoded_of(lengths: list[int]) -> Encoded:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = np.arange(1, offsets[-1] + 1, dtype=np.int32)
    return Encoded("classification", ids, offsets, None, None, np.arange(len(lengths)), 0, 0)


@given(
    lengths=LENGTHS,
    size=st.integers(1, 9),
    seed=st.none() | st.integers(0, 2**32),
    epoch=st.integers(0, 9),
    arrangement=st.sampled_from(["like", "balanced", "shuffled"]),
)
@settings(max_examples=100, deadline=None)
def test_every_row_comes_exactly_once(lengths, size, seed, epoch, arrangement):
    plan = batches(encoded_of(lengths), size, seed=seed, epoch=epoch, arrangement=arrangement)
    assert sorted(np.concatenate(plan).tolist()) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= size for batch in plan)
    assert len(plan) == -(-len(lengths) // size)
    again = batches(encoded_of(lengths), size, seed=seed, epoch=epoch, arrangement=arrangement)
    assert all(np.array_equal(one, other) for one, other in zip(plan, again, strict=True))


def test_epochs_and_seeds_differ():
    encoded = encoded_of([1 + i % 17 for i in range(500)])
    plans = [
        np.concatenate(batches(encoded, 8, seed=seed, epoch=epoch)).tolist()
        for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]
    ]
    assert len({tuple(plan) for plan in plans}) == 4


def test_buckets_waste_little_and_leave_the_order_random():
    rng = np.random.default_rng(0)
    encoded = encoded_of(rng.integers(4, 60, 4000).tolist())

    def padding(plan):
        return 1 - encoded.ids.size / sum(len(batch) * encoded.lengths[batch].max() for batch in plan)

    bucketed = batches(encoded, 16, seed=0, epoch=0)
    assert padding(bucketed) < 0.05
    assert padding(batches(encoded, 16, seed=0, epoch=0, arrangement="shuffled")) > 0.3
    widths = [encoded.lengths[batch].max() for batch in bucketed]
    assert abs(np.corrcoef(widths, range(len(widths)))[0, 1]) < 0.2


def test_balanced_batches_hold_nearly_the_same_number_of_tokens_and_all_lengths():
    rng = np.random.default_rng(0)
    encoded = encoded_of(rng.integers(4, 60, 4000).tolist())
    plan = [batch for batch in batches(encoded, 16, seed=0, epoch=3, arrangement="balanced") if len(batch) == 16]
    sums = np.array([encoded.lengths[batch].sum() for batch in plan])
    assert sums.max() - sums.min() <= 2
    assert max(encoded.lengths[batch].min() for batch in plan) < 15
    assert min(encoded.lengths[batch].max() for batch in plan) > 50


def company(encoded, epoch, arrangement):
    """The pairs of rows that share a batch."""
    plan = batches(encoded, 16, seed=0, epoch=epoch, arrangement=arrangement)
    return {(a, b) for batch in plan for a in batch.tolist() for b in batch.tolist() if a < b}


def test_in_balanced_batches_a_row_meets_others_each_epoch():
    encoded = encoded_of(np.random.default_rng(0).normal(50, 12, 960).round().clip(5).astype(int).tolist())
    one, other = (company(encoded, epoch, "balanced") for epoch in (0, 1))
    assert len(one & other) / len(one) < 0.03  # by chance a sixtieth


def test_of_rows_of_like_length_too_a_row_meets_others_each_epoch():
    encoded = encoded_of(list(range(1, 4001)))  # five chunks; sorted as a whole they would be the same batches for ever
    one, other = (company(encoded, epoch, "like") for epoch in (0, 1))
    assert len(one & other) / len(one) < 0.2  # by chance a tenth


def test_flat_rows_are_the_rows_without_padding():
    encoded = encoded_of([3, 5, 2, 7])
    source = EncodedSource(encoded, 2, pad_id=0)
    key = np.array([3, 0])
    batch, labels = source.load(key)
    flat = source.flat(key)
    assert flat.ids.tolist() == batch["input_ids"][batch["attention_mask"].bool()].tolist()
    assert flat.lengths.tolist() == [7, 3]
    assert flat.labels.tolist() == labels.tolist()


def test_without_a_seed_rows_come_in_order_of_length():
    encoded = encoded_of([5, 1, 3, 1, 4])
    assert np.concatenate(batches(encoded, 2, seed=None)).tolist() == [1, 3, 2, 4, 0]


@pytest.mark.parametrize("side", ["right", "left"])
@given(lengths=LENGTHS, seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_collate_pads_and_loses_nothing(side, lengths, seed):
    encoded = encoded_of(lengths)
    for key in batches(encoded, 7, seed=seed):
        batch, labels = collate(encoded, key, pad_id=-7, padding_side=side)
        mask = batch["attention_mask"].bool()
        assert batch["input_ids"].shape == (len(key), encoded.lengths[key].max())
        assert (batch["input_ids"][~mask] == -7).all()
        for row, tokens, real in zip(key, batch["input_ids"], mask, strict=True):
            expected = encoded.ids[encoded.offsets[row] : encoded.offsets[row + 1]].tolist()
            assert tokens[real].tolist() == expected
            assert bool(real[0 if side == "right" else -1])
        assert labels is not None
        assert labels.tolist() == key.tolist()


def test_type_ids_are_padded_with_zero(tokenizer):
    encoded = encode(Rows([("a", "good film"), ("a", "b")]), tokenizer, 16, "classification")
    batch, _ = collate(encoded, [0, 1], 0, "left")
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]]
    assert {str(tensor.dtype) for tensor in batch.values()} == {"torch.int64"}


def test_a_source_plans_loads_and_leads_back_to_the_rows():
    encoded = encoded_of([3, 1, 2, 5])
    source = EncodedSource(encoded, 2, pad_id=0, seed=3)
    plan = source.plan(1)
    assert len(plan) == 2
    for key in plan:
        batch, labels = source.load(key)
        assert int(batch["attention_mask"].sum()) == source.tokens(key)
        assert labels is not None
        assert labels.tolist() == source.rows(key).tolist()
    assert sum(source.tokens(key) for key in plan) == 11


def test_bad_sizes_and_sides_are_refused():
    encoded = encoded_of([1])
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        batches(encoded, 0, seed=0)
    with pytest.raises(ConfigError, match="padding_side must be right or left"):
        EncodedSource(encoded, 1, pad_id=0, padding_side="middle")  # pyright: ignore[reportArgumentType]
