"""The watched folder: new, changed, removed, half written and broken task folders, uploads."""

import errno
import os
import shutil

import pytest

from intarsia.backbone import Backbone
from intarsia.errors import TaskError
from intarsia.serving import library as module
from intarsia.serving.library import Library
from intarsia.taskfile import DESCRIPTION, TENSORS
from serving.served import engine_over, save
from workflow.tiny_run import make_backbone, make_decoder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return Backbone.load(str(make_backbone(tmp_path_factory.mktemp("encoder"))), dtype="float32")


@pytest.fixture
def served(backbone, tmp_path, monkeypatch):
    """An engine, a library that is looked at by hand, and what it said."""
    monkeypatch.setattr(module, "YOUNG_SECONDS", 0.0)
    (tmp_path / "tasks").mkdir()
    said = []
    with engine_over(backbone) as engine:
        yield engine, Library(tmp_path / "tasks", engine, say=said.append), said


def names(engine):
    return {card.name: card.version for card in engine.cards()}


def test_folders_that_come_change_and_go_are_tasks_that_do(served, backbone):
    engine, library, said = served
    first = save(backbone, library.folder, "mood")
    library.look()
    assert names(engine) == {"mood": first}
    second = save(backbone, library.folder, "mood", 1, seed=4)
    other = save(backbone, library.folder, "spam", 2)
    library.look()
    assert names(engine) == {"mood": second, "spam": other}
    shutil.rmtree(library.folder / "mood")
    library.look()
    assert names(engine) == {"spam": other}
    assert said == []


def test_the_folders_name_is_the_tasks_name_and_odd_folders_are_left_alone(served, backbone, tmp_path):
    engine, library, said = served
    version = save(backbone, library.folder, "mood")
    os.replace(library.folder / "mood", library.folder / "renamed")
    save(backbone, library.folder, ".hidden")
    (library.folder / "notes.txt").write_text("not a task")
    (library.folder / "empty").mkdir()
    library.look()
    assert names(engine) == {"renamed": version}
    assert said == []  # of what is hidden, no folder or no task


def test_a_task_folder_that_cannot_be_served_as_it_is_called_is_said_once(served, backbone, tmp_path):
    engine, library, said = served
    version = save(backbone, library.folder, "mood")
    for odd in ("film reviews", "_draft", "a" * 129):
        shutil.copytree(library.folder / "mood", library.folder / odd)
    (library.folder / "link").symlink_to(library.folder / "mood")
    for _ in range(3):
        library.look()
    assert names(engine) == {"mood": version}
    assert len(said) == 4
    assert f"{library.folder / 'link'} is not served: it is a link; put the task folder itself there" in said
    assert sum("rename it: a task's name must begin with a letter or digit" in line for line in said) == 3
    os.replace(library.folder / "film reviews", library.folder / "film-reviews")
    library.look()
    assert set(names(engine)) == {"mood", "film-reviews"}
    assert len(said) == 4


def test_a_folder_is_looked_at_again_when_its_files_may_be_read_or_the_links_in_it_lead_elsewhere(
    served, backbone, tmp_path, monkeypatch
):
    engine, library, said = served
    first, second = save(backbone, tmp_path / "a", "mood"), save(backbone, tmp_path / "b", "mood", 1, seed=4)
    (library.folder / "mood").mkdir()
    (tmp_path / "now").symlink_to(tmp_path / "a")
    for name in (DESCRIPTION, TENSORS):
        (library.folder / "mood" / name).symlink_to(tmp_path / "now" / "mood" / name)

    def closed(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "put", closed)
        for _ in range(2):
            library.look()
    assert [line.partition(" is not served: ")[2] for line in said] == ["PermissionError: [Errno 13] Permission denied"]
    (tmp_path / "a" / "mood" / DESCRIPTION).chmod(0o600)
    library.look()
    assert names(engine) == {"mood": first}
    (tmp_path / "next").symlink_to(tmp_path / "b")
    os.replace(tmp_path / "next", tmp_path / "now")
    library.look()
    assert names(engine) == {"mood": second}


