"""What the numbers of a comparison say: intervals, differences, the front."""

import pytest
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st
from scipy import stats

from intarsia.workflow.compare.statistics import difference, holm, interval, pareto, proportion_error

SCORES = st.lists(st.floats(0, 1), min_size=2, max_size=8)


@trials(deadline=None)
@given(values=SCORES)
def test_the_interval_is_students(values):
    found = interval(values)
    assert found.mean == pytest.approx(sum(values) / len(values))
    if found.std and found.std > 1e-9:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=found.mean, scale=stats.sem(values))
        assert found.half == pytest.approx((high - low) / 2)


def test_one_seed_has_no_interval():
    assert interval([0.5]).half is None


@trials(deadline=None)
@given(pairs=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8))
def test_common_seeds_are_compared_in_pairs(pairs):
    a, b = ({seed: pair[i] for seed, pair in enumerate(pairs)} for i in (0, 1))
    found = difference({**a, 99: 0.3}, b)
    gaps = [x - y for x, y in pairs]
    assert found.mean == pytest.approx(sum(gaps) / len(gaps))
    assert "paired" in found.test
    spread = max(gaps) - min(gaps)
    if spread > 1e-6:
        assert found.p == pytest.approx(stats.ttest_rel([x for x, _ in pairs], [y for _, y in pairs]).pvalue, abs=1e-9)


def test_without_common_seeds_the_test_is_welchs():
    mine, theirs = {1: 0.9, 2: 0.92, 3: 0.95}, {4: 0.8, 5: 0.84}
    found = difference(mine, theirs)
    assert "Welch" in found.test
    assert found.p == pytest.approx(stats.ttest_ind([*mine.values()], [*theirs.values()], equal_var=False).pvalue)


def test_too_little_gives_no_p_and_no_warning():
    assert difference({1: 0.9}, {1: 0.8}).p is None
    assert difference({1: 0.9, 2: 0.9}, {1: 0.8, 2: 0.8}).p is None
    assert difference({1: 0.9, 2: 0.8}, {1: 0.9, 2: 0.8}).p == 1.0


def test_a_few_rows_that_are_all_right_are_no_certainty():
    assert proportion_error(1.0, 20) == pytest.approx(0.0564, abs=1e-4)
    assert proportion_error(0.0, 20) == pytest.approx(proportion_error(1.0, 20))
    assert proportion_error(0.9, 10_000) == pytest.approx(0.003, abs=1e-5)


def test_holm_corrects_in_order_and_never_falls():
    assert holm([0.01, 0.04, None, 0.03]) == pytest.approx([0.03, 0.06, None, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@trials(deadline=None)
@given(points=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1, max_size=12))
def test_nothing_beats_the_front(points):
    front = pareto(points)
    for i, (cost, score) in enumerate(points):
        beaten = any((c <= cost and s > score) or (c < cost and s >= score) for c, s in points)
        if i in front:
            assert not beaten
        elif not beaten:
            assert (cost, score) in [points[j] for j in front]  # its equal is there
    costs = [points[i][0] for i in front]
    assert costs == sorted(costs)
    assert len(set(costs)) == len(costs)
