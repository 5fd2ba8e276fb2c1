"""Completions, chat and models over a fake engine, in OpenAI's shapes."""

import json

import pytest

from intarsia.serving.requests import BadRequest, DeadlineExceeded, Failed, Finished, Piece, Unavailable
from serving.fake_engine import FakeEngine, card, failing, refusal, serving

PROMPT = {"model": "writer", "prompt": "abc"}
CHAT = {"model": "writer", "messages": [{"role": "user", "content": "abc"}]}


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def client(engine):
    return serving(engine)


def events(response):
    """The data of each server-sent event; the last must be [DONE]."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    found = [part.removeprefix("data: ") for part in response.text.split("\n\n") if part]
    assert found[-1] == "[DONE]"
    return [json.loads(part) for part in found[:-1]]


def test_a_completion_has_openais_shape(client):
    answer = client.post("/v1/completions", json=PROMPT).json()
    assert answer.pop("id").startswith("cmpl-")
    assert answer.pop("created") > 1.7e9
    assert answer == {
        "object": "text_completion",
        "model": "writer",
        "choices": [{"index": 0, "text": "one two thrée", "finish_reason": "stop", "logprobs": None}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6},
    }


def test_a_chat_has_openais_shape(client, engine):
    messages = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    answer = client.post("/v1/chat/completions", json={"model": "writer", "messages": messages}).json()
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    message = {"role": "assistant", "content": "one two thrée"}
    assert answer["choices"] == [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}]
    assert engine.asked[0].chat == ({"role": "system", "content": "Be short."}, {"role": "user", "content": "ab"})


def test_a_streamed_completion_is_the_same_text_in_pieces(client):
    found = events(client.post("/v1/completions", json={**PROMPT, "stream": True}))
    assert "".join(event["choices"][0]["text"] for event in found) == "one two thrée"
    assert [event["choices"][0]["finish_reason"] for event in found] == [None, None, None, "stop"]
    assert len({event["id"] for event in found}) == 1
    assert {event["object"] for event in found} == {"text_completion"}


def test_a_streamed_chat_begins_with_the_role_and_ends_with_the_reason(client):
    found = [
        event["choices"][0] for event in events(client.post("/v1/chat/completions", json={**CHAT, "stream": True}))
    ]
    assert found[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(choice["delta"].get("content", "") for choice in found) == "one two thrée"
    assert found[-1] == {"index": 0, "finish_reason": "stop", "logprobs": None, "delta": {}}


def test_a_stream_counts_its_tokens_where_asked(client):
    body = {**PROMPT, "stream": True, "stream_options": {"include_usage": True}}
    *rest, last = events(client.post("/v1/completions", json=body))
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    assert all(event["usage"] is None for event in rest)


def test_sampling_reaches_the_engine(client, engine):
    asked = {"max_tokens": 2, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "seed": 11, "stop": ["x", "y"]}
    assert client.post("/v1/completions", json={**PROMPT, **asked}).status_code == 200
    sampling = engine.asked[0].sampling
    assert {name: getattr(sampling, name) for name in asked} == {**asked, "stop": ("x", "y")}
    assert (
        client.post(
            "/v1/chat/completions", json={**CHAT, "max_tokens": 9, "max_completion_tokens": 4, "stop": "x"}
        ).status_code
        == 200
    )
    assert engine.asked[1].sampling.max_tokens == 4
    assert engine.asked[1].sampling.stop == ("x",)


def echo(request, deliver):
    """Writes the prompt and its seed, and counts a token for each letter of the prompt."""
    text = f"{request.prompt}{request.sampling.seed}"
    deliver(Piece(text, 2))
    deliver(Finished("length", len(request.prompt), 2, text))


def test_choices_are_those_of_the_first_prompt_then_of_the_next_each_with_a_seed_of_its_own(client, engine):
    engine.on["writer"] = echo
    body = {**PROMPT, "prompt": ["ab", "c", "def"], "n": 2, "seed": 2**63 - 1, "temperature": 1}
    answer = client.post("/v1/completions", json=body).json()
    first = 2**63 - 1
    wanted = [f"{prompt}{seed}" for prompt in ("ab", "c", "def") for seed in (first, 0)]
    assert [choice["text"] for choice in answer["choices"]] == wanted
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert answer["usage"] == {"prompt_tokens": 6, "completion_tokens": 12, "total_tokens": 18}
    found = events(
        client.post("/v1/completions", json={**body, "stream": True, "stream_options": {"include_usage": True}})
    )
    texts = dict.fromkeys(range(6), "")
    for event in found[:-1]:
        texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert list(texts.values()) == wanted
    assert found[-1]["usage"] == answer["usage"]
    ends = [event["choices"][0]["index"] for event in found[:-1] if event["choices"][0]["finish_reason"]]
    assert sorted(ends) == list(range(6))


def test_a_chat_may_have_several_turns_to_choose_from(client, engine):
    engine.on["writer"] = echo
    body = {**CHAT, "n": 3, "seed": 5, "temperature": 1}
    answer = client.post("/v1/chat/completions", json=body).json()
    assert [(one["index"], one["message"]["content"]) for one in answer["choices"]] == [(0, "5"), (1, "6"), (2, "7")]
    found = [
        event["choices"][0] for event in events(client.post("/v1/chat/completions", json={**body, "stream": True}))
    ]
    for index in range(3):
        first, *rest = [choice for choice in found if choice["index"] == index]
        assert first["delta"]["role"] == "assistant"
        assert "".join(choice["delta"].get("content", "") for choice in rest) == str(5 + index)
        assert rest[-1]["finish_reason"] == "length"


def test_one_that_fails_ends_the_others(client, engine):
    def only_a(request, deliver):
        if request.prompt != "a":
            deliver(Failed(BadRequest("too long")))

    engine.on["writer"] = only_a
    for stream in (False, True):
        refusal(client.post("/v1/completions", json={**PROMPT, "prompt": ["a", "b"], "stream": stream}), 422, "long")
    assert [request.prompt for request in engine.cancelled] == ["a", "b"] * 2


@pytest.mark.parametrize("more", [{"n": 129}, {"prompt": ["a"] * 129}, {"prompt": ["a"] * 13, "n": 10}])
def test_too_many_outputs_are_413(client, engine, more):
    refusal(client.post("/v1/completions", json={**PROMPT, **more}), 413, "outputs are more than 128")
    assert not engine.asked


def test_nothing_said_is_greedy_and_drawing_without_a_seed_differs_each_time(client, engine):
    nulls = dict.fromkeys(["n", "temperature", "top_p", "seed", "stop", "max_tokens", "logprobs", "user"])
    assert client.post("/v1/completions", json={**PROMPT, **nulls}).status_code == 200
    assert engine.asked[0].sampling.temperature == 0
    for _ in range(2):
        client.post("/v1/completions", json={**PROMPT, "temperature": 1})
    assert engine.asked[1].sampling.seed != engine.asked[2].sampling.seed


def test_harmless_values_of_fields_that_we_do_not_do_are_taken(client):
    harmless = {
        "n": 1,
        "best_of": 1,
        "echo": False,
        "presence_penalty": 0.0,
        "frequency_penalty": 0,
        "logit_bias": {},
        "user": "u",
    }
    assert (
        client.post("/v1/completions", json={**PROMPT, **harmless, "logprobs": None, "suffix": None}).status_code == 200
    )
    more = {"tools": [], "logprobs": False, "response_format": {"type": "text"}, "stream_options": None}
    assert client.post("/v1/chat/completions", json={**CHAT, **more}).status_code == 200


def test_null_is_as_if_a_field_were_left_out(client):
    """OpenAI's clients send it for what their caller gave as None."""
    for path, body in (("/v1/completions", PROMPT), ("/v1/chat/completions", CHAT)):
        fields = client.get("/openapi.json").json()["components"]["schemas"]
        names = fields["ChatRequest" if "chat" in path else "CompletionRequest"]["properties"].keys() - body.keys()
        assert {"stream", "presence_penalty", "n"} < names
        assert client.post(path, json={**body, **dict.fromkeys(names)}).status_code == 200
    refusal(client.post("/v1/completions", json={**PROMPT, "prompt": None}), 422, "prompt: is missing")


