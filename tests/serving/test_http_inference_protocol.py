"""Open Inference Protocol v2 over a fake engine: tensors in and out, metadata, health."""

import json

import pytest

from intarsia.serving.requests import Busy
from serving.fake_engine import FakeEngine, failing, refusal, serving


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def client(engine):
    return serving(engine)


def infer(client, task, data, shape=None, **more):
    tensor = {"name": "text", "datatype": "BYTES", "shape": shape or [len(data)], "data": data}
    return client.post(f"/v2/models/{task}/infer", json={"inputs": [tensor], **more})


def test_rows_come_back_as_labels_and_scores(client, engine):
    answer = infer(client, "mood", ["abc", "b"], id="q1").json()
    assert answer == {
        "model_name": "mood",
        "model_version": engine.found["mood"].version,
        "id": "q1",
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["yes", "no"]},
            {"name": "scores", "datatype": "FP32", "shape": [2, 2], "data": [0.25, 0.75, 0.5, 0.5]},
        ],
    }


def test_columns_are_the_second_axis_nested_or_flat(client, engine):
    assert infer(client, "pair", [["a", "b"], ["c", "d"]], [2, 2]).status_code == 200
    assert infer(client, "pair", ["a", "b", "c", "d"], [2, 2]).status_code == 200
    assert infer(client, "mood", ["a"], [1, 1]).status_code == 200
    texts = [question.texts for question in engine.asked]
    assert texts == [("a", "b"), ("c", "d"), ("a", "b"), ("c", "d"), ("a",)]


# task: (data, outputs)
KINDS = {
    "topics": (
        ["ab"],
        [
            {"name": "label", "datatype": "BOOL", "shape": [1, 3], "data": [True, False, True]},
            {"name": "scores", "datatype": "FP32", "shape": [1, 3], "data": [0.9, 0.1, 0.8]},
        ],
    ),
    "stars": (["ab", "abcd"], [{"name": "prediction", "datatype": "FP32", "shape": [2], "data": [0.2, 0.4]}]),
    "names": (
        ["a bb"],
        [
            {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["PER", "O"]},
            {"name": "scores", "datatype": "FP32", "shape": [2], "data": [0.75, 0.75]},
        ],
    ),
}


@pytest.mark.parametrize("task", KINDS)
def test_each_kind_of_task_has_tensors_of_its_own(client, task):
    data, outputs = KINDS[task]
    assert infer(client, task, data).json()["outputs"] == outputs
    described = client.get(f"/v2/models/{task}").json()["outputs"]
    assert [(one["name"], one["datatype"]) for one in described] == [(one["name"], one["datatype"]) for one in outputs]
    assert [len(one["shape"]) for one in described] == [len(one["shape"]) for one in outputs]


def test_only_the_outputs_that_are_wanted(client):
    assert [one["name"] for one in infer(client, "mood", ["a"], outputs=[{"name": "scores"}]).json()["outputs"]] == [
        "scores"
    ]
    refusal(infer(client, "mood", ["a"], outputs=[{"name": "logits"}]), 422, "not outputs of this task")


# name: (task, changes of the input, a part of the message)
BAD = {
    "a shape that the data has not": ("mood", {"shape": [3]}, "the shape says 3 texts, the data has 1"),
    "no rows": ("mood", {"shape": [0], "data": []}, "at least 1"),
    "three axes": ("mood", {"shape": [1, 1, 1]}, "shape"),
    "numbers": ("mood", {"datatype": "FP32"}, "datatype"),
    "another name": ("mood", {"name": "input_ids"}, "name"),
    "a huge shape": ("mood", {"shape": [10**9, 10**9]}, "shape"),
    "a task that writes": ("writer", {}, "/v1/completions"),
    "many rows of words": ("names", {"shape": [2], "data": ["a", "b"]}, "/v1/tag"),
    "too few columns": ("pair", {}, "takes 2 texts"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_tensor_that_is_not_the_tasks_is_422(client, case):
    task, changes, fragment = BAD[case]
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"], **changes}
    refusal(client.post(f"/v2/models/{task}/infer", json={"inputs": [tensor]}), 422, fragment)


def test_more_rows_than_a_request_may_have_are_413(client, engine):
    refusal(infer(client, "mood", ["a"] * 513), 413, "513 rows are more than 512 answers")
    assert engine.asked == []


def test_the_binary_extension_is_refused_in_one_line(client):
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}]}
    headers = {"Inference-Header-Content-Length": "10"}
    for more in ({}, {"Content-Type": "application/octet-stream"}):
        answer = client.post("/v2/models/mood/infer", content=json.dumps(body) + "\x01", headers={**headers, **more})
        refusal(answer, 415, "binary_data=False")


