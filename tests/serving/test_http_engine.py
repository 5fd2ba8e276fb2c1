"""HTTP over the real engine and a real folder, in this process: answers, uploads, and what may go wrong below."""

import errno
import json
import os
import shutil
import struct
import threading

import pytest

from intarsia.backbone import Backbone
from intarsia.serving.http import Keys
from intarsia.serving.library import Library
from intarsia.serving.limits import Limits
from serving.fake_engine import refusal, serving
from serving.served import engine_over, make, save, solo
from workflow.tiny_run import make_backbone, make_decoder, sentences

ADMIN = {"X-API-Key": "admin-key-0123456789"}
TEXTS = [text for text, _ in sentences(12)]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return Backbone.load(str(make_decoder(tmp_path_factory.mktemp("http") / "tiny-gpt2")), dtype="float32")


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"admin:{ADMIN['X-API-Key']}\n")
    path.chmod(0o600)
    return Keys.read(path)


@pytest.fixture
def folder(backbone, tmp_path):
    """Two classifiers and a writer."""
    tasks = tmp_path / "tasks"
    save(backbone, tasks, "mood", 0)
    save(backbone, tasks, "spam", 1, seed=3)
    save(backbone, tasks, "writer", 1, seed=1, kind="generation", labels=())
    return tasks


@pytest.fixture
def engine(backbone):
    with engine_over(backbone) as engine:
        yield engine


@pytest.fixture
def said():
    return []


@pytest.fixture
def library(folder, engine, said):
    library = Library(folder, engine, say=said.append)
    library.look()
    return library


@pytest.fixture
def client(engine, library, keys):
    client = serving(engine, keys, library=library)
    client.headers.update(ADMIN)
    return client


def classify(client, task, text, **headers):
    return client.post("/v1/classify", json={"task": task, "text": text}, headers=headers)


def label(client, task, text):
    answer = classify(client, task, text)
    assert answer.status_code == 200, answer.text
    return answer.json()["results"][0]["answers"][0]


def files(folder):
    return {name: (folder / name).read_bytes() for name in ("task.json", "task.safetensors")}


def put(client, name, content):
    return client.put(f"/v1/tasks/{name}", files=content)


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


def test_a_task_comes_changes_and_goes_over_http(client, backbone, folder, tmp_path):
    refusal(classify(client, "new", TEXTS[0]), 404)
    for seed in (5, 6):
        version = save(backbone, tmp_path / "upload", "new", 0, seed=seed)
        card = put(client, "new", files(tmp_path / "upload" / "new"))
        assert card.status_code == 200, card.text
        assert card.json()["version"] == version
        (expected,) = solo(backbone, make(backbone, "new", 0, seed), TEXTS[:1])
        assert label(client, "new", TEXTS[0])["scores"] == pytest.approx(expected.scores, abs=1e-5)
        assert files(folder / "new") == files(tmp_path / "upload" / "new")
    assert client.delete("/v1/tasks/new").status_code == 204
    refusal(classify(client, "new", TEXTS[0]), 404)
    assert not (folder / "new").exists()
    refusal(client.delete("/v1/tasks/new"), 404, "no task 'new'")
    assert sorted(entry.name for entry in folder.iterdir()) == ["mood", "spam", "writer"]


def poisoned(content, header):
    return {**content, "task.safetensors": struct.pack("<Q", len(header)) + header + content["task.safetensors"][-64:]}


