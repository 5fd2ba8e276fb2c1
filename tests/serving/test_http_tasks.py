"""`/v1/classify` and `/v1/tag` over a fake engine: shapes of questions and answers."""

import math
from types import SimpleNamespace

import pytest

from intarsia.serving.requests import Answer, Busy, Classify, DeadlineExceeded, EngineFailure, Tag, TooLarge
from serving.fake_engine import FakeEngine, failing, refusal, serving


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def client(engine):
    return serving(engine)


def classify(client, **body):
    return client.post("/v1/classify", json=body)


def test_one_task_answers_one_text(client):
    answer = classify(client, task="mood", text="abc")
    assert answer.status_code == 200
    assert answer.json() == {
        "results": [
            {
                "text": "abc",
                "answers": [{"task": "mood", "label": "yes", "prediction": 1, "scores": {"no": 0.25, "yes": 0.75}}],
            }
        ]
    }


def test_every_task_answers_every_text_in_the_order_given(client):
    results = classify(client, task=["spam", "mood"], texts=["abc", "b", "cd"]).json()["results"]
    assert [result["text"] for result in results] == ["abc", "b", "cd"]
    assert [[answer["task"] for answer in result["answers"]] for result in results] == [["spam", "mood"]] * 3
    assert [result["answers"][0]["scores"]["no"] for result in results] == [1 / 4, 1 / 2, 1 / 3]


def test_a_list_is_the_columns_of_one_text(client, engine):
    assert classify(client, task="pair", text=["a", "b"]).status_code == 200
    assert classify(client, task="pair", texts=[["a", "b"], ["c", "d"]]).status_code == 200
    assert [question.texts for question in engine.asked] == [("a", "b"), ("a", "b"), ("c", "d")]


def test_multi_label_and_regression_keep_their_shapes(client):
    topics, stars = classify(client, task=["topics", "stars"], text="abc").json()["results"][0]["answers"]
    assert topics["label"] == ["art", "sea"]
    assert topics["prediction"] == [0, 2]
    assert stars == {"task": "stars", "label": None, "prediction": 0.3, "scores": None}


def test_tag_labels_every_word_of_a_list_or_of_a_string(client, engine):
    for text in ("a bb c", ["a", "bb", "c"]):
        answer = client.post("/v1/tag", json={"task": "names", "text": text}).json()["results"][0]["answers"][0]
        assert answer["label"] == ["PER", "O", "PER"]
        assert answer["scores"] == [0.75] * 3
    assert engine.asked == [Tag(task="names", words=("a", "bb", "c"))] * 2


def test_an_error_of_one_task_stands_beside_the_answers_of_the_others(client):
    answers = classify(client, task=["mood", "nope", "pair"], text="abc").json()["results"][0]["answers"]
    assert answers[0]["label"] == "yes"
    assert [answer["error"]["code"] for answer in answers[1:]] == [404, 422]
    assert all("label" not in answer for answer in answers[1:])


@pytest.mark.parametrize(
    ("error", "status"),
    [(TooLarge("too long"), 413), (DeadlineExceeded("too late"), 504), (EngineFailure("it failed"), 500)],
)
def test_where_nothing_is_answered_the_request_has_the_errors_status(client, engine, error, status):
    engine.on["mood"] = failing(error)
    refusal(classify(client, task=["mood", "mood"], text="abc"), status, str(error))
    refusal(classify(client, task="nope", text="abc"), 404)


def test_a_full_queue_is_429_and_says_when_to_come_again(client, engine):
    def full(request, deliver):
        raise Busy("the queue is full", retry_after=2.3)

    engine.on["mood"] = full
    answer = classify(client, task="mood", text="abc")
    refusal(answer, 429, "queue")
    assert answer.headers["retry-after"] == "3"


@pytest.mark.parametrize("state", ["starting", "draining", "dead"])
def test_an_engine_that_is_not_ready_is_503(client, engine, state):
    engine.state = state
    refusal(classify(client, task="mood", text="abc"), 503, state)


def test_the_deadline_header_reaches_the_engine(client, engine):
    import time

    before = time.monotonic()
    assert (
        client.post("/v1/classify", json={"task": "mood", "text": "a"}, headers={"X-Deadline-Ms": "1500"}).status_code
        == 200
    )
    assert before + 1.5 <= engine.asked[0].deadline <= time.monotonic() + 1.5
    assert classify(client, task="mood", text="a").status_code == 200
    assert engine.asked[1].deadline is None
    for bad in ("0", "-5", "soon", "1e3", str(10**9)):
        answer = client.post("/v1/classify", json={"task": "mood", "text": "a"}, headers={"X-Deadline-Ms": bad})
        refusal(answer, 422, "X-Deadline-Ms")


def test_scores_that_json_cannot_say_are_null(client, engine):
    broken = SimpleNamespace(label="yes", prediction=math.inf, scores={"no": math.nan, "yes": -math.inf})
    engine.on["mood"] = lambda request, deliver: deliver(Answer(broken))
    answer = classify(client, task="mood", text="abc").json()["results"][0]["answers"][0]
    assert answer == {"task": "mood", "label": "yes", "prediction": None, "scores": {"no": None, "yes": None}}


@pytest.mark.parametrize(("tasks", "texts"), [(30, 30), (1, 513), (513, 1)])
def test_a_request_for_too_many_answers_is_413(client, engine, tasks, texts):
    refusal(classify(client, task=["mood"] * tasks, texts=["a"] * texts), 413, "fewer")
    assert engine.asked == []


def test_all_questions_of_a_request_are_queued_before_any_is_answered(client, engine):
    waiting = []

    def hold(request, deliver):
        waiting.append((request, deliver))
        if len(waiting) == 4:
            for held, tell in waiting:
                tell(Answer(SimpleNamespace(label=held.texts[0], prediction=0, scores=None)))

    engine.on["mood"] = engine.on["spam"] = hold
    results = classify(client, task=["mood", "spam"], texts=["a", "b"]).json()["results"]
    assert [[answer["label"] for answer in result["answers"]] for result in results] == [["a", "a"], ["b", "b"]]


def test_texts_are_logged_only_where_that_was_asked_for(engine, caplog):
    caplog.set_level("DEBUG")
    body = {"task": "mood", "text": "a secret"}
    assert serving(engine).post("/v1/classify", json=body).status_code == 200
    assert "secret" not in caplog.text
    assert serving(engine, log_texts=True).post("/v1/classify", json=body).status_code == 200
    assert "a secret" in caplog.text


def test_a_bug_is_a_500_whose_log_holds_its_place_and_not_the_text(client, engine, caplog):
    def bug(request, deliver):
        raise KeyError(request.texts[0])

    engine.on["mood"] = bug
    refusal(classify(client, task="mood", text="a secret"), 500, "its log says where")
    assert "KeyError" in caplog.text
    assert "in bug" in caplog.text
    assert "secret" not in caplog.text
    assert isinstance(engine.asked[0], Classify)
