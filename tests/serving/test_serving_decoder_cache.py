"""The cache of texts that are being written: it grows in place, and rows of several end in the same column."""

import torch

from intarsia.serving.cache import CHUNK, RoomyLayer, merged, merged_masks, new_cache


def columns(rows, count, seed=0):
    return torch.randn(rows, 2, count, 3, generator=torch.Generator().manual_seed(seed))


def filled(rows, count, seed):
    cache = new_cache()
    for layer in range(2):
        cache.update(columns(rows, count, seed + layer), columns(rows, count, seed + layer + 10), layer)
    return cache


def test_a_step_writes_its_column_in_place_until_a_chunk_is_full():
    layer, new = RoomyLayer(), columns(2, 5 + CHUNK + 3)
    keys, _ = layer.update(new[:, :, :5], new[:, :, :5])
    places = {keys.data_ptr()}
    for step in range(5, new.shape[2]):
        keys, values = layer.update(new[:, :, step : step + 1], -new[:, :, step : step + 1])
        assert torch.equal(keys, new[:, :, : step + 1])
        assert torch.equal(values[:, :, 5:], -new[:, :, 5 : step + 1])
        places.add(keys.data_ptr())
    assert len(places) == 2
    assert layer.get_seq_length() == new.shape[2]


def test_rows_of_several_caches_end_in_the_same_column_at_their_places():
    long, short = filled(3, 7, 0), filled(2, 4, 100)
    parts = [(long, torch.tensor([2, 0]), torch.tensor([0, 2])), (short, torch.tensor([1]), torch.tensor([1]))]
    both = merged(parts, 5)
    for layer in range(2):
        for side in ("keys", "values"):
            found = getattr(both.layers[layer], side)
            from_long, from_short = getattr(long.layers[layer], side), getattr(short.layers[layer], side)
            assert found.shape == (3, 2, 5, 3)
            assert torch.equal(found[0], from_long[2, :, -5:])
            assert torch.equal(found[2], from_long[0, :, -5:])
            assert torch.equal(found[1, :, 1:], from_short[1])
            assert not found[1, :, 0].any()


def test_a_merged_cache_has_room_for_the_next_column_and_leaves_its_sources_alone():
    source = filled(2, 4, 0)
    before = source.layers[0].keys.clone()
    cache = merged([(source, torch.tensor([0, 1]), torch.tensor([1, 0]))], 4)
    place, new = cache.layers[0].keys.data_ptr(), columns(2, 1, 5)
    keys, _ = cache.update(new, new, 0)
    assert keys.data_ptr() == place
    assert torch.equal(keys, torch.cat([before[[1, 0]], new], 2))
    assert torch.equal(source.layers[0].keys, before)


def test_masks_follow_their_rows():
    one, other = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 1]]), torch.tensor([[1, 1]])
    parts = [(one, torch.tensor([0, 1]), torch.tensor([2, 0])), (other, torch.tensor([0]), torch.tensor([1]))]
    assert merged_masks(parts, 3).tolist() == [[0, 0, 1], [0, 1, 1], [1, 1, 1]]
