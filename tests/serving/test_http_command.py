"""`intarsia serve` where it cannot start: status 2 and one line, before a backbone is loaded."""

import gc
import os
import socket
from importlib import util

import pytest
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from intarsia.cli.__main__ import main
from intarsia.errors import ConfigError
from intarsia.serving.http import server
from intarsia.serving.http.server import is_loopback, listen, url
from workflow.tiny_run import make_backbone


@pytest.fixture
def refused(capsys):
    def run(*argv, fragment):
        assert main(["serve", *map(str, argv)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("intarsia: ")
        assert err.count("\n") == 1
        assert fragment in err, err

    return run


@pytest.fixture
def tasks(tmp_path):
    (tmp_path / "tasks").mkdir()
    return tmp_path / "tasks"


def test_a_busy_port_is_one_line(refused, tasks):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        refused(
            "--backbone", "nowhere", "--tasks", tasks, "--port", port, fragment=f"port {port}: Address already in use"
        )


def test_a_host_that_is_not_ours_is_one_line(refused, tasks):
    refused(
        "--backbone",
        "nowhere",
        "--tasks",
        tasks,
        "--host",
        "no.such.host.invalid",
        fragment="no address of this machine",
    )
    refused("--backbone", "nowhere", "--tasks", tasks, "--host", "192.0.2.1", fragment="cannot listen on 192.0.2.1")


def test_a_missing_folder_is_one_line(refused, tmp_path):
    refused("--backbone", "nowhere", "--tasks", tmp_path / "none", fragment="does not exist")


def test_a_keys_file_that_everybody_may_read_is_one_line(refused, tasks, tmp_path):
    (tmp_path / "keys").write_text("infer:0123456789abcdef\n")
    (tmp_path / "keys").chmod(0o644)
    refused("--backbone", "nowhere", "--tasks", tasks, "--keys", tmp_path / "keys", fragment="chmod 600")


def test_processes_where_there_can_be_none_are_one_line(refused, tasks, monkeypatch):
    monkeypatch.setattr(server, "ABLE", False)
    refused("--backbone", "nowhere", "--tasks", tasks, "--processes", "2", fragment="works on Linux only")
    assert server.doors_for("cuda") == 0


@pytest.mark.parametrize(("cores", "doors"), [(2, 0), (3, 0), (4, 1), (16, 4), (128, 4)])
def test_a_gpu_has_doors_where_there_are_cores_for_them(monkeypatch, cores, doors):
    monkeypatch.setattr(server, "ABLE", True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert server.doors_for("cuda") == doors
    assert server.doors_for("cpu") == 0


def test_a_missing_extra_is_one_line(refused, tasks, monkeypatch):
    found = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *rest: None if name == "uvicorn" else found(name, *rest))
    refused("--backbone", "nowhere", "--tasks", tasks, fragment="pip install 'intarsia[serve]'")


def test_a_backbone_that_is_none_is_one_line(refused, tasks, tmp_path):
    refused("--backbone", tmp_path / "nowhere", "--tasks", tasks, "--port", "0", fragment="nowhere")


def test_an_address_that_others_reach_without_keys_is_a_warning(tasks, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(server, "run", lambda *_, **__: None)
    backbone = make_backbone(tmp_path / "bert")
    monkeypatch.setattr(server, "listen", lambda host, port: socket.create_server(("127.0.0.1", 0)))
    for host, warned in (("127.0.0.1", False), ("0.0.0.0", True)):
        caplog.clear()
        server.serve_folder(str(backbone), tasks, host=host, port=0, dtype="float32", device="cpu")
        assert ("anyone may ask" in caplog.text) is warned


def test_full_collections_leave_the_libraries_and_the_model_alone(tasks, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(server, "run", lambda *_, **__: seen.append((gc.get_freeze_count(), len(gc.get_objects()))))
    backbone, before = make_backbone(tmp_path / "bert"), len(gc.get_objects())
    server.serve_folder(str(backbone), tasks, port=0, dtype="float32", device="cpu")
    [(frozen, looked_at)] = seen
    assert frozen > before / 2
    assert looked_at < frozen / 4, "what a full collection still looks at"
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
    ],
)
def test_what_only_this_machine_reaches(host, loopback):
    assert is_loopback(host) is loopback


def test_any_free_port_is_one_that_can_be_asked():
    with listen("127.0.0.1", 0) as sock:
        assert url(sock) == f"http://127.0.0.1:{sock.getsockname()[1]}"
        assert sock.getsockname()[1] > 0
        assert sock.proto == socket.IPPROTO_TCP, "answers would wait 40 ms for an acknowledgement"
        sock.listen()
        with pytest.raises(ConfigError, match="Address already in use"):
            listen("127.0.0.1", sock.getsockname()[1])


def test_requests_are_read_by_h11_whatever_else_is_installed(monkeypatch):
    """httptools, which uvicorn takes where it finds it, would read a head without end for ever."""
    made = []
    monkeypatch.setattr(server._Server, "run", lambda self, _sockets: made.append(self.config.http))
    with socket.socket() as sock:
        server.run(FastAPI(), sock, grace=1.0, ready=lambda: None)
    assert [issubclass(kind, H11Protocol) for kind in made] == [True]
