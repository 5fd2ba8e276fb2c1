"""Tasks that come, change and go, over HTTP and in the folder; and what may be wrong with them."""

import errno
import json
import os
import shutil
import struct

import pytest

from intarsia.backbone import Backbone
from serving.asking import TEXTS, classify, files, label, put
from serving.fake_engine import refusal
from serving.served import make, save, solo
from workflow.tiny_run import make_backbone


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
