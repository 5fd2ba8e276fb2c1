"""Bad requests over a fake engine: each has its status, one line and the one shape, and never reaches the engine."""

import asyncio
import gzip

import pytest

from intarsia.serving.http.bodies import JSON_BYTES
from serving.fake_engine import FakeEngine, refusal, serving

GOOD = {"task": "mood", "text": "abc"}
JSON = {"Content-Type": "application/json"}
WRITE = {"model": "writer", "prompt": "abc"}
CHAT = {"model": "writer", "messages": [{"role": "user", "content": "abc"}]}


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def client(engine):
    return serving(engine)


# name: (body, status, a part of the message)
BODIES = {
    "half an object": (b'{"task": ', 400, "not JSON"),
    "nothing": (b"", 422, "missing"),
    "not JSON": (b"task=mood", 400, "not JSON"),
    "invalid UTF-8": (b'{"task": "mood", "text": "caf\xe9"}', 400, "UTF-8"),
    "another encoding": ("é".encode("latin-1"), 400, "UTF-8"),
    "deep lists": (b"[" * 200_000, 400, "nested too deep"),
    "deep objects": (b'{"task":' * 100_000, 400, "nested too deep"),
    "deep lists in a field": (b'{"task": "mood", "text": ' + b"[" * 900 + b"]" * 900 + b"}", 422, ""),
    "a number of many digits": (b'{"task": "mood", "text": ' + b"9" * 5000 + b"}", 400, "cannot be read"),
    "half a surrogate pair": (b'{"task": "mood", "text": "\\ud800"}', 422, ""),
    "a list": (b"[]", 422, "the body"),
    "null": (b"null", 422, "the body"),
    "too large": (b'"' + b"a" * JSON_BYTES + b'"', 413, "larger than"),
}


@pytest.mark.parametrize("case", BODIES)
@pytest.mark.parametrize("route", ["/v1/classify", "/v1/completions", "/v2/models/mood/infer"])
def test_a_body_that_cannot_be_read_is_refused_in_one_line(client, engine, route, case):
    body, status, fragment = BODIES[case]
    refusal(client.post(route, content=body, headers=JSON), status, fragment)
    assert engine.asked == []


def test_a_body_without_a_length_is_measured_as_it_comes(client, engine):
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield b"a" * 2**16
            if taken > 64:
                return

    refusal(client.post("/v1/classify", content=endless(), headers=JSON), 413, "larger than")
    assert engine.asked == []


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "nonsense", ""]
)
def test_a_body_that_does_not_say_it_is_json_is_415(client, engine, kind):
    """Also what keeps pages of other origins out: a browser sends JSON there only after asking us."""
    headers = {"Content-Type": kind} if kind else {}
    refusal(
        client.post("/v1/classify", content=b'{"task": "mood", "text": "abc"}', headers=headers),
        415,
        "application/json",
    )
    assert engine.asked == []


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "application/vnd.api+json"])
def test_json_may_say_more_of_itself(client, kind):
    answer = client.post("/v1/classify", content=b'{"task": "mood", "text": "abc"}', headers={"Content-Type": kind})
    assert answer.status_code == 200


@pytest.mark.parametrize("route", ["/v1/classify", "/v1/completions", "/v2/models/mood/infer"])
@pytest.mark.parametrize("coding", ["gzip", "br", "identity, gzip"])
def test_a_compressed_body_is_415(client, engine, route, coding):
    body, headers = gzip.compress(b'{"task": "mood", "text": "abc"}'), {**JSON, "Content-Encoding": coding}
    answer = client.post(route, content=body, headers=headers)
    refusal(answer, 415, "compressed bodies are not taken")
    assert answer.headers["accept-encoding"] == "identity"
    assert engine.asked == []


def test_a_body_may_say_that_it_is_not_compressed(client):
    for coding in ("Identity", ""):
        assert client.post("/v1/classify", json=GOOD, headers={"Content-Encoding": coding}).status_code == 200


def test_half_a_surrogate_pair_is_no_text(client):
    for field in ("task", "text"):
        body = ('{"task": "mood", "text": "a", "' + field + '": "\\ud800"}').encode()
        refusal(client.post("/v1/classify", content=body, headers=JSON), 422, f"{field}: is not text")


