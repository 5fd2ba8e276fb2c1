"""`intarsia serve` as a process: what a client can do to it over a real connection, and how it ends."""

import contextlib
import json
import shutil
import signal
import threading
import time

import httpx2 as httpx
import pytest

from intarsia.backbone import Backbone
from intarsia.serving.http.bodies import JSON_BYTES
from serving.served import make, save, solo
from serving.served_process import LONG, Server, eventually, make_long_decoder, post

INFER, ADMIN = "infer-key-0123456789", "admin-key-0123456789"
KEY = f"X-API-Key: {INFER}"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return make_long_decoder(tmp_path_factory.mktemp("process") / "long-gpt2")


@pytest.fixture(scope="module")
def loaded(backbone):
    return Backbone.load(str(backbone), dtype="float32")


@pytest.fixture(scope="module")
def place(backbone, loaded, tmp_path_factory):
    """tasks/mood, keys."""
    place = tmp_path_factory.mktemp("served")
    save(loaded, place / "tasks", "mood", 0)
    (place / "keys").write_text(f"infer:{INFER}\nadmin:{ADMIN}\n")
    (place / "keys").chmod(0o600)
    return place


@pytest.fixture(scope="module")
def server(backbone, place):
    server = Server(backbone, place / "tasks", place / "log", "--keys", str(place / "keys"))
    yield server
    assert server.stop() == 0, server.log.read_text()
    assert "Traceback" not in server.log.read_text()


@pytest.fixture
def client(server):
    with server.client(INFER) as client:
        yield client


def works(client):
    answer = client.post("/v1/classify", json={"task": "mood", "text": "the film was fine"})
    assert answer.status_code == 200, answer.text
    return answer.json()["results"][0]["answers"][0]


def test_it_says_where_it_is_and_answers_as_the_task_alone(server, client, loaded):
    assert server.line.startswith("http://127.0.0.1:")
    assert " serves 1 task on " in server.line
    (expected,) = solo(loaded, make(loaded, "mood", 0), ["the film was fine"])
    assert works(client)["scores"] == pytest.approx(expected.scores, abs=1e-5)


@pytest.mark.parametrize("stream", [True, False])
def test_who_hangs_up_in_the_middle_of_a_text_is_not_written_for(server, client, stream, backbone):
    before = client.get("/v1/load").json()["tokens_total"]
    body = {"model": str(backbone), "prompt": "the film", "max_tokens": LONG, "stream": stream}
    with server.connect() as sock:
        head, content = post("/v1/completions", body, KEY)
        sock.sendall(head.replace("\n", "\r\n").encode() + content)
        if stream:
            assert b"data: " in sock.recv(4096) + sock.recv(4096)
        else:
            eventually(lambda: client.get("/v1/load").json()["running"])
    load = eventually(
        lambda: (load := client.get("/v1/load").json()) and not load["running"] and not load["queue"] and load
    )
    assert load["tokens_total"] - before < LONG
    works(client)


# name: (head, body, the status)
WIRE = {
    "no HTTP": ("\x00\x01\x02\n\n", b"", 400),
    "a length that is no number": (f"POST /v1/classify HTTP/1.1\nHost: a\n{KEY}\nContent-Length: many\n\n", b"", 400),
    "a length beyond the limit": (
        f"POST /v1/classify HTTP/1.1\nHost: a\n{KEY}\nContent-Type: application/json\nContent-Length: {JSON_BYTES + 1}\n\n",
        b"a" * (JSON_BYTES + 1),
        413,
    ),
    "chunks beyond the limit": (
        f"POST /v1/classify HTTP/1.1\nHost: a\n{KEY}\nContent-Type: application/json\nTransfer-Encoding: chunked\n\n",
        b"%x\r\n%s\r\n" % (2**16, b"a" * 2**16) * 40 + b"0\r\n\r\n",
        413,
    ),
    "deep JSON": (
        f"POST /v1/classify HTTP/1.1\nHost: a\n{KEY}\nContent-Type: application/json\nContent-Length: 500000\n\n",
        b"[" * 500_000,
        400,
    ),
    "a stranger with a large body": (
        "POST /v1/classify HTTP/1.1\nHost: a\nContent-Type: application/json\nContent-Length: 100000\n\n",
        b"a" * 100_000,
        401,
    ),
}


@pytest.mark.parametrize("case", WIRE)
def test_bytes_that_are_no_request_are_refused_and_the_next_is_answered(server, client, case):
    head, body, status = WIRE[case]
    head = head.replace("Host: a\n", "Host: a\nConnection: close\n", 1)
    assert server.send(head, body).startswith(f"HTTP/1.1 {status} ".encode())
    works(client)


def test_a_head_without_end_is_cut_off(server, client):
    said = server.send(f"GET /v1/tasks HTTP/1.1\nHost: a\n{KEY}\nX: " + "a" * 2_000_000)
    assert said == b"" or said.startswith(b"HTTP/1.1 400 ")
    works(client)


