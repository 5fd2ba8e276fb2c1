"""Uploads over a fake library: what reaches it, and what does not."""

import errno
import os

import pytest

from intarsia.errors import TaskError
from intarsia.serving.http import Keys
from serving.fake_engine import FakeEngine, card, refusal, serving

ADMIN = "admin-key-0123456789"
HEADERS = {"Authorization": f"Bearer {ADMIN}"}
FILES = {"task.json": b"{}", "task.safetensors": b"\0" * 100}


class FakeLibrary:
    """Remembers; raises `error` where a test sets one."""

    def __init__(self):
        self.written, self.deleted, self.error = [], [], None

    def write(self, name, description, tensors):
        if self.error:
            raise self.error
        self.written.append((name, description, tensors))
        return card(name)

    def delete(self, name):
        if self.error:
            raise self.error
        self.deleted.append(name)


@pytest.fixture
def library():
    return FakeLibrary()


@pytest.fixture
def client(library, tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"admin:{ADMIN}\n")
    path.chmod(0o600)
    return serving(FakeEngine(), Keys.read(path), library=library, upload_bytes=20_000)


def put(client, files, name="mood", **more):
    return client.put(f"/v1/tasks/{name}", files=files, headers={**HEADERS, **more})


def test_the_two_files_of_a_task_reach_the_library(client, library):
    answer = put(client, FILES)
    assert answer.status_code == 200
    assert answer.json()["name"] == "mood"
    assert library.written == [("mood", b"{}", b"\0" * 100)]


def test_the_names_that_a_client_gives_its_files_are_not_looked_at(client, library):
    named = {field: ("../../etc/passwd", content) for field, content in FILES.items()}
    assert put(client, named).status_code == 200
    assert library.written == [("mood", b"{}", b"\0" * 100)]


def test_delete_takes_the_task_away(client, library):
    assert client.delete("/v1/tasks/mood", headers=HEADERS).status_code == 204
    assert library.deleted == ["mood"]


# name: (files of the form, a part of the message)
FORMS = {
    "one file": ({"task.json": b"{}"}, "two files"),
    "a pickle": ({"task.json": b"{}", "pytorch_model.bin": b"\x80"}, "two files"),
    "three files": ({**FILES, "run.json": b"{}"}, "cannot be read"),
    "a field that is not a file": ({"task.json": (None, b"{}"), "task.safetensors": b""}, "cannot be read"),
}


@pytest.mark.parametrize("case", FORMS)
def test_a_form_that_is_not_a_task_is_422(client, library, case):
    files, fragment = FORMS[case]
    refusal(put(client, files), 422, fragment)
    assert library.written == []


def test_a_body_that_is_no_form_is_refused(client, library):
    for kind in ("application/json", "application/octet-stream", ""):
        headers = {**HEADERS, **({"Content-Type": kind} if kind else {})}
        refusal(client.put("/v1/tasks/mood", content=b"{}", headers=headers), 415, "multipart/form-data")
    broken = {**HEADERS, "Content-Type": "multipart/form-data; boundary=b"}
    refusal(client.put("/v1/tasks/mood", content=b"nonsense", headers=broken), 422, "form")
    no_boundary = {**HEADERS, "Content-Type": "multipart/form-data"}
    refusal(client.put("/v1/tasks/mood", content=b"nonsense", headers=no_boundary), 422, "form")
    assert library.written == []


def test_a_task_that_is_too_large_is_413_with_and_without_a_length(client, library):
    refusal(put(client, {**FILES, "task.safetensors": b"\0" * 30_000}), 413, "larger than 20,000 bytes")

    def body():
        yield b'--b\r\nContent-Disposition: form-data; name="task.json"; filename="a"\r\n\r\n'
        for _ in range(40):
            yield b"\0" * 1000

    headers = {**HEADERS, "Content-Type": "multipart/form-data; boundary=b"}
    refusal(client.put("/v1/tasks/mood", content=body(), headers=headers), 413, "larger than 20,000 bytes")
    assert library.written == []


def test_what_the_library_refuses_is_said(client, library):
    library.error = TaskError("the task belongs to another backbone")
    refusal(put(client, FILES), 422, "another backbone")
    refusal(client.delete("/v1/tasks/mood", headers=HEADERS), 404, "")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOENT])
def test_a_folder_that_cannot_be_written_is_no_bug_of_the_server(client, library, number, caplog):
    library.error = OSError(number, os.strerror(number), "/somewhere/secret")
    for answer in (put(client, FILES), client.delete("/v1/tasks/mood", headers=HEADERS)):
        refusal(answer, 507, f"cannot be written ({os.strerror(number)}); nothing was changed")
        assert "secret" not in answer.text
    assert "a bug" not in caplog.text


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_507_and_the_next_upload_works(client, library, number):
    library.error = OSError(number, "No space left on device", "/somewhere/secret")
    answer = put(client, FILES)
    refusal(answer, 507, "nothing was changed")
    assert "secret" not in answer.text
    library.error = None
    assert put(client, FILES).status_code == 200


def test_a_server_without_a_folder_takes_no_tasks(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"admin:{ADMIN}\n")
    path.chmod(0o600)
    refusal(put(serving(FakeEngine(), Keys.read(path)), FILES), 403, "no tasks folder")
