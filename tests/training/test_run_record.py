import json
import warnings

import pytest
from matplotlib.figure import Figure

from intarsia.errors import ConfigError
from intarsia.training.curve import _draw_metric, _smooth, draw_curve
from intarsia.training.record import RunRecord, as_json, check_same, commit, hardware, versions


def test_differences_are_named_by_their_path():
    then = as_json({"settings": {"seed": 0, "betas": (0.9, 0.999)}, "data": {"rows": 10}})
    check_same(then, as_json({"settings": {"seed": 0, "betas": [0.9, 0.999]}, "data": {"rows": 10}}))
    with pytest.raises(
        ConfigError, match=r"data\.rows was 10 and is 11; extra was None and is 1; choose another --out"
    ):
        check_same(then, as_json({"settings": {"seed": 0, "betas": [0.9, 0.999]}, "data": {"rows": 11}, "extra": 1}))


def test_lines_after_the_checkpoint_are_cut_off(tmp_path):
    record = RunRecord(tmp_path)
    record.open(resume=False)
    record.begin({}, {})
    record.append({"step": 1})
    length = record.synced_bytes()
    record.append({"step": 2})
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 3, "lo')  # Killed within a line.
    record.close()
    again = RunRecord(tmp_path)
    again.open(resume=True)
    again.go_on(length)
    again.append({"step": 2})
    assert again.lines() == [{"step": 1}, {"step": 2}]


def test_what_is_known_of_the_machine_is_json():
    facts = json.loads(json.dumps({"hardware": hardware(), "versions": versions(), "commit": commit()}))
    assert facts["hardware"]["cpu"]
    assert facts["hardware"]["cores"] >= 1
    assert all(facts["versions"].values())


@pytest.mark.parametrize("points", [0, 1, 2, 200])
@pytest.mark.parametrize("metric", [None, "accuracy", "loss", "mse"])
def test_a_curve_can_be_drawn_of_any_run(tmp_path, points, metric):
    parsed = [{"step": 10 * i, "loss": 2.0 / (1 + i)} for i in range(1, points + 1)]
    if metric:
        parsed += [{"step": 100, "validation_loss": 0.5, "validation_accuracy": 0.9, "validation_mse": 0.2}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_curve(parsed, metric, "a run", tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]


@pytest.mark.parametrize(("metric", "best"), [("accuracy", (20, 0.9)), ("mse", (30, 0.6))])
def test_the_best_evaluation_is_marked_and_named(metric, best):
    values = {10: 0.7, 20: 0.9, 30: 0.6, 40: 0.9}
    panel = Figure().subplots()
    _draw_metric(panel, [{"step": step, f"validation_{metric}": value} for step, value in values.items()], metric)
    line, mark = panel.lines
    assert list(zip(*line.get_data(), strict=True)) == list(values.items())
    assert list(zip(*mark.get_data(), strict=True)) == [best]
    (note,) = panel.texts
    assert (note.get_text(), note.xy) == (f"best {best[1]}", best)


def test_a_smoothed_line_is_the_mean_of_what_is_around_each_point():
    assert _smooth([0.0, 3.0, 6.0, 0.0]) == [1.5, 3.0, 3.0, 3.0]
    assert _smooth([1.0] * 119 + [7.0])[-5:] == pytest.approx([1.0, 1 + 6 / 7, 1 + 6 / 6, 1 + 6 / 5, 1 + 6 / 4])
