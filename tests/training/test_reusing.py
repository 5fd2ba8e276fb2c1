"""Layers under a task's lowest module are computed once, and the run ends where it would have ended without."""

import numpy as np
import pytest
import torch
from test_packed import LABELS, MEAN, backbone_of, members_of, pack

from intarsia.data import Encoded, EncodedSource
from intarsia.heads import Head
from intarsia.methods import BottleneckAdapter, HeadOnly, LoRA, PrefixTuning, TopLayers
from intarsia.training import Entry, fit_pack
from intarsia.training.reusing import Trunks, as_it_is

ABOVE = BottleneckAdapter(width=3, leave_out=(0,))
PREFIX = PrefixTuning(length=3, mid=None)


def changed(entry, **fields):
    return Entry(**{f: getattr(entry, f) for f in Entry.__slots__} | fields)


def with_validation(entries):
    return [changed(entry, validation=entry.train) for entry in entries]


@pytest.mark.parametrize("method", [HeadOnly(), TopLayers(k=1), ABOVE], ids=lambda m: m.name)
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_run_with_a_reused_trunk_ends_with_the_weights_and_scores_of_one_without(family, method, tmp_path):
    head = MEAN if family == "bert" else Head(labels=LABELS, dropout=0.0, pooling="last")
    ends = []
    for gib in (0.0, 1.0):
        bank, entries = pack(backbone_of(family), [method], [head], tmp_path / f"{gib}", reuse_gib=gib)
        (entry,) = with_validation(entries)
        result = fit_pack(bank, [entry])[entry.task.name]
        ends.append((entry.task.tensors(), result.metrics))
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=1e-9, atol=1e-11)
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-9)


@pytest.mark.parametrize("method", [ABOVE, PREFIX], ids=lambda m: m.name)
@pytest.mark.parametrize("kind", ["classification", "token-classification"])
def test_rows_of_unequal_lengths_change_nothing_with_a_reused_trunk(method, kind, tmp_path):
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(17, 40, 15))]).astype(np.int64)
    ids = rng.integers(3, 97, offsets[-1]).astype(np.int32)
    words = np.arange(len(ids)) if kind == "token-classification" else None
    rows = Encoded(kind, ids, offsets, None, words, rng.integers(0, 3, 15 if words is None else len(ids)), 0, 0)
    head = Head(kind=kind, labels=LABELS, dropout=0.0)
    ends = []
    for gib in (0.0, 1.0):
        bank, entries = pack(backbone_of("bert"), [method], [head], tmp_path / str(gib), reuse_gib=gib)
        source = EncodedSource(rows, 4, pad_id=0, seed=3, arrangement="like")
        (entry,) = with_validation([changed(entries[0], train=source)])
        result = fit_pack(bank, [entry])[entry.task.name]
        ends.append((entry.task.tensors(), result.metrics))
    torch.testing.assert_close(ends[1][0], ends[0][0], rtol=1e-8, atol=1e-10)
    assert ends[1][1] == pytest.approx(ends[0][1], rel=1e-8)


def test_the_layers_below_run_once_for_all_runs_and_epochs(tmp_path):
    backbone = backbone_of("bert")
    bank, entries = pack(backbone, [ABOVE, ABOVE], [MEAN] * 2, tmp_path, reuse_gib=1.0)
    entries[1] = changed(entries[1], train=entries[0].train)
    rows = 0

    def count(_module, args, _out):
        nonlocal rows
        rows += len(args[0])

    backbone.base.encoder.layer[0].register_forward_hook(count)
    ran = backbone.base.encoder.layer[0].forward
    fit_pack(bank, entries)
    assert backbone.base.encoder.layer[0].forward == ran
    computed = rows
    assert computed > 0
    # Two runs of two epochs over 22 rows want 88; each distinct row is computed once, in batches of 8 of like length.
    trunk = Trunks()
    members = members_of(*pack(backbone_of("bert"), [ABOVE], [MEAN], tmp_path / "again", reuse_gib=1.0))
    assert trunk.of(members[0]) is not as_it_is


@pytest.mark.parametrize(
    ("method", "changes"),
    [(LoRA(rank=2), {}), (ABOVE, {"reuse_gib": 0.0}), (ABOVE, {"reuse_gib": 1e-7}), (ABOVE, {"max_steps": 3})],
    ids=["a module at the bottom", "switched off", "too little memory", "one epoch at most"],
)
def test_nothing_is_kept_where_it_cannot_pay(method, changes, tmp_path):
    bank, entries = pack(backbone_of("bert"), [method], [MEAN], tmp_path, **changes)
    assert Trunks().of(members_of(bank, entries)[0]) is as_it_is


def test_a_resumed_run_reads_what_it_read_before_however_few_steps_are_left(tmp_path):
    """States computed in another shape may differ in their last bits, and with them the run's end."""
    member = members_of(*pack(backbone_of("bert"), [ABOVE], [MEAN], tmp_path, reuse_gib=1.0))[0]
    member.state.step = member.total - 1
    assert Trunks().of(member) is not as_it_is