def test_what_is_wrong_with_a_list_is_said_of_the_list(client):
    for field, value, fragment in (
        ("prompt", [], "at least 1 item"),
        ("stop", ["a"] * 5, "at most 4 items"),
        ("stop", 5, "valid string"),
    ):
        refusal(client.post("/v1/completions", json={**PROMPT, field: value}), 422, f"{field}: ")
        refusal(client.post("/v1/completions", json={**PROMPT, field: value}), 422, fragment)


def test_the_backbones_own_name_is_the_plain_backbone_unless_a_task_has_it(client, engine):
    assert client.post("/v1/completions", json={**PROMPT, "model": "tiny"}).status_code == 200
    assert engine.asked[0].task is None
    engine.found["tiny"] = card("tiny", "generation", ())
    assert client.post("/v1/completions", json={**PROMPT, "model": "tiny"}).status_code == 200
    assert engine.asked[1].task == "tiny"


def test_models_are_what_can_write(client, engine):
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["writer", "tiny"]
    assert client.get("/v1/models/writer").json() == listed["data"][0]
    refusal(client.get("/v1/models/mood"), 404, "GET /v1/models")
    engine.backbone.kind = "encoder"
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["writer"]


def test_a_name_with_slashes_is_a_models_name(client, engine):
    engine.backbone.name = "someone/tiny-2"
    assert client.get("/v1/models/someone/tiny-2").json()["id"] == "someone/tiny-2"
    assert client.post("/v1/completions", json={**PROMPT, "model": "someone/tiny-2"}).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_before_the_first_piece_has_a_status_of_its_own(client, engine, stream):
    refusal(client.post("/v1/completions", json={**PROMPT, "model": "nope", "stream": stream}), 404)
    for error, status in (
        (DeadlineExceeded("too late"), 504),
        (BadRequest("too long"), 422),
        (Unavailable("it died"), 503),
    ):
        engine.on["writer"] = failing(error)
        refusal(client.post("/v1/completions", json={**PROMPT, "stream": stream}), status, str(error))


def test_a_failure_in_the_middle_of_a_stream_is_its_last_event(client, engine):
    def breaks(request, deliver):
        deliver(Piece("one ", 1))
        deliver(Failed(Unavailable("the engine died")))

    engine.on["writer"] = breaks
    *pieces, last = events(client.post("/v1/completions", json={**PROMPT, "stream": True}))
    assert [piece["choices"][0]["text"] for piece in pieces] == ["one "]
    assert last == {"error": {"message": "the engine died", "type": "unavailable_error", "code": 503}}
    assert len(engine.cancelled) == 1
