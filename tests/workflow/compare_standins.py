"""A pack that trains nothing: runs get made-up scores, take made-up time, and leave the folders that real ones leave."""

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from intarsia.data import load_data
from intarsia.heads import Head
from intarsia.methods import method_from_dict
from intarsia.task import Task
from intarsia.training import Failed
from intarsia.workflow.sections import RunSettings
from intarsia.workflow.trained import Trained

SECONDS = {"adapter": 0.10, "lora": 0.08, "prompt": 0.15, "full": 0.2, "head": 0.02}
"""Of a step."""
EVALUATION, START = 0.5, 0.4


METHODS = {"lora": {"sizes": [2, 4]}, "adapter": {"sizes": [2]}, "prompt": {"sizes": [3]}, "full": {}}
TRUTH = {"lora": 0.90, "adapter": 0.86, "prompt": 0.70, "full": 0.88}


class Killed(BaseException):
    """As SIGKILL: nothing of the program runs after it."""


class Clock:
    """In place of time.monotonic and time.perf_counter."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    monotonic = perf_counter = __call__


class FakePack:
    """Called as run_pack is. score(settings) -> the value at the end; it falls short of it while there are few steps."""

    def __init__(
        self,
        score: Callable[[RunSettings], float | None],
        clock: Clock | None = None,
        slower: float = 1.0,
        interrupt: Callable[[], None] = lambda: None,
    ) -> None:
        self.score, self.clock, self.slower, self.interrupt = score, clock or Clock(), slower, interrupt
        self.finished: Counter[str] = Counter()
        """How often each run was trained to its end."""
        self.packs: list[list[str]] = []

    def __call__(self, runs: Sequence[RunSettings], *, resume=False, backbone=None, prune=None, **_) -> list[Any]:
        self.packs.append([str(run.name) for run in runs])
        results: dict[str, Any] = {}
        states = {run.name: Fake(run, self, backbone) for run in runs}
        for name, state in states.items():
            if resume and state.ended():
                results[name] = state.trained()
        while len(results) < len(runs):
            for name, state in states.items():
                if name not in results and (found := state.go_on(prune)) is not None:
                    results[name] = found
        return [results[run.name] for run in runs]


class Fake:
    """One run."""

    def __init__(self, run: RunSettings, pack: FakePack, backbone: Any) -> None:
        self.run, self.pack, self.backbone = run, pack, backbone
        self.step, self.lines, self.seconds = 0, [], 0.0
        self.total = run.train.max_steps or 1
        self.best = pack.score(run)

    def ended(self) -> bool:
        path = self.run.out / "run.json"
        return path.exists() and json.loads(path.read_text())["result"] is not None

    def go_on(self, prune: Any) -> Trained | Failed | None:
        """To the next evaluation."""
        if self.best is None:
            return Failed(name=str(self.run.name), error=RuntimeError("the loss is nan at step 3"))  # type: ignore[arg-type]
        until = min(self.total, self.step + (self.run.train.evaluate_every or self.total))
        while self.step < until:
            self.step += 1
            self._wait(SECONDS.get(self.run.method["name"], 0.1) * self.pack.slower)
            self.lines.append({"step": self.step, "loss": 1.0, "seconds": self.seconds})
        self._wait(EVALUATION * self.pack.slower)
        value = self.best * self.step / (self.step + 5)
        self.lines.append(
            {
                "step": self.step,
                "epoch": self.step / 3,
                "validation_loss": 1 - value,
                "validation_accuracy": value,
                "seconds": self.seconds,
            }
        )
        self.pack.interrupt()
        stop = prune is not None and prune(str(self.run.name), self.step, value)
        if self.step < self.total and not stop:
            return None
        self._wait(START)
        self.write(value, "finished" if self.step == self.total else "pruned")
        self.pack.finished[str(self.run.name)] += 1
        self.pack.interrupt()
        return self.trained()

    def write(self, value: float, stopped: str) -> None:
        out = self.run.out
        splits = load_data(self.run.data.spec())
        task = Task.new(
            str(self.run.name),
            self.backbone,
            method_from_dict(self.run.method),
            Head(labels=splits.labels),
            seed=self.run.train.seed,
        )
        task.data = {"text_columns": list(splits.text_columns), "max_length": 32}
        task.metrics = {"accuracy": value}
        task.save(out)
        (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        result = {
            "steps": self.step,
            "epochs": 1.0,
            "best": value,
            "best_step": self.step,
            "stopped": stopped,
            "metrics": {"accuracy": value},
        }
        (out / "run.json").write_text(json.dumps({"run": self.run.model_dump(mode="json"), "result": result}))

    def trained(self) -> Trained:
        task = Task.load(self.run.out, self.backbone)
        return Trained(
            task=task,
            backbone=self.backbone,
            metrics={},
            folder=self.run.out,
            parameters=task.trained_parameters(),
            seconds=1.0,
        )

    def _wait(self, seconds: float) -> None:
        self.pack.clock.now += seconds
        self.seconds += seconds


def ledger_lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]


def score(run):
    """lora is best, at 1e-3; seeds differ a little."""
    rate, name = run.train.learning_rate, run.method["name"]
    best = {"lora": 1e-3, "adapter": 1e-3, "prompt": 2e-2, "full": 1e-4}[name]
    return TRUTH[name] - 0.02 * (rate != best) + 0.002 * random.Random(run.train.seed).random()
