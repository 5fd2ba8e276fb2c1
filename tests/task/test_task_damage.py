"""A damaged task folder is refused in one clear line; never random weights."""

import json
import os

import pytest
import torch

from intarsia.errors import TaskError
from intarsia.task import Task
from methods.every import wrap
from task.folders import DESCRIPTION, TENSORS, described, edit, rewrite

# Damage. Each entry changes a good folder (or returns another path) and names a fragment of the message.


def cut(name, share):
    def change(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return change


def flip(name, share):
    def change(folder):
        data = bytearray((folder / name).read_bytes())
        data[int(len(data) * share)] ^= 1
        (folder / name).write_bytes(data)

    return change


def write(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def gone(name):
    return lambda folder: (folder / name).unlink()


def first_tensor(change):
    def of(tensors):
        name = sorted(tensors)[0]
        return {**tensors, name: change(tensors[name])}

    return of


DAMAGE = {
    "no folder": (lambda f: f.with_name("nowhere"), "no such folder"),
    "a file": (lambda f: f / TENSORS, "not a task folder"),
    "empty folder": (lambda f: (gone(TENSORS)(f), gone(DESCRIPTION)(f))[:0], f"no {DESCRIPTION} in it"),
    "no json": (gone(DESCRIPTION), f"no {DESCRIPTION} in it"),
    "no tensors": (gone(TENSORS), f"has no {TENSORS}"),
    **{
        f"tensors cut at {s}": (cut(TENSORS, s), "damaged or truncated") for s in (0.0, 0.0005, 0.01, 0.3, 0.99, 0.9999)
    },
    **{f"json cut at {s}": (cut(DESCRIPTION, s), "not readable as json") for s in (0.0, 0.01, 0.5, 0.999)},
    "a flipped bit in the tensors": (flip(TENSORS, 0.7), "does not match its hash"),
    "the last bit": (flip(TENSORS, 0.999999), "does not match its hash"),
    "a flipped bit in the header's length": (write(TENSORS, b"\xff" * 8 + b"{}"), "damaged or truncated"),
    "bytes behind the tensors": (
        lambda f: (f / TENSORS).write_bytes((f / TENSORS).read_bytes() + b"xx") and None,
        "damaged or truncated",
    ),
    "edited label": (
        lambda f: edit(f, lambda d: d["head"].update(labels=["yes", "no", "perhaps"])),
        "does not match its hash",
    ),
    "edited metric": (lambda f: edit(f, lambda d: d["metrics"].update(accuracy=0.99)), "does not match its hash"),
    "edited scale": (lambda f: edit(f, lambda d: d["method"].update(scale=2.0)), "does not match its hash"),
    "edited fingerprint": (
        lambda f: edit(f, lambda d: d["backbone"].update(fingerprint="0" * 16)),
        "does not match its hash",
    ),
    "edited hash": (lambda f: edit(f, lambda d: d.update(content="0" * 64)), "does not match its hash"),
    "unknown version": (lambda f: edit(f, lambda d: d.update(format=99)), "format version 99"),
    "version of text": (lambda f: edit(f, lambda d: d.update(format="1")), "format version '1'"),
    "no version": (lambda f: edit(f, lambda d: d.pop("format")), "no field 'format'"),
    "unknown field": (lambda f: edit(f, lambda d: d.update(extra=1)), "unknown field 'extra'"),
    "missing field": (lambda f: edit(f, lambda d: d.pop("head")), "field 'head'"),
    "field of another type": (lambda f: edit(f, lambda d: d.update(metrics=[])), "should be a dict, got list"),
    "shapes of another type": (
        lambda f: edit(f, lambda d: d["tensors"].update({next(iter(d["tensors"])): 5})),
        "tensor",
    ),
    "shapes of text": (lambda f: edit(f, lambda d: d["tensors"].update({next(iter(d["tensors"])): "ab"})), "tensor"),
    "a shape of null": (lambda f: edit(f, lambda d: d["tensors"].update({next(iter(d["tensors"])): None})), "tensor"),
    "a tensor missing in the list": (lambda f: edit(f, lambda d: d["tensors"].pop("head.bias")), "too many"),
    "a tensor surplus in the list": (lambda f: edit(f, lambda d: d["tensors"].update(x=[1])), "lacks 1 tensor(s)"),
    "a list": (write(DESCRIPTION, b"[1, 2]"), "not a task's description"),
    "a number": (write(DESCRIPTION, b"3"), "not a task's description"),
    "not utf-8": (write(DESCRIPTION, b'{"format": 1, "name": "\xff\xfe"}'), "not readable as json"),
    "utf-16": (write(DESCRIPTION, '{"format": 1}'.encode("utf-16")), "not readable as json"),
    "a nested bomb": (write(DESCRIPTION, b"[" * 200_000), "nested too deeply"),
    "nested objects": (write(DESCRIPTION, b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "nested too deeply"),
    "20 MB of json": (write(DESCRIPTION, b'{"format": 1, "x": "' + b"a" * 20_000_000 + b'"}'), "expected at most"),
    "a number of 9,999 digits": (write(DESCRIPTION, b'{"format": ' + b"1" * 9_999 + b"}"), "not readable as json"),
    "binary": (write(DESCRIPTION, bytes(range(256))), "not readable as json"),
    # From here on the hash is right: files that another program wrote.
    "tensor missing": (
        lambda f: rewrite(f, tensors=lambda t: {k: v for k, v in t.items() if k != "head.bias"}),
        "lacks 1 tensor(s), the first is 'head.bias'",
    ),
    "tensor surplus": (
        lambda f: rewrite(f, tensors=lambda t: {**t, "zzz": torch.zeros(1)}),
        "too many, the first is 'zzz'",
    ),
    "wrong shape": (lambda f: rewrite(f, tensors=first_tensor(lambda t: torch.zeros(3, 3))), "should have shape"),
    "a wrong shape that broadcasts": (
        lambda f: rewrite(f, tensors=lambda t: {**t, "head.bias": torch.zeros(1, 1)}),
        "'head.bias' should have shape [1, 3], got [1, 1]",
    ),
    "another width": (lambda f: rewrite(f, lambda d: d["method"].update(width=6)), "should have shape"),
    "another backbone": (
        lambda f: rewrite(f, lambda d: d["backbone"].update(fingerprint="0123456789abcdef")),
        "0123456789abcdef",
    ),
    "no fingerprint": (lambda f: rewrite(f, lambda d: d.update(backbone={})), "trained on backbone"),
    "unknown method": (lambda f: rewrite(f, lambda d: d["method"].update(name="adaptor")), "unknown method 'adaptor'"),
    "unknown method field": (lambda f: rewrite(f, lambda d: d["method"].update(depth=2)), "no field 'depth'"),
    "bad method value": (lambda f: rewrite(f, lambda d: d["method"].update(width=-1)), "width must be at least 1"),
    "method without name": (lambda f: rewrite(f, lambda d: d.update(method={})), "unknown method None"),
    "method that the backbone refuses": (
        lambda f: rewrite(f, lambda d: d["method"].update(leave_out=[0, 1])),
        "every layer is left out",
    ),
    "a width beyond all memory": (lambda f: rewrite(f, lambda d: d["method"].update(width=10**13)), "cannot be built"),
    "unknown head": (lambda f: rewrite(f, lambda d: d["head"].update(kind="ranking")), "cannot be built"),
    "unknown head field": (lambda f: rewrite(f, lambda d: d["head"].update(colour="red")), "cannot be built"),
    "head without labels": (lambda f: rewrite(f, lambda d: d["head"].pop("labels")), "cannot be built"),
    "labels of another type": (lambda f: rewrite(f, lambda d: d["head"].update(labels=5)), "cannot be built"),
    "labels that cannot be compared": (
        lambda f: rewrite(f, lambda d: d["head"].update(labels=[["a"], ["b"], ["c"]])),
        "cannot be built",
    ),
    "dropout of text": (lambda f: rewrite(f, lambda d: d["head"].update(dropout="much")), "cannot be built"),
    "a bad name": (lambda f: rewrite(f, lambda d: d.update(name="../../up")), "cannot be built"),
}


@pytest.mark.parametrize(("damage", "fragment"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_folder_is_refused_in_one_line(damage, fragment, folder, backbone):
    other = damage(folder)
    with pytest.raises(TaskError) as error:
        Task.load(other if isinstance(other, type(folder)) else folder, backbone)
    assert "\n" not in str(error.value)
    assert fragment in str(error.value)
    assert len(str(error.value)) < 600


def test_json_of_any_depth_is_refused_in_one_line(folder, backbone):
    # Parsing, then hashing again: at some depths only the second runs out of stack.
    for depth in range(900, 1000):
        nested = "[" * depth + "]" * depth
        text = json.dumps({**described_once(folder), "data": {"x": 0}}).replace('"x": 0', f'"x": {nested}')
        (folder / DESCRIPTION).write_text(text)
        with pytest.raises(TaskError) as error:
            Task.load(folder, backbone)
        assert "\n" not in str(error.value)


_GOOD: dict = {}


def described_once(folder):
    if str(folder) not in _GOOD:
        _GOOD[str(folder)] = described(folder)
    return _GOOD[str(folder)]


def flipped(path, bit):
    """Another byte of some sixty is wrong each time: (the good bytes, those that are there now)."""
    good = path.read_bytes()
    for place in range(0, len(good), max(1, len(good) // 60)):
        bad = bytearray(good)
        bad[place] ^= bit
        path.write_bytes(bad)
        yield good, bytes(bad)


def refused(folder, backbone):
    with pytest.raises(TaskError) as error:
        Task.load(folder, backbone)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("field", ["backbone", "data", "head", "method", "metrics", "name"])
def test_no_field_of_the_description_can_be_edited(folder, backbone, field):
    def change(found):
        found[field] = found[field] + "x" if field == "name" else {**found[field], "edited": 1}

    edit(folder, change)
    with pytest.raises(TaskError, match="the content does not match its hash"):
        Task.load(folder, backbone)


def test_every_single_flipped_byte_of_the_tensor_file_is_noticed(folder, backbone):
    for _ in flipped(folder / TENSORS, 0x10):
        refused(folder, backbone)


def test_every_single_flipped_byte_of_the_description_is_noticed(folder, backbone):
    tried = 0
    for good, bad in flipped(folder / DESCRIPTION, 0x02):
        if not json_equal(good, bad):  # another kind of white space
            refused(folder, backbone)
            tried += 1
    assert tried > 30


def json_equal(one, other):
    try:
        return json.loads(one) == json.loads(other.decode("utf-8"))
    except ValueError:
        return False


@pytest.mark.parametrize("changes", [{"seed": 3}, {"num_hidden_layers": 3}, {"hidden_size": 64}])
def test_another_backbone_is_refused_and_named(folder, backbone, changes):
    with pytest.raises(TaskError) as error:
        Task.load(folder, wrap("bert", **changes))
    assert backbone.fingerprint in str(error.value)
    assert "\n" not in str(error.value)


def test_a_pickle_in_place_of_the_tensors_is_not_run(folder, backbone, tmp_path):
    import pickle

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (folder / TENSORS).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(TaskError):
        Task.load(folder, backbone)
    assert not (tmp_path / "ran").exists()