def test_a_body_that_breaks_off_is_forgotten(server, client):
    for _ in range(5):
        with server.connect() as sock:
            head, content = post("/v1/classify", {"task": "mood", "text": "the film"}, KEY)
            sock.sendall(head.replace("\n", "\r\n").encode() + content[:-5])
    works(client)


def test_a_folder_that_appears_is_a_task_and_one_that_goes_is_none(server, client, loaded, place):
    save(loaded, place / "copy", "spam", 1, seed=3)
    shutil.copytree(place / "copy" / "spam", place / "tasks" / "spam")
    ask = {"task": "spam", "text": "the film"}
    eventually(lambda: client.post("/v1/classify", json=ask).status_code == 200)
    shutil.rmtree(place / "tasks" / "spam")
    eventually(lambda: client.post("/v1/classify", json=ask).status_code == 404)


def test_a_broken_folder_is_one_line_of_the_log(server, client, place):
    shutil.copytree(place / "tasks" / "mood", place / "tasks" / "broken")
    (place / "tasks" / "broken" / "task.safetensors").write_bytes(b"\xff" * 200)
    eventually(lambda: "broken" in server.log.read_text())
    works(client)
    time.sleep(2.5)  # two more looks at the folder
    assert len([line for line in server.log.read_text().splitlines() if "broken" in line]) == 1
    shutil.rmtree(place / "tasks" / "broken")


def test_no_text_and_no_key_is_in_the_log(server, client):
    client.post("/v1/classify", json={"task": "mood", "text": "awful secret"})
    client.get("/v1/tasks", params={"text": "awful secret"})
    httpx.get(server.url + "/v1/tasks", headers={"X-API-Key": "not-the-key-012345"})
    log = server.log.read_text()
    assert "secret" not in log
    assert "not-the-key" not in log
    assert INFER not in log


def test_sigterm_under_load_finishes_what_has_begun(backbone, place, tmp_path):
    server = Server(backbone, place / "tasks", tmp_path / "log")
    body = {"model": str(backbone), "prompt": "the film", "max_tokens": LONG}
    streamed, whole, rows, begun = [], [], [], threading.Event()

    def stream():
        with (
            server.client() as client,
            client.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer,
        ):
            for line in answer.iter_lines():
                streamed.append(line)
                begun.set()

    def write():
        with server.client() as client:
            whole.append(client.post("/v1/completions", json=body))

    def classify():
        with server.client() as client, contextlib.suppress(httpx.TransportError):
            while True:  # until the server takes no more
                rows.append(client.post("/v1/classify", json={"task": "mood", "text": "fine"}).status_code)

    threads = [threading.Thread(target=work) for work in (stream, write, classify, classify)]
    for thread in threads:
        thread.start()
    assert begun.wait(30)
    eventually(lambda: len(rows) > 3)
    status = server.stop()
    for thread in threads:
        thread.join(30)
    log = server.log.read_text()
    assert status == 0, log
    assert "Traceback" not in log
    events = [json.loads(line.removeprefix("data: ")) for line in streamed if line.startswith("data: {")]
    assert streamed[-2:] == ["data: [DONE]", ""]
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert whole[0].json()["usage"]["completion_tokens"] == LONG
    assert set(rows) <= {200, 503}


@contextlib.contextmanager
def terminals(how):
    """What is started meanwhile has this for SIGHUP, whatever these tests were started with: under nohup they ignore it."""
    before = signal.signal(signal.SIGHUP, how)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_closed_terminal_ends_it_as_sigterm_does(backbone, place, tmp_path):
    with terminals(signal.SIG_DFL):
        server = Server(backbone, place / "tasks", tmp_path / "log")
    body = {"model": str(backbone), "prompt": "the film", "max_tokens": LONG, "stream": True}
    with server.client() as client, client.stream("POST", "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        assert next(lines)
        for _ in range(2):  # a shell says it, and then the kernel
            server.process.send_signal(signal.SIGHUP)
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert server.process.wait(60) == 0, server.log.read_text()
    server.process.stdout.close()


def test_under_nohup_a_closed_terminal_ends_nothing(backbone, place, tmp_path):
    with terminals(signal.SIG_IGN):
        server = Server(backbone, place / "tasks", tmp_path / "log")
    server.process.send_signal(signal.SIGHUP)
    with server.client() as client:
        works(client)
    assert server.stop() == 0, server.log.read_text()


def test_at_the_end_of_its_grace_the_server_stops_whatever_runs(backbone, place, tmp_path):
    server = Server(backbone, place / "tasks", tmp_path / "log", "--grace", "0.1")
    body = {"model": str(backbone), "prompt": "the film", "max_tokens": LONG, "stream": True}
    with server.connect() as sock:
        head, content = post("/v1/completions", body)
        sock.sendall(head.replace("\n", "\r\n").encode() + content)
        sock.recv(4096)
        assert server.stop(20) == 0, server.log.read_text()
    assert "Traceback" not in server.log.read_text()
