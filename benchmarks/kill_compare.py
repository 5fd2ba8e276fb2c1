"""`intarsia compare`, killed with SIGKILL at random moments and resumed each time: is anything lost, or done twice?

    python -m benchmarks.kill_compare --kills 20

A small comparison over MiniLM: lora at two learning rates, adapters and a head, four seeds, half a minute of training. Where it
ends before all kills are spent, another one is begun. Looked at after every kill and at the end:

- every run that had ended is there still, with the same bytes, written at the same time, and all that the ledger said;
- no run is in the ledger twice, no step twice in the metrics of a run, and the ledger has one start, plan, choice and end;
- each run, trained again by itself and never killed, has the very weights of the one that went through the kills.
"""

import argparse
import csv
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.results import write_results

ROWS = {"train": 64, "validation": 32, "test": 32}
SETTINGS = {
    "backbone": "embedded:minilm",
    "methods": {
        "lora": {"sizes": [4], "learning_rates": [2e-3, 5e-4]},
        "adapter": {"sizes": [8], "learning_rates": [1e-3]},
        "head": {"learning_rates": [5e-3]},
    },
    "seeds": 4,
    "train": {"batch_size": 4, "epochs": 1},
    "device": "cpu",
}
ONCE = ("start", "plan", "choice", "end")
LATEST = 30.0
"""Seconds after a process's start up to which a kill comes: about what a comparison takes that is left alone."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, rows = random.Random(arguments.seed), []
    with tempfile.TemporaryDirectory() as name:
        folder, comparisons = Path(name), 0
        write_data(folder)
        while len(rows) < arguments.kills:
            comparisons += 1
            out = folder / f"out-{comparisons}"
            rows += to_the_end(folder, out, comparisons, rng, arguments.kills - len(rows))
            check_ended(out)
            alone = trained_alone(out, folder / f"alone-{comparisons}")
            print(f"{out.name}: {alone} runs are bit for bit those trained alone", flush=True)
    text = (
        f"{comparisons} small comparisons were killed {len(rows)} times in all and resumed each time, to the end. `after`: seconds "
        "from the process's start. `lost` and `changed`: runs that had ended at the kill, and that were not there, or not with the "
        "same files written at the same time, when the comparison had gone on. At the end every run was in the ledger once, "
        "with each step once in its metrics, and had bit for bit the weights of the same run trained by itself without a kill."
    )
    rows = [{"kill": number, **row} for number, row in enumerate(rows, 1)]
    write_results("kill_compare", "A comparison killed at random moments", rows, text=text)


def write_data(folder: Path) -> None:
    """Some rows of embedded:movies as files, and the settings beside them."""
    from intarsia.data import DataSpec, load_data

    splits = load_data(DataSpec(data="embedded:movies"))
    data: dict[str, Any] = {"text_columns": ["text"], "label_column": "label"}
    for name, count in ROWS.items():
        rows, path = splits.split(name), folder / f"{name}.csv"
        assert rows.labels is not None
        with path.open("w", newline="") as file:
            chosen = random.Random(0).sample(range(len(rows)), count)
            lines = csv.writer(file)
            lines.writerow(["text", "label"])
            lines.writerows((rows.texts[i][0], splits.labels[rows.labels[i]]) for i in chosen)
        data[name] = str(path)
    (folder / "compare.yaml").write_text(json.dumps({**SETTINGS, "data": data}))  # JSON is YAML


def to_the_end(folder: Path, out: Path, comparison: int, rng: random.Random, kills: int) -> list[dict[str, Any]]:
    """A comparison that is killed at most so many times. Returns a row for each kill."""
    rows: list[dict[str, Any]] = []
    while True:
        before, lines = finished(out), ledger(out)
        command = [sys.executable, "-m", "intarsia.cli", "compare", "--out", str(out)]
        command += ["--resume"] if lines else [str(folder / "compare.yaml")]
        began = time.perf_counter()
        with (folder / "said").open("w") as said:
            process = subprocess.Popen(command, stderr=said, stdout=said)
        killed = len(rows) < kills and kill(process, rng)
        if process.wait() and not killed:
            raise SystemExit(f"the comparison failed: {(folder / 'said').read_text()}")
        after, now = finished(out), ledger(out)
        assert now[: len(lines)] == lines, "what the ledger held is no longer in it"
        if rows:
            rows[-1] |= {
                "lost": len(before.keys() - after.keys()),
                "changed": sum(before[r] != after.get(r) for r in before),
            }
        if not killed:
            return rows
        seconds = round(time.perf_counter() - began, 1)
        rows.append({"comparison": comparison, "after": seconds, "at": place(now), "finished runs": len(after)})
        print(rows[-1], flush=True)


def kill(process: subprocess.Popen[bytes], rng: random.Random) -> bool:
    """At a random moment. False: it had ended before."""
    try:
        process.wait(rng.uniform(0, LATEST))
    except subprocess.TimeoutExpired:
        process.kill()
        return True
    return False


def ledger(out: Path) -> list[dict[str, Any]]:
    """Its whole lines; none where it has not begun."""
    path = out / "ledger.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def finished(out: Path) -> dict[str, tuple[str, int, str]]:
    """Run -> what its task is, when it was written and how it ended, of those that have ended."""
    found = {}
    for path in sorted(out.glob("runs/*/run.json")):
        result, task = json.loads(path.read_text()).get("result"), path.with_name("task.safetensors")
        if result:
            found[path.parent.name] = (digest(task), task.stat().st_mtime_ns, json.dumps(result))
    return found


def place(lines: list[dict[str, Any]]) -> str:
    """What the ledger says was under way."""
    stages = [line["stage"] for line in lines if line["event"] == "stage"]
    events = [line["event"] for line in lines]
    if "choice" in events:
        return "scoring the test split"
    return stages[-1] if stages else "probes" if "start" in events else "start"


def check_ended(out: Path) -> None:
    """Nothing is there twice, and nothing is missing."""
    lines = ledger(out)
    events = Counter(line["event"] for line in lines)
    assert all(events[one] == 1 for one in ONCE), events
    wanted = sorted(one["run"] for line in lines if line["event"] == "stage" for one in line["members"])
    runs = sorted(line["run"] for line in lines if line["event"] == "run")
    assert wanted == runs == sorted(finished(out)), "a run is missing, or in the ledger twice"
    tests = [line["run"] for line in lines if line["event"] == "test"]
    assert len(tests) == len(set(tests)), "a run was scored twice"
    for run in wanted:
        metrics = [json.loads(line) for line in (out / "runs" / run / "metrics.jsonl").open()]
        steps = Counter((line["step"], "loss" in line) for line in metrics)
        assert set(steps.values()) == {1}, f"{run} has a step twice"
    assert (out / "report.html").exists()
    assert (out / "best" / "task.safetensors").exists()


def trained_alone(out: Path, again: Path) -> int:
    """Trains every run by itself and compares the weights. Returns how many there were."""
    from intarsia.workflow.sections import RunSettings
    from intarsia.workflow.training import load_backbone, run

    backbone = None
    names = list(finished(out))
    for name in names:
        facts = json.loads((out / "runs" / name / "run.json").read_text())["run"]
        settings = RunSettings.model_validate({**facts, "out": str(again / name)})
        backbone = backbone or load_backbone(settings)
        run(settings, backbone=backbone)
        same = digest(again / name / "task.safetensors") == digest(out / "runs" / name / "task.safetensors")
        assert same, f"{name} is another task than when it is trained alone"
    return len(names)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
