"""`intarsia serve` in a process of its own, as a person starts it, and a tiny decoder that can write for a while."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2 as httpx

from workflow.tiny_run import SPECIAL, WORDS, make_tokenizer

LONG = 1000
"""Tokens of an output that is still being written when a test has done what it does."""


def make_long_decoder(folder: Path) -> Path:
    """A random GPT-2 of one layer and many positions, which never ends a text of itself."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    make_tokenizer(folder, "$A", eos=True, length=2048)
    sizes = {"vocab_size": len(SPECIAL) + len(WORDS), "n_positions": 2048, "n_embd": 16, "n_layer": 1, "n_head": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None, pad_token_id=0))
    model.save_pretrained(folder)
    return folder


class Server:
    """A running server. `line`: what it said when it was ready; `log`: the file of its stderr."""

    def __init__(self, backbone: Path, tasks: Path, log: Path, *more: str, seconds: float = 120) -> None:
        command = [
            sys.executable,
            "-m",
            "intarsia.cli",
            "serve",
            "--backbone",
            backbone,
            "--tasks",
            tasks,
            "--port",
            "0",
        ]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self.log = log
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [*map(str, command), "--dtype", "float32", "--device", "cpu", *more],
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
            )
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], seconds)
        self.line = self.process.stdout.readline() if readable else ""
        if not self.line.startswith("http://"):
            self.process.kill()
            raise AssertionError(f"no server: {self.line!r}, {log.read_text()}")
        self.url = self.line.split()[0]

    def client(self, key: str | None = None) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={} if key is None else {"X-API-Key": key}, timeout=60)

    def connect(self) -> socket.socket:
        """A bare connection."""
        host, port = self.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=30)

    def send(self, head: str, body: bytes = b"") -> bytes:
        """What comes back for these bytes, until the server closes."""
        with self.connect() as sock:
            found = b""
            with contextlib.suppress(ConnectionError):
                sock.sendall(head.replace("\n", "\r\n").encode() + body)
                while part := sock.recv(65536):
                    found += part
            return found

    def stop(self, seconds: float = 60) -> int:
        """SIGTERM, and the exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        finally:
            self.process.kill()
            self.process.stdout.close()  # type: ignore[union-attr]


def post(path: str, body: dict, *headers: str) -> tuple[str, bytes]:
    """A request as bytes of the wire, for `Server.send`."""
    content = json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: a",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        *headers,
    ]
    return "\n".join(lines) + "\n\n", content


def eventually(check, seconds=30):
    """The first true value of `check`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := check():
            return found
        time.sleep(0.02)
    raise AssertionError("it never happened")
