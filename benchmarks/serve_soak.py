"""The soak of `bench_serve`: tasks come, change and go all the while, and every answer is compared with its solo result."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.serve_parts import MODEL, Client, Server, form, save_task, sentences
from benchmarks.serve_timeline import Timeline, Version
from intarsia.backbone import Backbone
from intarsia.bank import TaskBank

NAMES, VERSIONS, TEXTS = 24, 4, 12
CAPACITY_MB = 3
"""Of task tensors on the device: about half of what is served at once."""
CHANGERS = {"http": 2, "folder": 2}
"""Tasks that are being changed at once, by each way."""
CLOSE = 1e-5
"""Most that a score may be from its solo result."""
WARM_MINUTES = 2.0
"""After which the server's memory is expected to stand still."""
FILES = ("task.json", "task.safetensors")
BUSY = (429, 504)
"""What an overloaded machine may say; counted, and not wrong."""

Scores = dict[str, float]


@dataclass
class Tally:
    """What was seen."""

    changes: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    answers: int = 0
    away: int = 0
    """Answers that the task is not served, when it was not."""
    wrong: list[str] = field(default_factory=list)
    furthest: float = 0.0
    """From a solo result."""
    took: list[float] = field(default_factory=list)
    hung_up: int = 0
    memory: list[tuple[float, float]] = field(default_factory=list)
    """(minutes, MB) of the server."""