def test_what_is_not_a_task_of_this_backbone_is_refused_and_changes_nothing(client, folder, tmp_path):
    other = Backbone.load(str(make_backbone(tmp_path / "other")), dtype="float32")
    save(other, tmp_path / "upload", "mood", 0)
    good, before = files(folder / "mood"), label(client, "mood", TEXTS[0])
    description = json.loads(good["task.json"])
    tensor = {"deltas.x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    bad = {
        "another backbone": (files(tmp_path / "upload" / "mood"), "backbone"),
        "a header without end": (
            {**good, "task.safetensors": struct.pack("<Q", 2**62) + good["task.safetensors"][8:]},
            "mood",
        ),
        "a header that promises much": (poisoned(good, json.dumps(tensor).encode()), "mood"),
        "a header that is not JSON": (poisoned(good, b"\xff" * 64), "mood"),
        "a pickle": ({**good, "task.safetensors": b"\x80\x04cos\nsystem\n(S'true'\ntR."}, "mood"),
        "no tensors": ({**good, "task.safetensors": b""}, "mood"),
        "half the tensors": ({**good, "task.safetensors": good["task.safetensors"][:-100]}, "mood"),
        "an edited description": (
            {**good, "task.json": json.dumps({**description, "name": "other"}).encode()},
            "mood",
        ),
        "a description nested without end": ({**good, "task.json": b"[" * 200_000}, "nested too deeply"),
        "a description of bytes": ({**good, "task.json": b"\xff\xfe"}, "mood"),
        "an empty description": ({**good, "task.json": b"{}"}, "mood"),
    }
    for case, (content, fragment) in bad.items():
        answer = put(client, "mood", content)
        refusal(answer, 422, fragment)
        assert str(folder) not in answer.text, case
        assert files(folder / "mood") == good, case
        assert label(client, "mood", TEXTS[0]) == before, case
    assert sorted(entry.name for entry in folder.iterdir()) == ["mood", "spam", "writer"]


@pytest.mark.parametrize(
    "name", ["..", "%2e%2e", "..%2fmood", ".hidden", "a%20b", "a%00b", "-", "m" * 200, "%ff", "a%5cb"]
)
def test_a_name_from_a_client_is_never_a_path(client, folder, name):
    answer = put(client, name, files(folder / "mood"))
    assert answer.status_code in (404, 405, 422), answer.text
    refusal(answer, answer.status_code)
    assert client.delete(f"/v1/tasks/{name}").status_code in (404, 405)
    assert sorted(entry.name for entry in folder.iterdir()) == ["mood", "spam", "writer"]
    assert sorted(entry.name for entry in folder.parent.iterdir()) == ["keys", "tasks"]


def test_a_full_disk_is_507_and_the_old_version_stays(client, backbone, folder, tmp_path, monkeypatch):
    before, kept = label(client, "mood", TEXTS[0]), files(folder / "mood")
    save(backbone, tmp_path / "upload", "mood", 0, seed=9)

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        refusal(put(client, "mood", files(tmp_path / "upload" / "mood")), 507, "nothing was changed")
    assert label(client, "mood", TEXTS[0]) == before
    assert files(folder / "mood") == kept
    assert sorted(entry.name for entry in folder.iterdir()) == ["mood", "spam", "writer"]
    assert put(client, "mood", files(tmp_path / "upload" / "mood")).status_code == 200
    assert label(client, "mood", TEXTS[0]) != before


def test_a_folder_that_is_half_written_is_not_served_until_it_is_whole(
    client, library, backbone, folder, tmp_path, said
):
    save(backbone, tmp_path / "copy", "late", 0, seed=4)
    whole = files(tmp_path / "copy" / "late")
    (folder / "late").mkdir()
    for name, content in (("task.safetensors", whole["task.safetensors"][:500]), ("task.json", whole["task.json"])):
        (folder / "late" / name).write_bytes(content)
        library.look()
        refusal(classify(client, "late", TEXTS[0]), 404)
    (folder / "late" / "task.safetensors").write_bytes(whole["task.safetensors"])
    library.look()
    assert label(client, "late", TEXTS[0])["task"] == "late"
    assert said == []


def test_a_folder_of_another_backbone_is_reported_and_the_others_are_served(client, library, folder, tmp_path, said):
    other = Backbone.load(str(make_backbone(tmp_path / "other")), dtype="float32")
    save(other, folder, "foreign", 0)
    for file in (folder / "foreign").iterdir():
        os.utime(file, (1e9, 1e9))
    library.look()
    library.look()
    assert len(said) == 1
    assert "foreign" in said[0]
    refusal(classify(client, "foreign", TEXTS[0]), 404)
    assert label(client, "mood", TEXTS[0])["task"] == "mood"


def test_a_removed_folder_is_a_removed_task(client, library, folder):
    shutil.rmtree(folder / "spam")
    library.look()
    refusal(classify(client, "spam", TEXTS[0]), 404)
    assert [task["name"] for task in client.get("/v1/tasks").json()["tasks"]] == ["mood", "writer"]


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