def test_a_folder_that_is_being_written_waits(served, backbone, tmp_path, monkeypatch):
    engine, library, said = served
    monkeypatch.setattr(module, "YOUNG_SECONDS", 1e6)
    version = save(backbone, tmp_path, "whole")
    half = library.folder / "mood"
    half.mkdir()
    shutil.copy(tmp_path / "whole" / DESCRIPTION, half)
    library.look()
    whole = (tmp_path / "whole" / TENSORS).read_bytes()
    (half / TENSORS).write_bytes(whole[: len(whole) // 2])
    library.look()
    assert (names(engine), said) == ({}, [])
    (half / TENSORS).write_bytes(whole)
    library.look()
    assert (names(engine), said) == ({"mood": version}, [])


def test_a_broken_or_foreign_folder_is_reported_once_and_the_old_version_stays(served, backbone, tmp_path):
    engine, library, said = served
    version = save(backbone, library.folder, "mood")
    library.look()
    blob = (library.folder / "mood" / TENSORS).read_bytes()
    (library.folder / "mood" / TENSORS).write_bytes(
        (1 << 40).to_bytes(8, "little") + blob[8:]
    )  # a header of a terabyte
    stranger = Backbone.load(str(make_decoder(tmp_path / "stranger")), dtype="float32")
    save(stranger, library.folder, "foreign")
    for _ in range(3):
        library.look()
    assert names(engine) == {"mood": version}
    assert len(said) == 2
    assert any("was trained on" in line for line in said)
    assert all("\n" not in line for line in said)


def test_a_folder_that_is_gone_is_said_once_and_its_tasks_stay_until_it_is_there_again(served, backbone, tmp_path):
    engine, library, said = served
    version = save(backbone, library.folder, "mood")
    library.look()
    for times in (1, 2):
        os.replace(library.folder, tmp_path / "away")
        for _ in range(3):
            library.look()
        assert said == ["the tasks folder cannot be read, its tasks stay: No such file or directory"] * times
        assert names(engine) == {"mood": version}
        os.replace(tmp_path / "away", library.folder)
        library.look()


def test_an_upload_is_served_and_stays_in_the_folder(served, backbone, tmp_path):
    engine, library, _ = served
    for seed in (1, 2):
        version = save(backbone, tmp_path, "sent", seed, seed=seed)
        files = [(tmp_path / "sent" / name).read_bytes() for name in (DESCRIPTION, TENSORS)]
        card = library.write("mood", *files)
        assert (card.name, card.version) == ("mood", version)
        library.look()
        assert names(engine) == {"mood": version}
        assert sorted(path.name for path in library.folder.iterdir()) == ["mood"]
    library.delete("mood")
    assert names(engine) == {}
    assert list(library.folder.iterdir()) == []


def test_an_upload_that_cannot_be_served_changes_nothing(served, backbone, tmp_path, monkeypatch):
    engine, library, _ = served
    version = save(backbone, library.folder, "mood")
    library.look()
    save(backbone, tmp_path, "sent", 1, seed=3)
    description, tensors = ((tmp_path / "sent" / name).read_bytes() for name in (DESCRIPTION, TENSORS))
    for files in ((b"{", tensors), (description, tensors[:-4]), (description, b""), (b"[]", b"x" * 100)):
        with pytest.raises(TaskError) as caught:
            library.write("mood", *files)
        assert module.HIDDEN not in str(caught.value)
    for name in ("../mood", "a/b", "", ".", "..", "x" * 200, "-x", "a b", "mood\n"):
        with pytest.raises(TaskError, match="name"):
            library.write(name, description, tensors)
        with pytest.raises(TaskError, match="name"):
            library.delete(name)
    with pytest.raises(TaskError, match="no task"):
        library.delete("other")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(module.os, call, full)
            with pytest.raises(OSError, match="No space"):
                library.write("mood", description, tensors)
        assert names(engine) == {"mood": version}
    library.look()
    assert names(engine) == {"mood": version}
    assert [path.name for path in library.folder.iterdir()] == ["mood"]


def test_the_watch_sees_a_new_folder_by_itself(served, backbone, monkeypatch):
    engine, library, _ = served
    monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
    assert library.start() == 0
    try:
        version = save(backbone, library.folder, "mood")
        for _ in range(500):
            if names(engine):
                break
            module.time.sleep(0.01)
        assert names(engine) == {"mood": version}
    finally:
        library.stop()