class Soak:
    """The changes and the questions. `stored`: the folder of each version, by name; `solo`: scores by version and text."""

    def __init__(self, server: Server, tasks: Path, stored: dict[str, dict[str, Path]], solo: dict[str, list[Scores]]):
        self.server, self.tasks, self.stored, self.solo = server, tasks, stored, solo
        self.client: Client = server.client()
        self.texts = sentences(TEXTS)
        self.timeline, self.tally = Timeline(list(stored)), Tally()
        self.busy: set[str] = set()
        self.shuffle = random.Random(0)

    async def run(self, minutes: float, rate: float) -> None:
        """All of it, for so long."""
        end = time.monotonic() + 60 * minutes
        changers = [self.change(way, end) for way, count in CHANGERS.items() for _ in range(count)]
        await asyncio.gather(self.questions(rate, end), self.watch_memory(end), *changers)

    # -- questions --------------------------------------------------------------------------------------------------------

    async def questions(self, rate: float, end: float) -> None:
        """So many a second, each for one to eight tasks and one or two texts; one in a hundred hangs up."""
        under_way: set[asyncio.Task[None]] = set()
        while time.monotonic() < end:
            names = self.shuffle.sample(list(self.stored), self.shuffle.choice([1, 1, 1, 2, 4, 8]))
            texts = self.shuffle.sample(range(len(self.texts)), self.shuffle.choice([1, 1, 2]))
            one = asyncio.ensure_future(self.question(names, texts))
            under_way.add(one)
            one.add_done_callback(under_way.discard)
            await asyncio.sleep(self.shuffle.expovariate(rate))
            for task in [task for task in under_way if task.done()]:
                task.result()
        await asyncio.gather(*under_way)

    async def question(self, names: list[str], texts: list[int]) -> None:
        """Asks, and compares."""
        body = json.dumps({"task": names, "texts": [self.texts[text] for text in texts]}).encode()
        if self.shuffle.random() < 0.01:
            self.tally.hung_up += 1
            return await self.client.hang_up("/v1/classify", body)
        start = time.monotonic()
        status, found = await self.client.ask("POST", "/v1/classify", body)
        end = time.monotonic()
        self.tally.took.append(end - start)
        self.tally.statuses[status] += 1
        if status == 404 and all(None in self.timeline.between(name, start, end) for name in names):
            self.tally.away += 1
            return None
        if status in BUSY:
            return None
        if status != 200:
            self.tally.wrong.append(f"status {status}: {found[:200]!r}")
            return None
        for text, row in zip(texts, json.loads(found)["results"], strict=True):
            for name, answer in zip(names, row["answers"], strict=True):
                self.compare(name, text, answer, self.timeline.between(name, start, end))

    def compare(self, name: str, text: int, answer: dict[str, Any], allowed: set[Version]) -> None:
        """One answer with those of the versions that it may be of."""
        if "error" in answer:
            if answer["error"]["code"] == 404 and None in allowed:
                self.tally.away += 1
            elif answer["error"]["code"] not in BUSY:
                self.tally.wrong.append(f"{name}: {answer['error']}")
            return
        self.tally.answers += 1
        apart = [_apart(answer["scores"], self.solo[version][text]) for version in allowed if version is not None]
        nearest = min(apart, default=1.0)
        if nearest > CLOSE:
            self.tally.wrong.append(f"{name}: {nearest:.2g} from every version that it may be of")
        else:
            self.tally.furthest = max(self.tally.furthest, nearest)

    # -- changes ----------------------------------------------------------------------------------------------------------

    async def change(self, way: str, end: float) -> None:
        """One task after the other gets another version, or goes."""
        while time.monotonic() < end:
            name = self.shuffle.choice([name for name in self.stored if name not in self.busy])
            old = self.timeline.now(name)
            choices = [version for version in [None, *self.stored[name]] if version != old]
            new = self.shuffle.choice(choices)
            self.busy.add(name)
            self.timeline.begins(name, new)
            await (self.by_http(name, new) if way == "http" else self.by_folder(name, new))
            self.timeline.done(name)
            self.busy.discard(name)
            what = "removed" if new is None else "added" if old is None else "replaced"
            self.tally.changes[f"{what} by {way}"] += 1
            await asyncio.sleep(self.shuffle.uniform(0.2, 1.0))

    async def by_http(self, name: str, version: Version) -> None:
        """Through the admin's routes, which answer when it is done."""
        if version is None:
            status, said = await self.client.ask("DELETE", f"/v1/tasks/{name}")
        else:
            body, kind = form([(file, (self.stored[name][version] / file).read_bytes()) for file in FILES])
            status, said = await self.client.ask("PUT", f"/v1/tasks/{name}", body, kind)
        if status not in (200, 204):
            raise RuntimeError(f"changing {name} was answered with {status}: {said!r}")

    async def by_folder(self, name: str, version: Version) -> None:
        """In the folder, at once or slowly, file by file; it is done when the server says so."""
        folder = self.tasks / name
        if version is None:
            shutil.rmtree(folder)
        elif folder.exists() or self.shuffle.random() < 0.5:
            folder.mkdir(exist_ok=True)
            for file in self.shuffle.sample(FILES, 2):
                shutil.copyfile(self.stored[name][version] / file, folder / file)
                await asyncio.sleep(self.shuffle.choice([0, 0, 0.5, 1.5]))
        else:
            beside = self.tasks / f".{name}"
            shutil.copytree(self.stored[name][version], beside)
            os.replace(beside, folder)
        until = time.monotonic() + 30
        while await self.served(name) != version:
            if time.monotonic() > until:
                raise RuntimeError(
                    f"{name} was changed in the folder, and after 30 seconds the server does not serve it"
                )
            await asyncio.sleep(0.1)

    async def served(self, name: str) -> Version:
        """The version that the server says."""
        return (await self.cards()).get(name, {}).get("version")

    async def cards(self) -> dict[str, dict[str, Any]]:
        """What the server says of its tasks."""
        _, found = await self.client.ask("GET", "/v1/tasks")
        return {card["name"]: card for card in json.loads(found)["tasks"]}

    async def watch_memory(self, end: float) -> None:
        """Every five seconds; says how it goes once a minute."""
        began = time.monotonic()
        while time.monotonic() < end:
            self.tally.memory.append(((time.monotonic() - began) / 60, self.server.resident()))
            if len(self.tally.memory) % 12 == 0:
                minutes, held = self.tally.memory[-1]
                print(
                    f"{minutes:.0f} min: {held:.1f} MB, {self.tally.answers} answers, {self.tally.wrong[:2]}",
                    flush=True,
                )
            await asyncio.sleep(5)

    async def held(self) -> tuple[int, int]:
        """Bytes of tasks that the server's bank holds, and those of the tasks that it serves: equal, if nothing stays behind."""
        _, text = await self.client.ask("GET", "/metrics")
        numbers = [line.split()[-1] for line in text.decode().splitlines() if line.startswith("intarsia_task_bytes_")]
        return int(sum(map(float, numbers))), sum(card["bytes"] for card in (await self.cards()).values())


