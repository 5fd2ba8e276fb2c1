"""`intarsia serve` under load, seen by a client on the same machine: what HTTP adds, what overload does, and a long soak.

    python -m benchmarks.bench_serve
    python -m benchmarks.bench_serve --jobs soak --minutes 20 --keep
    python -m benchmarks.bench_serve --device cuda --jobs load changes --clients 1 64 256 --processes 4

MiniLM in fp32 (on a GPU in bf16); a request is one film review (27 tokens in the middle) for one task, drawn uniformly.
Tasks have random values and are adapters of width 16, LoRA of rank 8, prefixes and prompts of 10 in turn. Server and client
are two processes, each with one thread for torch, and talk over loopback. `load`: so many clients that each ask again as
soon as they are answered; `engine` is the same without HTTP: the engine in the client's own process, asked from the same
event loop. The two take turns, so noise hits both. `pace`: both ways are asked at the same rate, at random moments, a
quarter and a half of what 64 clients reach by HTTP; that is what HTTP adds where nobody queues for a processor. `fresh`: a server
that has just said that it is ready is asked 200 times a second, at random moments, by those who come first. `changes`: 4
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
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import kept, write_results
from benchmarks.serve_loads import changing, clients, fresh, load, overload, pace
from benchmarks.serve_parts import (
    DTYPES,
    MODEL,
    Server,
    in_process,
    over_http,
    save_task,
    sentences,
)
from benchmarks.serve_soak import soak
from intarsia.backbone import Backbone
from intarsia.serving.engine import Engine
from intarsia.serving.limits import Limits

JOBS = ("fresh", "load", "pace", "changes", "overload", "soak")
NOTES = {
    "cuda": (
        "Turns of 1 s on eight of a host's processors, nothing else on the GPU. With four processes that speak HTTP (`processes`) "
        "one client waits 0.5 to 0.6 ms longer than without HTTP, 16 0.9 and 1.2, 64 1.7 and 2 (goal: 3); at rates of random "
        "moments it is 0.5 to 1.3 ms. The longest answer by HTTP took 104 ms: a batch of an unusual size, or another program of "
        "the host. Where the engine's process speaks HTTP itself (0; of 0806353), engine, tokenizer and HTTP share one "
        "interpreter, and who asks without a pause queues for it: 16 clients wait 12 ms longer, 64 45, and these get 840 answers "
        "a second in place of 2,900.",
        "Old and new in one call: since 5492136 the server makes its CUDA graphs before it says that it is ready; before that "
        "they were made, and kernels compiled, while people waited. (`before 5492136` lacks the batch from beginning to end that "
        "is asked ahead, too, since then; the rows of `fresh` have it.)",
    ),
}
"""What a reader of the present file should know; goes with its next whole run."""
FRESH = 200
"""Requests a second to a server that nobody has asked before."""
OVER = 3
CLIENTS = 64
"""Whose rate is the one that overload multiplies."""

SHARES = (0.25, 0.5)
"""Of the rate that those clients reach by HTTP, for `pace`."""


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
                names, client = [folder.name for folder in sorted(tasks.iterdir())], server.client()
                if "fresh" in given.jobs:
                    note(await fresh(over_http(client), names, texts, FRESH, 3 * given.seconds, server.took))
                engine.start()
                for folder in sorted(tasks.iterdir()):
                    engine.put(folder.name, folder)
                engine.prepare()
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
