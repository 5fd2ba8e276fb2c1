"""A fake engine's server in this process, with doors or without, and the bytes of the wire that it is asked with."""

import re
import socket
import threading
from contextlib import contextmanager

from intarsia.serving.http import create_app, server
from serving.fake_engine import FakeEngine

SHORT = b'{"task": "mood", "text": "abc"}'


class Served:
    """A server. `taken`: what the doors had read of the connections that they gave away."""

    def __init__(self, processes, keys=None, **more):
        self.engine, self.taken = FakeEngine(), []
        self.app = create_app(self.engine, keys, **more)
        self.sock, ready = server.listen("127.0.0.1", 0), threading.Event()
        self.address = self.sock.getsockname()
        self.server = server.made(self.app, grace=5, ready=ready.set, processes=processes)
        if processes:
            take = self.server._take
            self.server._take = lambda begun, sock: (self.taken.append(begun), take(begun, sock))
        self.thread = threading.Thread(target=self.server.run, args=([self.sock],))
        self.thread.start()
        assert ready.wait(30)

    def stop(self):
        """As SIGTERM does it."""
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()

    def connect(self):
        return socket.create_connection(self.address, timeout=10)

    def ask(self, *requests):
        """The answers to requests on one connection, each sent when the one before is answered."""
        with self.connect() as sock:
            reader = sock.makefile("rb")
            said = []
            for one in requests:
                sock.sendall(one)
                said.append(read(reader))
            return said

    @property
    def doors(self):
        """Their processes."""
        return [one.process.pid for one in self.server._doors._started]


@contextmanager
def served(processes, keys=None, **more):
    one = Served(processes, keys, **more)
    try:
        yield one
    finally:
        one.stop()


def request(body=SHORT, path="/v1/classify", kind="application/json", *headers):
    """A question as most clients send it, and more headers."""
    lines = [f"POST {path} HTTP/1.1", "Host: a", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def get(path, method="GET", *headers):
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: a", *headers, "", ""]).encode()


def read(reader):
    """All bytes of the next answer, but for what differs with the time; b"" where the connection has ended."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = reader.readline()
        if not line:
            return head
        head += line
    length = re.search(rb"(?i)content-length: (\d+)", head)
    body = reader.read(int(length[1])) if length and not _has_no_body(head) else b""
    if b"transfer-encoding: chunked" in head.lower():
        while not body.endswith(b"0\r\n\r\n"):
            body += reader.readline()
    return re.sub(rb"date: [^\r]*\r\n", b"", head) + body


def _has_no_body(head):
    return head.startswith((b"HTTP/1.1 204", b"HTTP/1.1 304", b"HTTP/1.1 100"))


def status(said):
    return int(said.split()[1])
