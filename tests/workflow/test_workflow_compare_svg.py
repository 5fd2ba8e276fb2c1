"""The pictures of a comparison's report: axes, ticks, and words beside points."""

import xml.etree.ElementTree as ET

import pytest

from intarsia.workflow.compare.report.svg import Plot, axis


@pytest.mark.parametrize("values", [[1], [5, 5], [1, 10**7], [1e-5, 3e-5]])
def test_every_value_lies_within_its_log_axis_and_there_are_ticks(values):
    found = axis(values, log=True)
    assert all(0 <= found.at(value) <= 1 for value in values)
    assert found.ticks()


@pytest.mark.parametrize("values", [[0.5], [0, 0], [-3, 4], [93.1, 93.2]])
def test_every_value_lies_within_its_axis_and_ticks_are_round(values):
    found = axis(values)
    assert all(0 <= found.at(value) <= 1 for value in values)
    ticks = found.ticks()
    assert 2 <= len(ticks) <= 7
    assert all(found.low <= tick <= found.high for tick in ticks)


def test_words_beside_points_do_not_lie_on_each_other_or_outside():
    plot = Plot(axis([1, 100], log=True), axis([0, 1]), x_title="x", y_title="y", label="<l>")
    plot.labels(
        [(50, 0.5, "adapter width 48"), (52, 0.5, "adapter width 8"), (50, 0.51, "lora rank 8"), (90, 0.5, "full")]
    )
    root = ET.fromstring(plot.svg())
    names = [node for node in root.iter() if node.get("class") == "name"]
    boxes = []
    assert {node.text for node in names} == {"adapter width 48", "adapter width 8", "lora rank 8", "full"}
    for node in names:
        x, y, width = float(node.get("x")), float(node.get("y")), 6.1 * len(node.text)
        left = x - width if node.get("text-anchor") == "end" else x
        boxes.append((left, left + width, y))
        assert left >= 0
        assert left + width <= 440
    for i, (left, right, y) in enumerate(boxes):
        assert not any(abs(y - other) < 12 and left < stop and start < right for start, stop, other in boxes[:i])


def test_words_stand_beside_other_points_and_not_on_them():
    plot = Plot(axis([1, 100], log=True), axis([0, 1]), x_title="x", y_title="y", label="l")
    points = [(10, 0.5, "lora rank 8"), (12, 0.5, "prefix"), (14, 0.5, "prompt"), (12, 0.53, "head")]
    plot.labels(points)
    dots = [plot.place(x, y) for x, y, _ in points]
    names = [node for node in ET.fromstring(plot.svg()).iter() if node.get("class") == "name"]
    assert {node.text for node in names} == {name for _, _, name in points}
    for node in names:
        x, y, width = float(node.get("x")), float(node.get("y")), 6.1 * len(node.text)
        left = x - width if node.get("text-anchor") == "end" else x
        assert not any(left < dot + 4 and dot - 4 < left + width and y - 8 < at < y for dot, at in dots), node.text
