"""`intarsia serve` under load, seen by a client on the same machine: what HTTP adds, what overload does, and a long soak.

    python -m benchmarks.bench_serve
    python -m benchmarks.bench_serve --jobs soak --minutes 20 --keep
    python -m benchmarks.bench_serve --device cuda --jobs load changes --clients 1 64 256 --processes 4

MiniLM in fp32 (on a GPU in bf16); a request is one film review (27 tokens in the middle) for one task, drawn uniformly.
Tasks have random values and are adapters of width 16, LoRA of rank 8, prefixes and prompts of 10 in turn. Server and client
are two processes, each with one thread for torch, and talk over loopback. `load`: so many clients that each ask again as
soon as they are answered; `engine` is the same without HTTP: the engine in the client's own process, asked from the same
event loop. The two take turns, so noise hits both. `pace`: both ways are asked at the same rate, at random moments, a
quarter and a half of what 64 clients reach by HTTP; that is what HTTP adds where nobody queues for a processor. `changes`: 4
clients, while another puts a task in and takes it out again, without a pause (a PUT writes and syncs two files, and loads
and checks them). `overload`: requests at 3 times the rate that 64 clients reached, whether answered or not, until well after
the queue of 1,024 is full. `soak`: tasks are added, replaced and removed all the while, through the admin's routes and by
folders (some written slowly, file by file), about twice as many as `--capacity` has room for, on a machine that others use
too; every answer is compared with the one that its task gives alone, in any version that was served between question and
answer (on a CPU only). `processes`: what the server was told of `--processes`. Writes results/serve_{cpu,cuda}.{json,md}.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import kept, write_results
from benchmarks.serve_parts import (
    DTYPES,
    MODEL,
    Ask,
    Client,
    Server,
    form,
    in_process,
    over_http,
    save_task,
    sentences,
)
from benchmarks.serve_soak import soak
from intarsia.backbone import Backbone
from intarsia.serving.engine import Engine
from intarsia.serving.limits import Limits

JOBS = ("load", "pace", "changes", "overload", "soak")
NOTES = {
    "cuda": (
        "Turns of 1 s on eight of a host's processors, nothing else on the GPU, another "
        "measurement on two of its other processors. With four processes that speak HTTP "
        "(`processes`) one to four clients wait 0.5 to 0.8 ms longer than without HTTP, 16 0.4 to 0.7, 64 1.9 and 1.7 (goal: 3). "
        "At rates of random moments it is 0.1 to 1.1 ms, but for one: with "
        "1 task, at half of the most, something stopped all answers for half a second (such waits are there without HTTP, too; "
        "a size of batch that comes for the second time makes its CUDA graph, which may be it). Where the engine's process "
        "speaks HTTP itself (0), engine, tokenizer and HTTP share one interpreter, and who asks without a pause queues for it: "
        "16 clients wait 12 ms longer, 64 45, and these get 840 answers a second in place of 2,200.",
    ),
}
"""What a reader of the present file should know; goes with its next whole run."""
ROUNDS = 3
OVER = 3
CLIENTS = 64
"""Whose rate is the one that overload multiplies."""

SHARES = (0.25, 0.5)
"""Of the rate that those clients reach by HTTP, for `pace`."""

CHANGING_CLIENTS = 4


async def clients(
    ask: Ask, names: Sequence[str], texts: Sequence[str], count: int, seconds: float, seed: int
) -> tuple[list[float], float]:
    """Seconds that each request took, of so many clients that ask again as soon as they are answered; and of all."""
    took: list[float] = []
    began = time.perf_counter()

    async def one(number: int) -> None:
        shuffle = random.Random(f"{seed} {number}")
        while (start := time.perf_counter()) < began + seconds:
            status = await ask(shuffle.choice(names), shuffle.choice(texts))
            if status != 200:
                raise RuntimeError(f"a request was answered with {status}")
            took.append(time.perf_counter() - start)

    await asyncio.gather(*(one(number) for number in range(count)))
    return took, time.perf_counter() - began


async def load(
    ways: dict[str, Ask], names: Sequence[str], texts: Sequence[str], count: int, seconds: float
) -> list[dict[str, Any]]:
    """A row for each way, which take turns."""
    took: dict[str, list[float]] = {way: [] for way in ways}
    total = dict.fromkeys(ways, 0.0)
    for number in range(ROUNDS + 1):
        for way in list(ways)[:: -1 if number % 2 else 1]:
            found, whole = await clients(ways[way], names, texts, count, seconds if number else 0.5, number)
            if number:  # the first one warms up
                took[way] += found
                total[way] += whole
    more = {
        way: {"clients": count, "requests": len(found), "requests/s": round(len(found) / total[way], 1)}
        for way, found in took.items()
    }
    return beside("load", names, took, more)


async def pace(
    ways: dict[str, Ask], names: Sequence[str], texts: Sequence[str], most: float, share: float, seconds: float
) -> list[dict[str, Any]]:
    """A row for each way, asked at the same rate by people who do not know of each other."""
    took: dict[str, list[float]] = {way: [] for way in ways}

    async def one(way: str, shuffle: random.Random) -> None:
        start = time.perf_counter()
        if (status := await ways[way](shuffle.choice(names), shuffle.choice(texts))) != 200:
            raise RuntimeError(f"a request was answered with {status}")
        took[way].append(time.perf_counter() - start)

    for number in range(ROUNDS):
        for way in list(ways)[:: -1 if number % 2 else 1]:
            shuffle, sent, at = random.Random(number), [], 0.0
            began = time.perf_counter()
            while (at := at + shuffle.expovariate(share * most)) < seconds:
                await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
                sent.append(asyncio.ensure_future(one(way, shuffle)))
            await asyncio.gather(*sent)
    asked = {"of the most": share, "requests/s": round(share * most, 1)}
    return beside("pace", names, took, {way: asked | {"requests": len(found)} for way, found in took.items()})


def beside(
    job: str, names: Sequence[str], took: dict[str, list[float]], more: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """A row for each way, with what more there is to say of it."""
    middle = {way: 1000 * statistics.median(found) for way, found in took.items()}
    return [
        {"job": job, "through": way, "tasks": len(names), **more[way], **percentiles(found)}
        | {"HTTP adds to p50, ms": round(middle[way] - middle["engine"], 2) if way == "HTTP" else None}
        for way, found in took.items()
    ]


def percentiles(took: Sequence[float]) -> dict[str, float]:
    """In milliseconds."""
    cuts = statistics.quantiles(took, n=100)
    return {f"p{at} ms": round(1000 * cuts[at - 1], 2) for at in (50, 95, 99)}


async def overload(ask: Ask, names: Sequence[str], texts: Sequence[str], rate: float, seconds: float) -> dict[str, Any]:
    """Requests by a timetable, whatever becomes of those before."""
    took: dict[int, list[float]] = {}
    shuffle = random.Random(0)

    async def one() -> None:
        start = time.perf_counter()
        status = await ask(shuffle.choice(names), shuffle.choice(texts))
        took.setdefault(status, []).append(time.perf_counter() - start)

    sent: list[asyncio.Task[None]] = []
    began = time.perf_counter()
    while (now := time.perf_counter() - began) < seconds:
        sent += [asyncio.ensure_future(one()) for _ in range(int(now * rate) - len(sent))]
        await asyncio.sleep(0.005)
    offered = len(sent) / seconds
    await asyncio.wait_for(asyncio.gather(*sent), 120)
    whole = time.perf_counter() - began
    counts = Counter({status: len(found) for status, found in took.items()})
    served = counts[200] / whole
    return {
        "job": "overload",
        "through": "HTTP",
        "tasks": len(names),
        "requests": len(sent),
        "offered/s": round(offered, 1),
        "requests/s": round(served, 1),
        **percentiles(took[200]),
        "status 200": counts.pop(200),
        "status 429": counts.pop(429, 0),
        "status 504": counts.pop(504, 0),
        "any other status": counts.total(),
        "p99 of a 429, ms": round(1000 * statistics.quantiles(took[429], n=100)[98], 1) if 429 in took else None,
        # A request that is taken has at most a full queue before it.
        "queue / rate, ms": round(1000 * Limits().queue / served),
    }


async def changing(
    client: Client, ask: Ask, names: Sequence[str], texts: Sequence[str], folder: Path, seconds: float
) -> dict[str, Any]:
    """4 clients while another puts a task in and takes it out again, without a pause."""
    body, kind = form([(file, (folder / file).read_bytes()) for file in ("task.json", "task.safetensors")])
    took: dict[str, list[float]] = {"PUT": [], "DELETE": []}
    asked = asyncio.ensure_future(clients(ask, names, texts, CHANGING_CLIENTS, seconds, 0))
    while not asked.done():
        for method, sent in (("PUT", body), ("DELETE", b"")):
            start = time.perf_counter()
            status, said = await client.ask(method, "/v1/tasks/new", sent, kind)
            if status not in (200, 204):
                raise RuntimeError(f"a task was {method} with {status}: {said!r}")
            took[method].append(time.perf_counter() - start)
    found, whole = await asked
    return {
        "job": "changes",
        "through": "HTTP",
        "tasks": len(names),
        "clients": CHANGING_CLIENTS,
        "requests": len(found),
        "requests/s": round(len(found) / whole, 1),
        **percentiles(found),
        "longest ms": round(1000 * max(found), 2),
        **{f"{way} p99 ms": percentiles(own)["p99 ms"] for way, own in took.items()},
        "changes/s": round(2 * len(took["PUT"]) / whole, 1),
    }


async def measured(given: argparse.Namespace, note: Callable[[dict[str, Any]], None]) -> None:
    """Load and overload, with so many tasks each."""
    backbone, texts = Backbone.load(MODEL, dtype=DTYPES[given.device], device=given.device), sentences(256)
    for count in given.tasks:
        with tempfile.TemporaryDirectory() as place:
            tasks = Path(place) / "tasks"
            for number in range(count):
                save_task(backbone, tasks / f"task{number}", number)
            server, engine = Server(tasks, Path(place), *given.more, device=given.device), Engine(backbone)
            try:
                engine.start()
                for folder in sorted(tasks.iterdir()):
                    engine.put(folder.name, folder)
                names, client = [folder.name for folder in sorted(tasks.iterdir())], server.client()
                ways = {"HTTP": over_http(client), "engine": in_process(engine)}
                if "load" in given.jobs:
                    for clients_ in given.clients:
                        for row in await load(ways, names, texts, clients_, given.seconds):
                            note(row)
                if "pace" in given.jobs:
                    found, whole = await clients(ways["HTTP"], names, texts, CLIENTS, 3, 0)
                    for share in SHARES:
                        for row in await pace(ways, names, texts, len(found) / whole, share, given.seconds):
                            note(row)
                if "changes" in given.jobs:
                    folder = tasks / names[0]
                    note(await changing(client, ways["HTTP"], names, texts, folder, 3 * given.seconds))
                if "overload" in given.jobs:
                    found, whole = await clients(ways["HTTP"], names, texts, CLIENTS, 3, 0)
                    rate = len(found) / whole
                    # Long enough that the queue is full for a third of the time.
                    seconds = 1.5 * Limits().queue / ((OVER - 1) * rate)
                    note(await overload(ways["HTTP"], names, texts, OVER * rate, seconds))
                client.close()
            finally:
                engine.drain(10)
                server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=list(DTYPES))
    parser.add_argument("--jobs", nargs="+", default=list(JOBS[:-1]), choices=JOBS)
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 1024])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--processes", type=int, help="of the server, that speak HTTP; else as many as it chooses")
    parser.add_argument("--seconds", type=float, default=3, help="of each round; there are three")
    parser.add_argument("--minutes", type=float, default=20, help="of the soak")
    parser.add_argument("--rate", type=float, default=5, help="requests a second of the soak")
    parser.add_argument("--keep", action="store_true", help="beside the rows that the result file has of other jobs")
    given = parser.parse_args()
    given.more = [] if given.processes is None else ["--processes", str(given.processes)]
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []

    def note(row: dict[str, Any]) -> None:
        rows.append({"job": row["job"], "processes": given.processes, **row})
        print(rows[-1], flush=True)

    if set(given.jobs) - {"soak"}:
        asyncio.run(measured(given, note))
    if "soak" in given.jobs:
        asyncio.run(soak(given.minutes, given.rate, note, *given.more))
    name = f"serve_{given.device}"
    found, about = kept(name, rows, ("job", "processes")) if given.keep else (rows, None)
    text = "\n\n".join([__doc__.split("\n\n")[2].replace("\n", " "), *NOTES.get(given.device, ())])
    write_results(name, f"The server under load, {given.device}", found, text=text, about=about)


if __name__ == "__main__":
    main()
