"""Tasks, load and metrics over a fake engine."""

import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from intarsia.serving.http.metrics import MOST_TASKS
from serving.fake_engine import FakeEngine, card, refusal, serving


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def client(engine):
    return serving(engine)


def samples(client):
    """{(name, labels): value} of /metrics, as Prometheus' own parser reads it."""
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def ask(client, task, text="abc"):
    return client.post("/v1/classify", json={"task": task, "text": text})


def test_tasks_say_what_the_page_shows(client, engine):
    engine.found["odd"] = card("odd", metrics={"accuracy": math.nan}, resident=False)
    said = client.get("/v1/tasks").json()
    assert said["backbone"] == {"name": "tiny", "fingerprint": "f" * 64}
    assert [task["name"] for task in said["tasks"]] == list(engine.found)
    assert said["tasks"][2] == {
        "name": "pair",
        "version": engine.found["pair"].version,
        "method": {"name": "adapter", "width": 4},
        "kind": "classification",
        "labels": ["no", "yes"],
        "columns": ["premise", "hypothesis"],
        "bytes": 1234,
        "trained_parameters": 308,
        "metrics": {"accuracy": 0.9},
        "resident": True,
    }
    assert said["tasks"][-1]["metrics"] == {"accuracy": None}
    assert said["tasks"][-1]["resident"] is False


def test_one_task_says_what_it_says_among_all(client):
    for one in client.get("/v1/tasks").json()["tasks"]:
        assert client.get(f"/v1/tasks/{one['name']}").json() == one
    refusal(client.get("/v1/tasks/nope"), 404, "GET /v1/tasks")
    wrong = client.post("/v1/tasks/mood")
    refusal(wrong, 405)
    assert set(wrong.headers["allow"].split(", ")) == {"GET", "PUT", "DELETE"}


@pytest.mark.parametrize("path", ["/health", "/metrics", "/v1/models", "/v1/tasks", "/v2/health/ready", "/v1/classify"])
def test_head_says_what_get_would(client, path):
    told, asked = client.get(path), client.head(path)
    assert asked.status_code == told.status_code == (405 if path == "/v1/classify" else 200)
    assert asked.headers["content-type"] == told.headers["content-type"]
    assert samples(client)[
        "intarsia_http_requests_total", (("method", "HEAD"), ("route", path), ("status", str(told.status_code)))
    ]


def test_load_says_how_it_goes(client):
    idle = client.get("/v1/load").json()
    assert idle["latency_ms"] == {"p50": None, "p95": None, "p99": None}
    for _ in range(5):
        ask(client, "mood")
    ask(client, "nope")
    said = client.get("/v1/load").json()
    assert (said["queue"], said["running"], said["resident"], said["paged"]) == (3, 2, 6, 1)
    assert said["requests_total"] == 6
    assert said["tokens_total"] == 42
    assert 0 < said["latency_ms"]["p50"] <= said["latency_ms"]["p95"] <= said["latency_ms"]["p99"]
    assert said["uptime_s"] >= idle["uptime_s"]


def test_metrics_count_answers_by_route_and_status(client):
    ask(client, "mood")
    ask(client, "nope")
    client.get("/v1/nothing/at/all")
    client.request("BREW", "/v1/tasks")
    found = samples(client)
    total = "intarsia_http_requests_total"
    assert found[total, (("method", "POST"), ("route", "/v1/classify"), ("status", "200"))] == 1
    assert found[total, (("method", "POST"), ("route", "/v1/classify"), ("status", "404"))] == 1
    assert found[total, (("method", "GET"), ("route", "none"), ("status", "404"))] == 1
    assert found[total, (("method", "other"), ("route", "/v1/tasks"), ("status", "405"))] == 1
    assert found["intarsia_http_request_seconds_count", (("route", "/v1/classify"),)] == 2


def test_metrics_hold_the_engines_numbers(client, engine):
    for value in (0.0004, 0.2, 100.0):
        engine.counts.seconds.add(value)
    ask(client, "mood")
    found = samples(client)
    assert found["intarsia_queue_requests", ()] == 3
    assert found["intarsia_tasks_paged", ()] == 1
    assert found["intarsia_tokens_total", (("direction", "in"),)] == 40
    assert found["intarsia_requests_total", (("kind", "classify"), ("outcome", "ok"))] == 1
    assert found["intarsia_request_seconds_bucket", (("le", "0.001"),)] == 1
    assert found["intarsia_request_seconds_bucket", (("le", "0.25"),)] == 2
    assert found["intarsia_request_seconds_bucket", (("le", "+Inf"),)] == 3
    assert found["intarsia_request_seconds_sum", ()] == pytest.approx(100.2004)


def test_a_thousand_tasks_do_not_make_a_thousand_series(client, engine):
    for number in range(MOST_TASKS + 10):
        engine.found[f"task-{number}"] = card(f"task-{number}")
        ask(client, f"task-{number}")
        ask(client, f"unknown-{number}")
    counted = [
        (dict(labels), value)
        for (name, labels), value in samples(client).items()
        if name.startswith("intarsia_task_req")
    ]
    found = {labels["task"]: value for labels, value in counted if value < 1e6}  # but for the times of creation
    assert found.pop("other") == 10
    assert set(found) == {f"task-{number}" for number in range(MOST_TASKS)}
    ask(client, "task-0")
    assert samples(client)["intarsia_task_requests_total", (("task", "task-0"),)] == 2
