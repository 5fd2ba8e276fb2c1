import pytest

from intarsia.training.schedule import learning_rate


def rates(total, warmup, schedule):
    return [learning_rate(s, total, peak=1.0, warmup=warmup, schedule=schedule) for s in range(total)]


def test_linear_rises_to_its_peak_and_falls_towards_zero():
    assert rates(10, 0.2, "linear") == pytest.approx([0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_constant_stays_at_its_peak():
    assert rates(6, 0.5, "constant") == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])


def test_without_warm_up_the_first_step_is_the_highest():
    assert rates(4, 0.0, "linear") == [1.0, 0.75, 0.5, 0.25]


def test_a_warm_up_of_a_part_of_a_step_is_rounded():
    assert rates(18, 0.1, "linear")[:3] == [0.5, 1.0, 1.0]  # 1.8 steps
    assert rates(14, 0.1, "linear")[:2] == [1.0, 1.0]  # 1.4


def test_a_warm_up_of_everything_only_rises():
    assert rates(4, 1.0, "linear") == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("total", [1, 2, 3, 7])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 1.0])
def test_no_step_is_wasted(total, warmup):
    assert all(0 < rate <= 1 for schedule in ("linear", "constant") for rate in rates(total, warmup, schedule))
