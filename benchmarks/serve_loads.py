"""The loads of bench_serve: clients that ask again as soon as they are answered, requests at random moments, too many of them, and
requests while tasks change."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.serve_parts import Ask, Client, form
from intarsia.serving.limits import Limits

ROUNDS = 3
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


async def paced(
    ask: Ask, names: Sequence[str], texts: Sequence[str], rate: float, seconds: float, seed: int
) -> list[float]:
    """Seconds that each request took, so many a second at random moments."""
    took: list[float] = []
    shuffle, sent, at = random.Random(seed), [], 0.0

    async def one() -> None:
        start = time.perf_counter()
        if (status := await ask(shuffle.choice(names), shuffle.choice(texts))) != 200:
            raise RuntimeError(f"a request was answered with {status}")
        took.append(time.perf_counter() - start)

    began = time.perf_counter()
    while (at := at + shuffle.expovariate(rate)) < seconds:
        await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
        sent.append(asyncio.ensure_future(one()))
    await asyncio.gather(*sent)
    return took


async def fresh(
    ask: Ask, names: Sequence[str], texts: Sequence[str], rate: float, seconds: float, ready: float
) -> dict[str, Any]:
    """A server that nobody has asked before. ready: the seconds that it took to be."""
    took = await paced(ask, names, texts, rate, seconds, 0)
    return {
        "job": "fresh",
        "through": "HTTP",
        "tasks": len(names),
        "requests": len(took),
        "requests/s": rate,
        **percentiles(took),
        "above 50 ms": sum(one > 0.05 for one in took),
        "ready after, s": round(ready, 1),
    }


async def pace(
    ways: dict[str, Ask], names: Sequence[str], texts: Sequence[str], most: float, share: float, seconds: float
) -> list[dict[str, Any]]:
    """A row for each way, asked at the same rate by people who do not know of each other."""
    took: dict[str, list[float]] = {way: [] for way in ways}

    for number in range(ROUNDS):
        for way in list(ways)[:: -1 if number % 2 else 1]:
            took[way] += await paced(ways[way], names, texts, share * most, seconds, number)
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
    found = {f"p{at} ms": round(1000 * cuts[at - 1], 2) for at in (50, 95, 99)}
    return {**found, "longest ms": round(1000 * max(took), 2)}


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
        **{f"{way} p99 ms": percentiles(own)["p99 ms"] for way, own in took.items()},
        "changes/s": round(2 * len(took["PUT"]) / whole, 1),
    }
