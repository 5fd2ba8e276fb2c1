import json
import warnings

import pytest

from intarsia.errors import ConfigError
from intarsia.training.curve import draw_curve
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
