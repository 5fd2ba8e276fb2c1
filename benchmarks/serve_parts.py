"""What the benchmarks of serving share: tasks of random values in folders, the server as a process, a lean client, and both ways
to ask: with and without HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import torch

from intarsia.backbone import Backbone
from intarsia.data.embedded import load_embedded
from intarsia.heads import Head
from intarsia.methods import BottleneckAdapter, LoRA, PrefixTuning, PromptTuning
from intarsia.serving.engine import Engine
from intarsia.serving.requests import Classify, Event, Failed
from intarsia.task import Task

MODEL = "embedded:minilm"
METHODS = (
    BottleneckAdapter(width=16),
    LoRA(rank=8),
    PrefixTuning(length=10, mid=None),
    PromptTuning(length=10, init="uniform"),
)
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}
LABELS = ("no", "yes", "perhaps")
LENGTH = re.compile(rb"(?i)content-length: *(\d+)")


def save_task(backbone: Backbone, folder: Path, number: int, *, spread: float = 0.02) -> Task:
    """A task folder of random values; the number chooses them, and the method."""
    task = Task.new(folder.name, backbone, METHODS[number % len(METHODS)], Head(labels=LABELS)).eval().cpu()
    numbers = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.normal_(0, spread, generator=numbers)
    task.data = {"text_columns": ["text"]}
    task.requires_grad_(False).save(folder)
    return task


def sentences(count: int) -> list[str]:
    """Of film reviews: 27 tokens each in the middle, 57 at most."""
    tables, _, _ = load_embedded("movies")
    return [str(text) for text in tables["train"].columns["text"][:count]]


class Server:
    """`intarsia serve` in a process of its own, on one core, with keys for who asks and who changes tasks."""

    def __init__(self, tasks: Path, place: Path, *more: str, device: str = "cpu", seconds: float = 300) -> None:
        """place: a folder for its keys and its log."""
        began = time.perf_counter()
        self.key, self.log = secrets.token_hex(24), place / "log"
        keys = place / "keys"
        keys.touch(mode=0o600)
        keys.write_text(f"admin:{self.key}\n")
        command = [sys.executable, "-m", "intarsia.cli", "serve", "--backbone", MODEL, "--port", "0"]
        command += ["--tasks", str(tasks), "--keys", str(keys), "--dtype", DTYPES[device], "--device", device, *more]
        with self.log.open("wb") as errors:
            self.process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            )
        assert self.process.stdout is not None
        ready = select.poll()  # not select, which knows no number of a file above 1,023
        ready.register(self.process.stdout, select.POLLIN)
        line = self.process.stdout.readline() if ready.poll(1000 * seconds) else ""
        if not line.startswith("http://"):
            self.process.kill()
            raise RuntimeError(f"no server: {line!r}, {self.log.read_text()[-2000:]}")
        self.took = time.perf_counter() - began
        """Seconds until it was ready."""
        self.host, self.port = line.split()[0].removeprefix("http://").split(":")

    def client(self) -> Client:
        """A client with the admin's key."""
        return Client(self.host, int(self.port), self.key)

    def resident(self) -> float:
        """MB of memory that it and its doors hold now."""
        own = str(self.process.pid)
        doors = Path(f"/proc/{own}/task/{own}/children").read_text().split()
        pages = sum(int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in (own, *doors))
        return pages * resource.getpagesize() / 1e6

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()


class Client:
    """HTTP/1.1 over as many kept connections as there are requests at once; leaner than a library, so that little of what is
    measured is its own."""

    def __init__(self, host: str, port: int, key: str) -> None:
        self.host, self.port = host, port
        self._head = f"HTTP/1.1\r\nHost: {host}\r\nX-API-Key: {key}\r\n"
        self._free: list[_Connection] = []

    async def ask(self, method: str, path: str, body: bytes = b"", kind: str = "application/json") -> tuple[int, bytes]:
        """Status and body."""
        while True:
            connection = await self._connection()
            try:
                found = await connection.ask(self._request(method, path, body, kind))
            except ConnectionError:
                # The server has closed a connection that was kept too long; a new one that breaks is an error.
                if not self._free:
                    raise
                continue
            self._free.append(connection)
            return found

    async def hang_up(self, path: str, body: bytes) -> None:
        """Sends a question and does not wait for the answer."""
        _, writer = await asyncio.open_connection(self.host, self.port)
        writer.write(self._request("POST", path, body, "application/json"))
        await writer.drain()
        writer.close()

    def close(self) -> None:
        """Ends all connections."""
        for connection in self._free:
            connection.transport.close()
        self._free.clear()

    def _request(self, method: str, path: str, body: bytes, kind: str) -> bytes:
        return (
            f"{method} {path} {self._head}Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )

    async def _connection(self) -> _Connection:
        while self._free:
            connection = self._free.pop()
            if not connection.transport.is_closing():
                return connection
        _, connection = await asyncio.get_running_loop().create_connection(_Connection, self.host, self.port)
        return connection


class _Connection(asyncio.Protocol):
    """Asks one thing at a time."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._came = b""
        self._answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._answer.done():
            self._answer.set_exception(ConnectionError("the server has closed the connection"))
            self._answer.exception()  # it is no accident where nobody waits

    def data_received(self, data: bytes) -> None:
        self._came += data
        head, blank, body = self._came.partition(b"\r\n\r\n")
        if not blank:
            return
        length = LENGTH.search(head)
        if len(body) >= (int(length[1]) if length else 0):
            self._came = b""
            self._answer.set_result((int(head[9:12]), body))

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        """Status and body. ConnectionError where the server closes the connection instead."""
        if self._answer.done():
            self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._answer


Ask = Callable[[str, str], Awaitable[int]]
"""(task, text) -> status."""


def over_http(client: Client) -> Ask:
    """Through the server."""

    async def ask(task: str, text: str) -> int:
        status, _ = await client.ask("POST", "/v1/classify", json.dumps({"task": task, "text": text}).encode())
        return status

    return ask


def in_process(engine: Engine) -> Ask:
    """Without HTTP."""

    async def ask(task: str, text: str) -> int:
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Event] = loop.create_future()
        engine.submit(Classify(task=task, texts=(text,)), lambda e: loop.call_soon_threadsafe(answered.set_result, e))
        event = await answered
        return event.error.status if isinstance(event, Failed) else 200

    return ask


def form(files: Sequence[tuple[str, bytes]]) -> tuple[bytes, str]:
    """A multipart/form-data body of files by field, and its content type."""
    edge = secrets.token_hex(16)
    parts = [
        f'--{edge}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"\r\n\r\n'.encode() + content
        for name, content in files
    ]
    return b"\r\n".join(parts) + f"\r\n--{edge}--\r\n".encode(), f"multipart/form-data; boundary={edge}"
