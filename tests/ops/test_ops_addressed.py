"""The kernels that find each row's tensors by address, against their definitions in float64: on a GPU, else by the interpreter."""

import numpy as np
import pytest
import torch

from intarsia.ops import ALIGN, NOBODY, offsets_from
from intarsia.ops.addressed import At, Before, Rows, adapt_, add_norms_, add_vectors_, whole_norms
from intarsia.ops.prefixed import prefixed_attention
from intarsia.ops.reference import Own, frozen_norm
from intarsia.ops.segments import segment_attention
from ops.on_device import DEVICE, both, poison  # noqa: F401 - a fixture for all tests here

pytest.importorskip("triton")

from intarsia.ops.kernels.addressed import adapt, add_norms
from intarsia.ops.kernels.prefixed import prefixed
from intarsia.ops.kernels.segments import launch

LENGTHS = [5, 1, 70, 2, 17]
"""Tokens of the rows."""
LAYOUTS = {"packed": LENGTHS, "padded": [19] * 5, "packed, one token": [1, 1, 1, 1, 0], "padded, one token": [1] * 5}
"""Of packed rows three more columns are nobody's."""
MINE, OTHERS = 0, 1
FORMS = [MINE, OTHERS, MINE, NOBODY, MINE]


def numbers(*shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


class Tasks:
    """A flat tensor for each row's task, and the places in it."""

    def __init__(self, dtype, *shapes):
        self.places, size = [], ALIGN  # nothing lies where a flat tensor begins
        for shape in shapes:
            self.places.append((size, shape))
            size += -(-int(np.prod(shape)) // ALIGN) * ALIGN
        self.flats = [None if form == NOBODY else numbers(size, dtype=dtype, seed=i) for i, form in enumerate(FORMS)]

    def rows(self, *, wide, layout):
        flats = [None if flat is None else flat.cpu().double() if wide else flat for flat in self.flats]
        device = "cpu" if wide else DEVICE
        anchor = next(flat for flat in flats if flat is not None)
        sent = [torch.tensor(x, device=device) for x in ([*offsets_from(anchor, flats), 0], [*FORMS, NOBODY])]
        if layout.startswith("padded"):
            return Rows(anchor, *sent, flats=flats)
        lengths = LAYOUTS[layout]
        starts = torch.tensor(np.cumsum([0, *lengths]), device=device)
        owner = torch.tensor(np.repeat(np.arange(len(lengths) + 1), [*lengths, 3]), device=device)
        return Rows(anchor, *sent, starts, owner, max(lengths), flats)

    def at(self, rows):
        return [At(rows, MINE, place, shape) for place, shape in self.places]

    def before(self, rows, prefix, heads, width):
        """Prefixes of `prefix` for my form and none for the others'."""
        (keys, _), (values, _) = self.places
        table = torch.tensor([[keys, values, prefix], [0, 0, 0]], device=rows.anchor.device)
        return Before(rows, table)


def close(made, expected, tol):
    assert made.isfinite().all(), "there are numbers that nobody wrote"
    assert (error := (made.cpu().double() - expected).norm() / expected.norm()) < tol, f"off by {error:.1e}"


def tokens(layout, *shape):
    """(L, ...)"""
    return (sum(LAYOUTS[layout]) + 3 * layout.startswith("packed"), *shape)


def untouched(before, after, layout):
    """What is not my form's, to the bit."""
    spare = 3 * layout.startswith("packed")
    mine = np.repeat(np.array([*FORMS, NOBODY]) == MINE, [*LAYOUTS[layout], spare])
    return torch.equal(*(x.cpu()[~torch.tensor(mine)] for x in (before, after)))


@both
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("reads", "writes", "narrow"), [(64, 64, 8), (37, 37, 1), (40, 96, 13), (1100, 20, 5), (96, 40, 128)]
)
@pytest.mark.parametrize("non_linearity", [None, "gelu"])
def test_each_row_is_adapted_by_its_own_matrices(layout, reads, writes, narrow, non_linearity, dtype, tol):
    bias = non_linearity is not None
    tasks = Tasks(dtype, (narrow, reads), (narrow,), (writes, narrow), (writes,), (1,))
    x, y = (
        numbers(*tokens(layout, reads), dtype=dtype, seed=7),
        numbers(*tokens(layout, writes + 5), dtype=dtype, seed=8),
    )
    found = []
    for wide in (False, True):
        down, down_bias, up, up_bias, learned = tasks.at(tasks.rows(wide=wide, layout=layout))
        own_x, own_y = (z.cpu().double() if wide else z.clone() for z in (x, y))
        some = own_y[..., 2 : 2 + writes]  # columns of a wider tensor, as a fused projection's are
        more = (down, down_bias if bias else None, up, up_bias if bias else None, non_linearity, 0.7, learned)
        if wide:
            adapt_(own_x, some, *more)
        else:
            adapt(own_x.view(-1, reads), own_y.view(-1, writes + 5)[:, 2 : 2 + writes], *more)
            assert untouched(y, own_y, layout)
        found.append(own_y)
    close(*found, tol)


@both
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_row_is_adapted_in_place(layout, dtype, tol):
    tasks = Tasks(dtype, (24, 96), (24,), (96, 24), (96,))
    y, found = numbers(*tokens(layout, 96), dtype=dtype, seed=8), []
    for wide in (False, True):
        down, down_bias, up, up_bias = tasks.at(tasks.rows(wide=wide, layout=layout))
        own = y.cpu().double() if wide else y.clone()
        (adapt_ if wide else adapt)(own, own, down, down_bias, up, up_bias, "relu", 1.0, None)
        found.append(own)
    close(*found, 2 * tol)  # relu: a number on the other side of the bend is wholly off


@both
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("width", [16, 37, 96])
@pytest.mark.parametrize("sort", ["layer", "rms", "bias"])
def test_each_row_has_its_own_norm(layout, width, sort, dtype, tol):
    tasks = Tasks(dtype, (width,), (width,))
    x, y, found = *(numbers(*tokens(layout, width), dtype=dtype, seed=s) for s in (7, 8)), []
    for wide in (False, True):
        gain, bias = tasks.at(tasks.rows(wide=wide, layout=layout))
        own_x, own_y = (z.cpu().double() if wide else z.clone() for z in (x, y))
        if sort == "bias":
            add_vectors_(own_y, bias) if wide else add_norms(*2 * [own_y.view(-1, width)], None, bias, 0.0, False)
        else:
            more = (gain, bias if sort == "layer" else None, 1e-5)
            if wide:
                add_norms_(own_x, own_y, *more, centre=sort == "layer")
            else:
                add_norms(own_x.view(-1, width), own_y.view(-1, width), *more, sort == "layer")
        if not wide:
            assert untouched(y, own_y, layout)
        found.append(own_y)
    close(*found, tol)


@both
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("width", [16, 37])
@pytest.mark.parametrize("sort", ["layer", "rms"])
def test_a_norm_is_computed_whole_for_rows_of_all_forms_and_of_none(layout, width, sort, dtype, tol):
    tasks, centre = Tasks(dtype, (width,), (width,)), sort == "layer"
    x, frozen = numbers(*tokens(layout, width), dtype=dtype, seed=7), numbers(2, width, dtype=dtype, seed=8)
    wide_gain, wide_bias = frozen.cpu().double()
    own = Own(wide_gain, wide_bias if centre else None, 1e-5, centre)
    ats = []
    for wide in (False, True):
        rows = tasks.rows(wide=wide, layout=layout)
        ats.append([[At(rows, form, place, shape) for place, shape in tasks.places] for form in (MINE, OTHERS)])
    made = torch.full_like(x, float("nan"))
    for number, (gain, bias) in enumerate(ats[0]):
        more = {"frozen": (frozen[0], frozen[1] if centre else None), "others": number == 0}
        out = made.view(-1, width)
        add_norms(x.view(-1, width), out, gain, bias if centre else None, 1e-5, centre, **more)
    wanted = whole_norms(x.cpu().double(), own, [(gain, bias if centre else None) for gain, bias in ats[1]])
    used = sum(LAYOUTS[layout])
    close(made[:used], wanted[:used], tol)
    if layout.startswith("packed"):
        assert made[used:].isnan().all()  # nobody's
    nobody = torch.tensor(np.repeat(np.array(FORMS) == NOBODY, LAYOUTS[layout]))
    plain = frozen_norm(x[:used].cpu().double(), own)
    if nobody.any():  # one layout has no token for that row
        close(made[:used][nobody.to(DEVICE)], plain[nobody], tol)


@both
@pytest.mark.parametrize(("heads", "groups", "width"), [(2, 1, 64), (4, 2, 40)])
@pytest.mark.parametrize("prefix", [0, 7, 65])
@pytest.mark.parametrize(
    ("queries", "keys", "mask"), [(3, 3, "said"), (70, 70, "causal"), (1, 67, "added"), (5, 9, "all")]
)
def test_padded_rows_see_their_own_prefix(heads, groups, width, prefix, queries, keys, mask, dtype, tol):
    tasks = Tasks(dtype, *2 * [(heads // groups, prefix, width)])
    rows, found = len(LENGTHS), []
    q = numbers(rows, queries, heads, width, dtype=dtype).transpose(1, 2)
    k, v = (numbers(rows, heads // groups, keys, width, dtype=dtype, seed=s) for s in (1, 2))
    said = torch.rand(rows, 1, queries, keys, generator=torch.Generator().manual_seed(3)) < 0.6
    said[..., 0] = True
    for wide in (False, True):
        before = tasks.before(tasks.rows(wide=wide, layout="padded"), prefix, heads // groups, width)
        own = [x.cpu().double() if wide else x for x in (q, k, v)]
        given = said.to(own[0].device)
        if mask == "added":
            given = torch.zeros_like(given, dtype=own[0].dtype).masked_fill(~given, -1e4)
        run = prefixed_attention if wide else prefixed
        more = {"causal": mask == "causal", "scale": width**-0.5}
        found.append(run(*own, given if mask in ("said", "added") else None, before, **more))
    close(*found, tol)


@both
@pytest.mark.parametrize(("heads", "groups", "width"), [(2, 1, 64), (4, 2, 40)])
@pytest.mark.parametrize("prefix", [0, 7, 65])
@pytest.mark.parametrize(("causal", "apart"), [(False, False), (True, False), (True, True)])
def test_packed_rows_see_their_own_prefix(heads, groups, width, prefix, causal, apart, dtype, tol):
    """apart: keys lie in slots, with those that a row has read before."""
    tasks = Tasks(dtype, *2 * [(heads // groups, prefix, width)])
    read = [0, 66, 0, 1, 3] if apart else [0] * len(LENGTHS)
    columns = 80
    q = numbers(sum(LENGTHS), 3, heads, width, dtype=dtype)[:, 1]
    size = columns * len(LENGTHS) if apart else sum(LENGTHS)
    k, v = (numbers(size, heads // groups, width, dtype=dtype, seed=s) for s in (1, 2))
    found = []
    for wide in (False, True):
        rows = tasks.rows(wide=wide, layout="packed")
        before = tasks.before(rows, prefix, heads // groups, width)
        own, device = [x.cpu().double() if wide else x for x in (q, k, v)], rows.anchor.device
        starts = torch.tensor(np.cumsum([0, *LENGTHS]), dtype=torch.int32, device=device)
        first, counts = starts, None
        if apart:
            first = torch.arange(len(LENGTHS), device=device) * columns
            counts = torch.tensor(np.add(LENGTHS, read), device=device)
        if wide:
            longest = max(LENGTHS)
            more = {"causal": causal, "scale": width**-0.5, "before": before, "counts": counts}
            found.append(segment_attention(*own, starts, first, longest, longest, **more))
        else:
            found.append(launch(*own, starts, first, causal, width**-0.5, 0, before, counts, max(LENGTHS))[0])
    close(*found, tol)
