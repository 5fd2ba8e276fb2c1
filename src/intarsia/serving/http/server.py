"""From a backbone and a folder to a running server; what is wrong with port, keys or folder is known before a backbone loads."""

import asyncio
import contextlib
import gc
import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from intarsia.backbone import Backbone
from intarsia.errors import ConfigError, TaskError
from intarsia.serving.engine import Engine
from intarsia.serving.http import patience
from intarsia.serving.http.app import create_app
from intarsia.serving.http.doors.continued import Continued
from intarsia.serving.http.doors.doors import Doors
from intarsia.serving.http.keys import Keys
from intarsia.serving.http.onewrite import OneWrite
from intarsia.serving.http.service import log
from intarsia.serving.library import Library
from intarsia.taskfile import read_description

ABLE = sys.platform == "linux"
"""Whether there can be doors: open connections are sent in packets of their own."""
MOST_DOORS = 4
"""Where nobody says how many."""


def serve_folder(
    backbone: str,
    tasks: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    keys: Path | None = None,
    capacity: int | None = None,
    grace: float = 30.0,
    processes: int | None = None,
    log_texts: bool = False,
    dtype: str = "auto",
    device: str = "auto",
) -> None:
    """Serves the task folders under `tasks` until SIGTERM, SIGHUP or Ctrl-C; says on stdout when and where it is ready.

    keys: a file for `Keys.read`. capacity: bytes of task tensors on the device. grace: seconds that requests under way get
    at the end. processes: that speak HTTP before this one; 0: none, None: as many as suit this machine. ConfigError for a bad
    address, keys file, folder or setting, BackboneError for a bad backbone.
    """
    if processes and not ABLE:
        raise ConfigError("--processes works on Linux only; leave it out")
    allowed = None if keys is None else Keys.read(keys)
    if not tasks.is_dir():
        raise ConfigError(f"the tasks' folder {tasks} does not exist; make it, or give another --tasks")
    with contextlib.closing(listen(host, port)) as sock:
        _prepare_log()
        if allowed is None and not is_loopback(host):
            log.warning("warning: %s can be reached from other machines, and without --keys FILE anyone may ask", host)
        engine = Engine(
            Backbone.load(backbone, dtype=dtype, device=device, language_model=_wants_words(tasks)), capacity=capacity
        )
        with _settled():
            engine.start()
            library = Library(tasks, engine)
            count = library.start()
            engine.prepare()

            def ready() -> None:
                number = f"{count} task{'' if count == 1 else 's'}"
                how = f"{engine.backbone.device}, {str(engine.backbone.dtype).removeprefix('torch.')}"
                print(f"{url(sock)} serves {number} on {backbone} ({how})", flush=True)

            app = create_app(engine, allowed, library=library, log_texts=log_texts)
            doors = doors_for(engine.backbone.device.type) if processes is None else processes
            run(app, sock, grace=grace, ready=ready, processes=doors)
            library.stop()
            engine.drain(grace)


@contextlib.contextmanager
def _settled() -> Iterator[None]:
    """What is there now is no garbage meanwhile. A full collection would look at the half million objects of the libraries and the
    model again and again, and meanwhile nobody would be answered. Tasks come later, and go again."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()  # else what nanobind made would be reported as leaked at the end


def _wants_words(tasks: Path) -> bool:
    """Whether any task answers through words, for which an encoder needs its language model's head."""
    for folder in tasks.iterdir():
        with contextlib.suppress(TaskError, OSError):
            if folder.is_dir() and read_description(folder)["head"].get("verbaliser"):
                return True
    return False


def _prepare_log() -> None:
    """Our log goes to stderr, a line each."""
    log.setLevel(logging.INFO)
    if not log.handlers:
        log.addHandler(logging.StreamHandler())
        log.handlers[0].setFormatter(logging.Formatter("%(asctime)s %(message)s"))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. ConfigError where the address is not ours, or taken."""
    # The protocol must be named, as it is by getaddrinfo: asyncio switches Nagle's delay off only for sockets that say TCP.
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"--host {host!r} is no address of this machine: {error.strerror}") from None
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror}; give another --port or --host"
        ) from None
    return sock


def url(sock: socket.socket) -> str:
    """Where a browser finds it."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _ends() -> list[int]:
    """The signals that end a server. SIGHUP, of a terminal that is closed, is one unless it is ignored, as nohup has it."""
    numbers: list[int] = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers


class _Server(uvicorn.Server):
    """uvicorn's server, which says when it is ready, and for which SIGTERM and a closed terminal are orders, not accidents."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # As uvicorn's own, but it raises the signal again at the end, and a graceful stop would have a status of failure.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _ends()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _ServerBehindDoors(_Server):
    """The same without a listener of its own: doors give it its connections."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None], app: FastAPI, count: int) -> None:
        super().__init__(config, ready)
        self._app, self._count = app, count
        self._coming: set[asyncio.Task[Any]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        [sock], state = sockets or [], self._app.state
        self._doors = Doors(self._count, state.service, state.keys, sock, self._take)
        try:
            await self._doors.start()
        except BaseException:
            self._doors.kill()
            raise
        await super().startup([])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for connection in list(self.server_state.connections):
            connection.shutdown()
        until = time.monotonic() + float(self.config.timeout_graceful_shutdown or 0)
        await self._doors.end(until, lambda: self.force_exit)
        self.config.timeout_graceful_shutdown = max(0.1, until - time.monotonic())  # type: ignore[assignment]
        await super().shutdown(sockets)

    def _take(self, begun: bytes, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        protocol = Continued(
            self._doors,
            begun,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            _loop=loop,
        )
        made = loop.create_task(loop.connect_accepted_socket(lambda: protocol, sock))
        self._coming.add(made)
        made.add_done_callback(self._coming.discard)


def doors_for(device: str) -> int:
    """How many processes speak HTTP before the engine's where nobody says it: on a CPU they would take from the model's time."""
    if device == "cpu" or not ABLE:
        return 0
    return min(MOST_DOORS, len(os.sched_getaffinity(0)) // 4)


def made(app: FastAPI, *, grace: float, ready: Callable[[], None], processes: int = 0) -> uvicorn.Server:
    """uvicorn's server of an application. processes: doors; 0: HTTP is spoken here."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        proxy_headers=False,  # nobody asks where a client is
        server_header=False,
        http=OneWrite,  # not httptools, which uvicorn prefers where it is installed: it reads a head that never ends for ever
        ws="none",
        lifespan="off",
        timeout_keep_alive=patience.IDLE_SECONDS,
        timeout_graceful_shutdown=max(1, round(grace)),
    )
    return _ServerBehindDoors(config, ready, app, processes) if processes else _Server(config, ready)


def run(app: FastAPI, sock: socket.socket, *, grace: float, ready: Callable[[], None], processes: int = 0) -> None:
    """Serves until SIGTERM, SIGHUP or Ctrl-C; requests under way then have `grace` seconds. A second Ctrl-C ends it at once."""
    made(app, grace=grace, ready=ready, processes=processes).run([sock])
