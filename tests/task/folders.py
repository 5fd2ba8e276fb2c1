"""Reading and changing a task folder past the library."""

import json

from intarsia import taskfile

TENSORS, DESCRIPTION = taskfile.TENSORS, taskfile.DESCRIPTION


def described(folder):
    return json.loads((folder / DESCRIPTION).read_bytes())


def loaded_tensors(folder):
    return taskfile.read(folder)[1]


def edit(folder, change):
    """Changes the description as an editor would: the hash stays."""
    found = described(folder)
    change(found)
    (folder / DESCRIPTION).write_text(json.dumps(found))


def rewrite(folder, change=lambda d: None, tensors=lambda t: t):
    """Changes the folder with a right hash, as only another program (or version) would."""
    found, held = described(folder), loaded_tensors(folder)
    change(found)
    for field in ("format", "tensors", "content"):
        found.pop(field)
    taskfile.write(folder, found, tensors(held))
