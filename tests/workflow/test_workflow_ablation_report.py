"""What an ablation's report says: suggestions, tables and words."""

import pytest

from intarsia.workflow import ablation
from intarsia.workflow.ablation_parts import Dropped, Stack
from intarsia.workflow.ablation_report import dropped, lengths, spans, words


def finding(score, without, spans, *, tolerance=0.01, lengths=(), speed=1.5):
    stack = Stack(name="encoder", depth=2, first=True, blocks=[(0, 0), (1, 1)], spans=spans)
    stack.single = [spans[0, 0], spans[1, 1]]
    stack.dropped = [
        Dropped(first=0, layers=n, score=s, speed=1 + (speed - 1) * n / 2)
        for n, s in enumerate((score, spans[0, 0], spans[0, 1]))
    ]
    found = ablation.Ablation(
        task="t", method={"name": "lora", "leave_out": []}, metric="accuracy", higher=True, split="validation", rows=100,
        score=score, without=without, tolerance=tolerance, stacks=[stack], lengths=list(lengths),
    )  # fmt: skip
    stack.can_go = ablation._can_go(stack, found)
    return found


def test_the_suggestion_is_the_most_bottom_layers_within_the_tolerance():
    found = finding(0.90, 0.5, {(0, 0): 0.895, (0, 1): 0.5, (1, 1): 0.7})
    assert found.stacks[0].can_go == 1
    said = " ".join(words(found))
    assert (
        "The bottom layer of 2 can go without modules within 1 % of the score: −0.5, answering 1.25 times as fast"
        in said
    )
    assert "--set 'method.leave_out=[0]'" in said
    assert "Elsewhere" not in said
    strict = finding(0.90, 0.5, {(0, 0): 0.895, (0, 1): 0.5, (1, 1): 0.7}, tolerance=0.001)
    assert strict.stacks[0].can_go == 0
    assert "No bottom layer's modules can be left out" in " ".join(words(strict))


def test_a_longer_span_elsewhere_is_suggested_too():
    found = finding(0.90, 0.5, {(0, 0): 0.8, (0, 1): 0.5, (1, 1): 0.898})
    found.stacks[0].widest = Dropped(first=1, layers=1, score=0.898, speed=1.1)
    said = " ".join(words(found))
    assert "No bottom layer's modules can be left out" in said
    assert "Elsewhere, layer 1 can: −0.2, answering 1.10 times as fast." in said
    assert "method.leave_out=[1]" in said


def test_a_score_below_the_tolerance_ends_the_suggestion_even_if_a_later_one_is_better():
    assert finding(0.90, 0.5, {(0, 0): 0.8, (0, 1): 0.9, (1, 1): 0.9}).stacks[0].can_go == 0


def test_what_is_suggested_can_be_trained():
    """There is no training without any layer; what was left out already stays out; a layer's number means all stacks."""
    every = finding(0.90, 0.9, {(0, 0): 0.9, (0, 1): 0.9, (1, 1): 0.9})
    assert every.stacks[0].can_go == 2
    assert "leave_out" not in " ".join(words(every))
    again = finding(0.90, 0.5, {(0, 0): 0.8, (0, 1): 0.5, (1, 1): 0.898})
    again.method["leave_out"], again.stacks[0].depth = [2], 4
    again.stacks[0].widest = Dropped(first=1, layers=1, score=0.898, speed=1.1)
    assert "--set 'method.leave_out=[1, 2]'" in " ".join(words(again))
    two = finding(0.90, 0.5, {(0, 0): 0.895, (0, 1): 0.5, (1, 1): 0.7})
    two.stacks.append(finding(0.90, 0.5, {(0, 0): 0.7, (0, 1): 0.5, (1, 1): 0.7}).stacks[0])
    assert "leave_out" not in " ".join(words(two))


def test_tables_say_differences_in_points_and_shade_what_is_lost():
    found = finding(0.90, 0.5, {(0, 0): 0.895, (0, 1): 0.5, (1, 1): 0.91}, lengths=[(0, 0.5), (1, 0.9), (5, 0.9)])
    (headers, rows), shades = spans(found, found.stacks[0])
    assert headers == ["first ↓ last →", "0", "1"]
    assert rows == [["0", "−0.5", "−40.0"], ["1", "", "+1.0"]]
    assert shades[0] == [pytest.approx(0.0125), pytest.approx(1.0)]
    assert shades[1][0] is None
    assert dropped(found, found.stacks[0])[1][2] == ["2", "50.0", "−40.0", "1.50 x"]
    assert lengths(found)[1][0] == ["0", "50.0", "−40.0"]
    assert "The first 1 of 5 virtual tokens keep the score within 1 %." in words(found)


def test_words_for_what_takes_no_token_has_no_head_and_one_row():
    found = finding(0.90, 0.9, {(0, 0): 0.9, (0, 1): 0.9, (1, 1): 0.9}, lengths=[(0, 0.9), (1, 0.9), (5, 0.9)])
    assert "with its head alone" in words(found)[0]
    assert "Without any of the 5 virtual tokens the score is within 1 %, too." in words(found)
    found.head, found.rows = False, 1
    assert "on 1 row; without any of its modules, 90.0 %." in words(found)[0]