def test_a_client_that_does_not_name_its_json_is_understood_but_a_page_of_another_origin_is_not(client):
    body = b'{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}]}'
    assert client.post("/v2/models/mood/infer", content=body).status_code == 200
    refusal(client.post("/v2/models/mood/infer", content=body, headers={"Origin": "https://elsewhere"}), 415, "JSON")


def test_one_row_that_fails_fails_the_request(client, engine):
    first = engine._events

    def second_fails(request, deliver):
        if request.texts == ("b",):
            raise Busy("the queue is full", retry_after=1)
        for event in first(request):
            deliver(event)

    engine.on["mood"] = second_fails
    refusal(infer(client, "mood", ["a", "b"]), 429, "queue")


def test_a_tasks_metadata_says_columns_and_labels(client, engine):
    said = client.get("/v2/models/pair").json()
    assert said["versions"] == [engine.found["pair"].version]
    assert said["inputs"] == [
        {"name": "text", "datatype": "BYTES", "shape": [-1, 2], "parameters": {"columns": ["premise", "hypothesis"]}}
    ]
    assert said["outputs"][1]["parameters"] == {"labels": ["no", "yes"]}
    refusal(client.get("/v2/models/nope"), 404, "GET /v1/tasks")
    refusal(client.get("/v2/models/nope/ready"), 404)
    refusal(infer(client, "nope", ["a"]), 404)
    assert client.get("/v2").json()["name"] == "intarsia"


def test_the_version_that_is_served_may_be_named_and_another_is_404(client, engine):
    now = engine.found["mood"].version
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["abc"]}
    for path, body in (("", None), ("/ready", None), ("/infer", {"inputs": [tensor]})):

        def ask(name, path=path, body=body):
            address = f"/v2/models/{name}{path}"
            return client.get(address) if body is None else client.post(address, json=body)

        plain, named = ask("mood"), ask(f"mood/versions/{now}")
        assert (named.status_code, named.json()) == (200, plain.json())
        asked = len(engine.asked)
        for other in ("1", now[:-1], engine.found["spam"].version):
            refusal(ask(f"mood/versions/{other}"), 404, now)
        assert len(engine.asked) == asked
        refusal(ask(f"nope/versions/{now}"), 404, "GET /v1/tasks")
    engine.state = "draining"
    assert client.get(f"/v2/models/mood/versions/{now}/ready").status_code == 503


# state: (live, ready)
STATES = {"starting": (200, 503), "ready": (200, 200), "draining": (200, 503), "dead": (503, 503)}


@pytest.mark.parametrize("state", STATES)
def test_health_says_what_the_engine_is(client, engine, state):
    engine.state = state
    live, ready = STATES[state]
    assert client.get("/v2/health/live").status_code == live
    assert client.get("/v2/health/ready").status_code == ready
    assert client.get("/v2/models/mood/ready").status_code == ready
    said = client.get("/health")
    assert (said.status_code, said.json()) == (ready, {"status": state})


def test_a_row_whose_deadline_is_over_is_504(client, engine):
    from intarsia.serving.requests import DeadlineExceeded

    engine.on["mood"] = failing(DeadlineExceeded("too late"))
    refusal(infer(client, "mood", ["a"]), 504, "too late")
