"""What HTTP alone takes of a classification: the server's own application and uvicorn before an engine that answers at once.

    python -m benchmarks.bench_http

16 clients in a process of their own ask one short question each, again as soon as they are answered, over kept connections of
loopback; server and client have a thread each. `straight`: as most clients ask. `framework`: the same question with
`charset=utf-8` in its media type, which goes through FastAPI's dependencies and models, as every route did before. `doors`: as
most clients ask, with two processes before the engine's (`--processes 2`). Turns of all, the median of their rates, and of the
processor's time that an answer takes in the process which has the engine. Writes results/http.{json,md}.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import statistics
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

WAYS = {
    "straight": (0, "application/json"),
    "framework": (0, "application/json; charset=utf-8"),
    "doors": (2, "application/json"),
}
"""Doors, and what the body says it is."""
CLIENTS, ANSWERS, TURNS = 16, 2000, 5
BODY = json.dumps(
    {"task": "mood", "text": "a film that is worth every minute of it, and then some more words here"}
).encode()


class AtOnce:
    """An engine that has its one answer ready."""

    state = "ready"

    def __init__(self) -> None:
        from intarsia.rows import Prediction
        from intarsia.serving.requests import Answer, Ticket

        scores = {"negative": 0.25, "positive": 0.75}
        self.answer = Answer(Prediction(text=["a film"], prediction=1, label="positive", scores=scores))
        self.ticket = Ticket(lambda: None)

    def still(self) -> Any:
        return contextlib.nullcontext()

    def submit(self, _request: Any, deliver: Any) -> Any:
        deliver(self.answer)
        return self.ticket


async def asking(port: int, kind: str, count: int, seconds: list[float]) -> None:
    """One client."""
    head = f"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(BODY)}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(count):
        begun = time.perf_counter()
        writer.write(head.encode() + BODY)
        said = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in said.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(length)
        seconds.append(time.perf_counter() - begun)
        if not said.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"the server answered {said[:200]!r}")
    writer.close()


async def turn(port: int, kind: str, count: int) -> tuple[float, float]:
    """Answers a second, and the median of milliseconds."""
    seconds: list[float] = []
    begun = time.perf_counter()
    await asyncio.gather(*(asking(port, kind, count // CLIENTS, seconds) for _ in range(CLIENTS)))
    return len(seconds) / (time.perf_counter() - begun), 1e3 * statistics.median(seconds)


def ask(questions: Connection) -> None:
    """The clients' process: a turn for each (port, kind) that it is told."""
    while (told := questions.recv()) is not None:
        questions.send(asyncio.run(turn(*told, ANSWERS)))


class Served:
    """A server on a thread."""

    def __init__(self, doors: int) -> None:
        from intarsia.serving.http import create_app, server

        engine: Any = AtOnce()
        ready, sock = threading.Event(), server.listen("127.0.0.1", 0)
        self.port = sock.getsockname()[1]
        self._server = server.made(create_app(engine, None), grace=5, ready=ready.set, processes=doors)
        self._thread = threading.Thread(target=self._server.run, args=([sock],))
        self._thread.start()
        ready.wait()

    def stop(self) -> None:
        """And waits for the end."""
        self._server.should_exit = True
        self._thread.join()


def main() -> None:
    from benchmarks.results import write_results

    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=ask, args=(there,), daemon=True)
    process.start()
    there.close()
    servers = {doors: Served(doors) for doors in {doors for doors, _ in WAYS.values()}}
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    spent: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(TURNS + 1):
        for way, (doors, kind) in WAYS.items():
            began = time.process_time()
            here.send((servers[doors].port, kind))
            one = here.recv()
            if number:  # the first warms up
                found[way].append(one)
                spent[way].append(1e6 * (time.process_time() - began) / ANSWERS)
    here.send(None)
    process.join()
    for one in servers.values():
        one.stop()
    rates = {way: statistics.median(rate for rate, _ in turns) for way, turns in found.items()}
    rows = [
        {
            "way": way,
            "clients": CLIENTS,
            "answers/s": round(rates[way]),
            "slowest turn": round(min(rate for rate, _ in turns)),
            "fastest turn": round(max(rate for rate, _ in turns)),
            "p50 ms": round(statistics.median(middle for _, middle in turns), 2),
            "CPU of the engine's process, us an answer": round(statistics.median(spent[way])),
            "x framework": round(rates[way] / rates["framework"], 2),
        }
        for way, turns in found.items()
    ]
    for row in rows:
        print(row)
    text = " ".join((__doc__ or "").split("\n\n")[2].split())
    write_results("http", "What HTTP alone takes", rows, text=text)


if __name__ == "__main__":
    main()