# name: (route, body, a part of the message)
FIELDS = {
    "no task": ("/v1/classify", {"text": "abc"}, "task"),
    "no text": ("/v1/classify", {"task": "mood"}, "give `text` for one text"),
    "both": ("/v1/classify", {**GOOD, "texts": ["a"]}, "not both"),
    "no texts": ("/v1/classify", {"task": "mood", "texts": []}, "texts"),
    "no tasks": ("/v1/classify", {"task": [], "text": "abc"}, "task"),
    "a number for a text": ("/v1/classify", {"task": "mood", "text": 3}, "text"),
    "a misspelt field": ("/v1/classify", {**GOOD, "treshold": 1}, "treshold: is not known"),
    "a task's name without end": ("/v1/classify", {"task": "m" * 300, "text": "abc"}, "task"),
    "outputs without end": ("/v1/completions", {**WRITE, "prompt": ["a"] * 9, "n": 10**4299}, "n: "),
    "no output": ("/v1/completions", {**WRITE, "n": 0}, "n: "),
    "no prompt": ("/v1/completions", {**WRITE, "prompt": []}, "prompt"),
    "tokens for a prompt": ("/v1/completions", {**WRITE, "prompt": [1, 2]}, "prompt"),
    "no tokens": ("/v1/completions", {**WRITE, "max_tokens": 0}, "max_tokens"),
    "too hot": ("/v1/completions", {**WRITE, "temperature": 3}, "temperature"),
    "no probability": ("/v1/completions", {**WRITE, "top_p": 0}, "top_p"),
    "an empty stop": ("/v1/completions", {**WRITE, "stop": ["a", ""]}, "stop"),
    "many stops": ("/v1/completions", {**WRITE, "stop": list("abcde")}, "stop"),
    "the best of two": ("/v1/completions", {**WRITE, "best_of": 2}, "best_of"),
    "log probabilities": ("/v1/completions", {**WRITE, "logprobs": 1}, "logprobs"),
    "an echo": ("/v1/completions", {**WRITE, "echo": True}, "echo"),
    "a penalty": ("/v1/completions", {**WRITE, "presence_penalty": 0.5}, "presence_penalty"),
    "a bias": ("/v1/completions", {**WRITE, "logit_bias": {"5": 1}}, "logit_bias"),
    "a seed beyond 64 bits": ("/v1/completions", {**WRITE, "seed": 2**64}, "seed"),
    "no messages": ("/v1/chat/completions", {**CHAT, "messages": []}, "messages"),
    "a picture": (
        "/v1/chat/completions",
        {**CHAT, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages",
    ),
    "a tool": ("/v1/chat/completions", {**CHAT, "tools": [{"type": "function"}]}, "tools"),
    "a schema": ("/v1/chat/completions", {**CHAT, "response_format": {"type": "json_object"}}, "response_format"),
}


@pytest.mark.parametrize("case", FIELDS)
def test_a_field_that_means_nothing_here_is_422_and_named(client, engine, case):
    route, body, fragment = FIELDS[case]
    refusal(client.post(route, json=body), 422, fragment)
    assert engine.asked == []


def test_what_the_client_sent_is_not_repeated(client):
    assert "secret" not in client.post("/v1/classify", json={"task": "mood", "text": {"secret": "secret"}}).text
    assert "secret" not in client.post("/v1/classify", json={"task": ["secret"] * 20, "texts": ["secret"] * 40}).text


def test_an_unknown_address_and_a_wrong_method_have_the_one_shape(client):
    refusal(client.get("/v1/nothing"), 404, "GET /docs")
    refusal(client.get("/v1/classify"), 405, "GET is not for this")
    refusal(client.get("/v1/tasks/"), 404)


def test_the_descriptions_of_the_addresses_name_them_all(client):
    paths = client.get("/openapi.json").json()["paths"]
    page = client.get("/docs")
    assert {"/v1/classify", "/v1/chat/completions", "/v2/models/{task}/infer", "/v1/tasks/{name}", "/metrics"} <= set(
        paths
    )
    assert all(path in page.text for path in paths)
    assert "http://" not in page.text
    assert "https://" not in page.text


def test_a_body_that_dawdles_is_408():
    """Over the layer itself: no client of these tests can be slow on purpose."""
    from fastapi import FastAPI, Request
    from fastapi.testclient import TestClient

    from intarsia.serving.http.bodies import BodyLimit
    from intarsia.serving.http.errors import add_handlers

    app, never = FastAPI(), asyncio.Event()

    @app.post("/slow")
    async def slow(request: Request) -> int:
        return len(await request.body())

    class Dawdler:
        """The first part of a body, and then nothing."""

        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            parts = [{"type": "http.request", "body": b"{", "more_body": True}]

            async def dawdle():
                if not parts:
                    await never.wait()
                return parts.pop()

            await self.app(scope, dawdle if scope.get("query_string") else receive, send)

    add_handlers(app)
    app.add_middleware(BodyLimit, seconds=0.2)
    app.add_middleware(Dawdler)
    client = TestClient(app, raise_server_exceptions=False)
    assert client.post("/slow", content=b"abc").json() == 3
    refusal(client.post("/slow?dawdle"), 408, "too long to arrive")
