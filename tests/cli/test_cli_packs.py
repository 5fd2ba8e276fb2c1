"""Run files of several runs, from the command line."""

import json
import shlex
import signal

import pytest

from intarsia.training.member import Member


def test_a_stopped_pack_says_a_command_that_goes_on_with_it(cli, backbone, files, tmp_path, monkeypatch):
    """With what stood on the command line beside the run file."""
    run_file = tmp_path / "two runs.yaml"
    run_file.write_text(f"backbone: {backbone}\nruns: [{{name: a, method: head}}, {{name: b, method: bitfit}}]\n")
    stepped, left = Member.stepped, [5]

    def interrupting(self, *seen):
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signal.SIGINT)
        return stepped(self, *seen)

    monkeypatch.setattr(Member, "stepped", interrupting)
    given = ["--train", files["train"], "--test", files["test"], "--label-column", "label", "--lr", 2e-3]
    stopped = cli("train", run_file, *given, "--set", "train.max_steps=6", "--out", tmp_path / "out", "--device", "cpu")
    assert stopped.status == 130
    command = stopped.err.splitlines()[-1].removeprefix("intarsia: stopped; go on with: intarsia ")
    done = cli(*shlex.split(command))
    assert done.status == 0, done.err
    assert "a: resumed from the checkpoint of step" in done.err
    assert "test_accuracy" in (tmp_path / "out/a/task.json").read_text()
    header, *rows = done.out.splitlines()
    assert header.split()[:3] == ["run", "validation", "test"]
    scores = [json.loads((tmp_path / "out" / name / "task.json").read_text())["metrics"] for name in ("a", "b")]
    assert [row.split()[2:5:2] for row in rows] == [
        [f"{s['accuracy']:.4f}", f"{s['test_accuracy']:.4f}"] for s in scores
    ]


@pytest.mark.parametrize("order", [("kind", "text"), ("text", "kind")])
def test_a_packs_table_has_runs_with_different_numbers_of_scores(cli, decoder, files, tmp_path, order):
    """A run that writes has the loss alone on validation, one with classes has several scores."""
    runs = {
        "kind": {"name": "kind", "method": "head"},
        "text": {"name": "text", "method": {"name": "prompt", "length": 2}, "data": {"kind": "generation"}},
    }
    shared = {
        "backbone": str(decoder),
        "out": str(tmp_path / "out"),
        "data": {"train": str(files["train"]), "label_column": "label"},
        "train": {"max_steps": 1},
    }
    run_file = tmp_path / "runs.yaml"
    run_file.write_text(json.dumps({**shared, "runs": [runs[name] for name in order]}))
    done = cli("train", run_file)
    assert done.status == 0, done.err
    header, *lines = done.out.splitlines()
    assert header.split() == ["run", "score", "parameters", "size", "task"]
    assert tuple(line.split()[0] for line in lines) == order
    assert all(line[header.index("task") :] == str(tmp_path / "out" / line.split()[0]) for line in lines)


def test_a_test_file_is_scored_whether_a_flag_or_a_run_file_names_it(cli, backbone, files, tmp_path):
    """In a pack it stays the shared one where a run has training rows of its own, until the run says otherwise."""
    few = tmp_path / "few.csv"
    few.write_text("".join(files["train"].read_text().splitlines(keepends=True)[:12]))
    shared = {
        "backbone": str(backbone),
        "data": {name: str(path) for name, path in files.items()} | {"label_column": "label"},
        "method": "head",
        "train": {"max_steps": 1},
    }
    alone, pack = tmp_path / "alone.yaml", tmp_path / "pack.yaml"
    alone.write_text(json.dumps({**shared, "out": str(tmp_path / "alone")}))
    runs = [{"name": "few", "data": {"train": str(few)}}, {"name": "none", "data": {"train": str(few), "test": None}}]
    pack.write_text(json.dumps({**shared, "out": str(tmp_path / "pack"), "runs": runs}))
    for file in (alone, pack):
        done = cli("train", file)
        assert done.status == 0, done.err
    tested = {
        name: "test_accuracy" in json.loads((tmp_path / name / "task.json").read_text())["metrics"]
        for name in ("alone", "pack/few", "pack/none")
    }
    assert tested == {"alone": True, "pack/few": True, "pack/none": False}


def test_each_failed_run_of_a_pack_has_a_line(cli, backbone, files, tmp_path):
    run_file = tmp_path / "pack.yaml"
    runs = [{"name": name, "data": {"label_column": column}} for name, column in (("a", "nope"), ("b", "neither"))]
    shared = {"backbone": str(backbone), "data": {"train": str(files["train"])}, "method": "head"}
    run_file.write_text(json.dumps({**shared, "out": str(tmp_path / "out"), "runs": runs}))
    done = cli("train", run_file)
    assert done.status == 2
    a, b, last = done.err.splitlines()[-3:]
    assert a.startswith("run 'a' failed: ")
    assert b.startswith("run 'b' failed: ")
    assert last == "intarsia: 2 of the 2 runs failed, as the lines above say"


def test_a_packs_table_shows_the_metric_that_the_runs_choose_by(cli, backbone, files, tmp_path):
    run_file = tmp_path / "runs.yaml"
    run_file.write_text(f"backbone: {backbone}\nruns: [{{name: a, method: head}}]\n")
    given = ["--train", files["train"], "--test", files["test"], "--label-column", "label", "--max-steps", 1]
    done = cli(
        "train", run_file, *given, "--set", "train.metric=matthews", "--out", tmp_path / "out", "--device", "cpu"
    )
    assert done.status == 0, done.err
    scores = json.loads((tmp_path / "out/a/task.json").read_text())["metrics"]
    shown = ["a", "matthews", f"{scores['matthews']:.4f}", "matthews", f"{scores['test_matthews']:.4f}"]
    assert done.out.splitlines()[1].split()[:5] == shown