def _apart(one: Scores, other: Scores) -> float:
    return max(abs(one[label] - other[label]) for label in other)


def _prepared(place: Path) -> tuple[dict[str, dict[str, Path]], dict[str, list[Scores]]]:
    """Some versions of each task, of all methods, and what each says of each text when it is alone."""
    backbone, texts = Backbone.load(MODEL, dtype="float32", device="cpu"), sentences(TEXTS)
    stored: dict[str, dict[str, Path]] = {}
    solo: dict[str, list[Scores]] = {}
    for number in range(NAMES):
        of_name = stored.setdefault(f"task{number}", {})
        for version in range(VERSIONS):
            # The versions of a task are of different methods.
            made = number * (VERSIONS + 1) + version
            task = save_task(backbone, place / str(version) / f"task{number}", made, spread=0.05)
            of_name[task.version] = place / str(version) / f"task{number}"
            bank = TaskBank(backbone, [task])
            with torch.inference_mode():
                solo[task.version] = [bank.predict([text], task.name)[0].scores for text in texts]
            bank.detach()
    return stored, solo


async def soak(minutes: float, rate: float, note: Callable[[dict[str, Any]], None], *more: str) -> None:
    """Runs it, and notes one row; RuntimeError where an answer was wrong, after the row. more: options of the server."""
    with tempfile.TemporaryDirectory() as folder:
        place, tasks = Path(folder), Path(folder) / "tasks"
        tasks.mkdir()
        stored, solo = _prepared(place / "stored")
        server = Server(tasks, place, "--capacity", str(CAPACITY_MB), *more)
        try:
            it = Soak(server, tasks, stored, solo)
            await it.run(minutes, rate)
            await asyncio.sleep(1)
            held, served = await it.held()
            it.client.close()
        finally:
            status = server.stop()
    note(_row(it.tally, minutes, solo) | {"bytes held / served": f"{held:,} / {served:,}", "exit status": status})
    if it.tally.wrong or status:
        raise RuntimeError(f"{len(it.tally.wrong)} wrong answers, exit status {status}: {it.tally.wrong[:5]}")


def _row(tally: Tally, minutes: float, solo: dict[str, list[Scores]]) -> dict[str, Any]:
    warm = [(at, held) for at, held in tally.memory if at >= min(WARM_MINUTES, minutes / 2)]
    slope = statistics.linear_regression(*zip(*warm, strict=True)).slope
    everyone = list(solo.values())
    nearest = min(
        _apart(one[text], other[text])
        for text in range(TEXTS)
        for index, one in enumerate(everyone)
        for other in everyone[:index]
    )
    return {
        "job": "soak",
        "through": "HTTP",
        "tasks": NAMES,
        "minutes": minutes,
        "requests": len(tally.took),
        **{f"p{at} ms": round(1000 * statistics.quantiles(tally.took, n=100)[at - 1], 2) for at in (50, 95, 99)},
        "answers compared": tally.answers,
        "wrong": len(tally.wrong),
        "furthest from solo": float(f"{tally.furthest:.2g}"),
        "nearest two versions": float(f"{nearest:.2g}"),
        "rightly told of no such task": tally.away,
        "hung up": tally.hung_up,
        "refused (429, 504)": sum(tally.statuses[status] for status in BUSY),
        **dict(sorted(tally.changes.items())),
        "MB at start": round(warm[0][1], 1),
        "MB at end": round(warm[-1][1], 1),
        "most MB": round(max(held for _, held in tally.memory), 1),
        "MB an hour": round(60 * slope, 2),
    }
