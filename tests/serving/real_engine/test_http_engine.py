"""HTTP over the real engine and a real folder, in this process: answers, uploads, and what may go wrong below."""

import json
import threading

import pytest

from intarsia.serving.library import Library
from intarsia.serving.limits import Limits
from serving.asking import TEXTS, classify, put
from serving.fake_engine import refusal, serving
from serving.served import engine_over, make, save, solo


def test_scores_are_those_of_each_task_alone(client, backbone):
    results = client.post("/v1/classify", json={"task": ["mood", "spam"], "texts": TEXTS}).json()["results"]
    for name, number, seed in (("mood", 0, 0), ("spam", 1, 3)):
        alone = solo(backbone, make(backbone, name, number, seed), TEXTS)
        for text, result, expected in zip(TEXTS, results, alone, strict=True):
            (answer,) = [answer for answer in result["answers"] if answer["task"] == name]
            assert answer["label"] == expected.label, (name, text)
            assert answer["scores"] == pytest.approx(expected.scores, abs=1e-5)


def test_a_stream_and_a_whole_answer_are_the_same_text(client):
    body = {"model": "writer", "prompt": "the film was", "max_tokens": 6}
    whole = client.post("/v1/completions", json=body).json()
    streamed = client.post("/v1/completions", json={**body, "stream": True}).text.split("\n\n")
    events = [json.loads(part.removeprefix("data: ")) for part in streamed if part and "[DONE]" not in part]
    assert "".join(event["choices"][0]["text"] for event in events) == whole["choices"][0]["text"] != ""
    assert events[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert whole["usage"]["prompt_tokens"] == 3


def test_no_part_of_a_stop_text_is_in_a_stream_also_where_it_spans_pieces(client):
    body = {"model": "writer", "prompt": "the film was", "max_tokens": 6}

    def streamed(**more):
        parts = client.post("/v1/completions", json={**body, "stream": True, **more}).text.split("\n\n")
        found = [json.loads(part[6:])["choices"][0] for part in parts if part and "[DONE]" not in part]
        return [one["text"] for one in found], found[-1]["finish_reason"]

    pieces, _ = streamed()
    text, first = "".join(pieces), len(pieces[0])
    assert len(pieces) > 2 < first
    for begin in range(1, first):
        stop = text[begin : first + 2]
        said, reason = streamed(stop=stop)
        assert ("".join(said), reason) == (text[: text.index(stop)], "stop")
    assert "".join(streamed(stop=text[-2:] + "and what never comes")[0]) == text


@pytest.mark.parametrize("path", ["/v1/classify", "/v2/models/mood/infer"])
def test_all_rows_of_a_request_are_of_one_version_and_it_is_named(
    client, backbone, engine, tmp_path, monkeypatch, path
):
    """Also where the task is replaced when the first row has been asked."""
    save(backbone, tmp_path / "new", "mood", 1, seed=5)
    before, submit, changing = client.get("/v2/models/mood").json()["versions"], engine.submit, []

    def submit_and_change(request, deliver):
        ticket = submit(request, deliver)
        if not changing:
            changing.append(threading.Thread(target=engine.put, args=("mood", tmp_path / "new" / "mood")))
            changing[0].start()
            changing[0].join(0.5)
        return ticket

    monkeypatch.setattr(engine, "submit", submit_and_change)
    tensor = {"name": "text", "datatype": "BYTES", "shape": [len(TEXTS)], "data": TEXTS}
    body = {"task": "mood", "texts": TEXTS} if path == "/v1/classify" else {"inputs": [tensor]}
    said = client.post(path, json=body).json()
    changing[0].join()
    assert client.get("/v2/models/mood").json()["versions"] != before
    expected = [list(one.scores.values()) for one in solo(backbone, make(backbone, "mood", 0), TEXTS)]
    if path == "/v1/classify":
        scores = [list(result["answers"][0]["scores"].values()) for result in said["results"]]
    else:
        assert [said["model_version"]] == before
        data = said["outputs"][1]["data"]
        scores = [data[at : at + 2] for at in range(0, len(data), 2)]
    for found, row in zip(scores, expected, strict=True):
        assert found == pytest.approx(row, abs=1e-5)


def test_an_engine_whose_thread_is_killed_is_503_and_says_so(client, engine, monkeypatch, caplog):
    def killed():
        raise MemoryError

    monkeypatch.setattr(engine, "_batch", killed)
    refusal(classify(client, "mood", TEXTS[0]), 503, "dead")
    refusal(classify(client, "mood", TEXTS[0]), 503, "dead")
    refusal(client.post("/v1/completions", json={"model": "writer", "prompt": "a", "stream": True}), 503, "dead")
    refusal(put(client, "mood", {"task.json": b"", "task.safetensors": b""}), 422)
    assert client.get("/v2/health/live").status_code == 503
    assert (client.get("/health").status_code, client.get("/health").json()) == (503, {"status": "dead"})
    assert client.get("/metrics").status_code == 200
    assert "died" in caplog.text


def test_a_row_on_which_the_model_fails_is_a_500_of_its_own(client, engine, monkeypatch):
    whole = engine._answering._scores

    def fails(jobs):
        if any("awful" in job.texts[0] for job in jobs):
            raise RuntimeError("no")
        return whole(jobs)

    monkeypatch.setattr(engine._answering, "_scores", fails)
    results = client.post("/v1/classify", json={"task": "mood", "texts": ["awful", "fine"]}).json()["results"]
    assert results[0]["answers"][0]["error"]["code"] == 500
    assert results[1]["answers"][0]["label"]


def test_a_deadline_that_is_over_is_504(client, engine, monkeypatch):
    monkeypatch.setattr(engine, "_batch", lambda: [])
    refusal(classify(client, "mood", TEXTS[0], **{"X-Deadline-Ms": "30"}), 504, "time was over")


def test_a_full_queue_is_429_and_what_was_taken_is_answered(backbone, folder):
    with engine_over(backbone, limits=Limits(queue=3)) as engine:
        Library(folder, engine).look()
        client, gate, batch = serving(engine), threading.Event(), engine._batch
        engine._batch = lambda: batch() if gate.is_set() else []
        statuses, waits, threads = [], [], []

        def ask():
            answer = classify(client, "mood", TEXTS[0])
            statuses.append(answer.status_code)
            waits.append(answer.headers.get("retry-after"))
            gate.set()  # the first to be refused lets the others through

        for _ in range(6):
            threads.append(threading.Thread(target=ask))
            threads[-1].start()
        for thread in threads:
            thread.join(30)
        assert set(statuses) <= {200, 429}
        assert statuses.count(200) >= 3
        assert 429 in statuses
        assert [wait for status, wait in zip(statuses, waits, strict=True) if status == 429 and wait != "1"] == []


def test_a_text_that_is_too_large_is_413_and_the_wrong_number_of_texts_422(client):
    refusal(classify(client, "mood", "a" * (2**20 + 1)), 413, "bytes")
    refusal(classify(client, "mood", ["a", "b"]), 422, "mood")
    refusal(classify(client, "mood", "  "), 422, "empty")
    refusal(classify(client, "writer", "a"), 422, "POST /v1/completions")
    refusal(client.post("/v1/completions", json={"model": "mood", "prompt": "a"}), 422, "POST /v1/classify")
    refusal(
        client.post("/v1/completions", json={"model": "writer", "prompt": "a", "max_tokens": 5000}), 422, "max_tokens"
    )
    messages = [{"role": "user", "content": "a"}]
    model = client.get("/v1/models").json()["data"][-1]["id"]
    refusal(client.post("/v1/chat/completions", json={"model": model, "messages": messages}), 422, "chat template")
