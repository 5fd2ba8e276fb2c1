"""The task folder: task.safetensors and task.json, written atomically and read strictly.

task.json holds {format, name, backbone, method, head, metrics, data, tensors, content}. `content` is the sha256 over the
tensor file's bytes and over the rest of task.json, so an edited or half-copied folder is refused, never loaded in part. It is
also the task's version. Nothing in either file is executed.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from intarsia.errors import TaskError

FORMAT = 1
TENSORS, DESCRIPTION, NEXT = "task.safetensors", "task.json", ".task.json.next"
_MAX_JSON = 16 << 20
_FIELDS = {
    "format": int,
    "name": str,
    "backbone": dict,
    "method": dict,
    "head": dict,
    "metrics": dict,
    "data": dict,
    "tensors": dict,
    "content": str,
}


def write(folder: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Writes both files; returns the content hash. description: every field but format, tensors and content."""
    from safetensors.torch import save

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise TaskError(
            f"a task is saved in a folder, and {folder} is a file, or lies under one; give another"
        ) from error
    blob = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    full = {"format": FORMAT, **description, "tensors": {name: list(t.shape) for name, t in tensors.items()}}
    try:
        full["content"] = _content(full, blob)
        text = json.dumps(full, indent=1, ensure_ascii=False, allow_nan=False, default=_number).encode()
    except (TypeError, ValueError) as error:
        raise TaskError(
            f"{folder}: the task's metrics or data hold a value that json has no word for: {error}; make it a float or a str."
        ) from None
    _finish(folder)
    # The new description waits beside the old one until the tensors are in place; killed anywhere, `read` finds a matching pair.
    ready: list[tuple[Path, Path]] = []
    try:
        for name, data in ((NEXT, text), (TENSORS, blob)):
            ready.append((_partial(folder / name, data), folder / name))
        for partial, target in ready:
            os.replace(partial, target)
    except OSError:
        for path in (*(partial for partial, _ in ready), folder / NEXT):
            path.unlink(missing_ok=True)
        raise
    os.replace(folder / NEXT, folder / DESCRIPTION)
    return full["content"]


def _partial(target: Path, data: bytes) -> Path:
    """The name is fixed: a killed save leaves at most one behind, and the next one takes it over."""
    name = target.with_name(f".{target.name.lstrip('.')}.tmp")
    try:
        with open(name, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
    except BaseException:
        name.unlink(missing_ok=True)
        raise
    return name


def _number(value: Any) -> Any:
    """A number of numpy or torch as Python's own, which json knows."""
    if getattr(value, "ndim", None) == 0:
        return value.item()
    raise TypeError(f"{type(value).__name__} is no number, str, list or dict")


def _content(description: Mapping[str, Any], blob: bytes) -> str:
    rest = {key: value for key, value in description.items() if key != "content"}
    canonical = json.dumps(rest, sort_keys=True, ensure_ascii=True, default=_number).encode()
    return hashlib.sha256(hashlib.sha256(blob).digest() + canonical).hexdigest()


def read_description(folder: Path, name: str = DESCRIPTION) -> dict[str, Any]:
    """task.json, checked for form; TaskError says what is wrong."""
    path = folder / name
    if not path.is_file():
        hint = "no such folder" if not folder.exists() else f"no {DESCRIPTION} in it"
        raise TaskError(f"{folder} is not a task folder: {hint}. Give the --out folder of a finished `intarsia train`.")
    if path.stat().st_size > _MAX_JSON:
        raise TaskError(
            f"{path} has {path.stat().st_size:,} bytes, expected at most {_MAX_JSON:,}; it is not a task's."
        )
    try:
        found = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        line = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise TaskError(f"{path} is not readable as json: {line}. Copy the task folder again.") from None
    if not isinstance(found, dict) or "format" not in found:
        raise TaskError(f"{path} is not a task's description: it has no field 'format'.")
    if found["format"] != FORMAT:
        raise TaskError(
            f"{path} has format version {found['format']!r}, this intarsia reads {FORMAT}; use the version that wrote it."
        )
    for field, kind in _FIELDS.items():
        if not isinstance(found.get(field), kind):
            raise TaskError(
                f"{path}: field {field!r} should be a {kind.__name__}, got {type(found.get(field)).__name__}."
            )
    if surplus := sorted(set(found) - set(_FIELDS)):
        raise TaskError(f"{path} has an unknown field {surplus[0]!r}; it was edited or written by another version.")
    return found


def _finish(folder: Path) -> None:
    """Completes a save that was killed between its last two renames."""
    if (folder / NEXT).is_file():
        try:
            _read(folder, NEXT)
        except TaskError:
            return  # the tensors are still the old ones
        os.replace(folder / NEXT, folder / DESCRIPTION)


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors, both checked against the content hash."""
    try:
        return _read(folder, DESCRIPTION)
    except TaskError:
        if not (folder / NEXT).is_file():
            raise
        return _read(folder, NEXT)


def _read(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    description = read_description(folder, name)
    path = folder / TENSORS
    if not path.is_file():
        raise TaskError(f"{folder} has no {TENSORS}; copy the whole task folder.")
    blob = path.read_bytes()
    try:
        tensors = load(blob)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise TaskError(
            f"{path} is damaged or truncated: {' '.join(str(error).split())}. Copy the task folder again."
        ) from None
    expected = description["tensors"]
    actual = {name: list(tensor.shape) for name, tensor in tensors.items()}
    _compare(path, expected, actual)
    if _content(description, blob) != description["content"]:
        raise TaskError(
            f"{folder}: the content does not match its hash; {TENSORS} or {DESCRIPTION} was edited. Copy it again."
        )
    return description, tensors


def _compare(path: Path, expected: Mapping[str, Any], actual: Mapping[str, list[int]]) -> None:
    if missing := sorted(expected.keys() - actual.keys()):
        raise TaskError(
            f"{path} lacks {len(missing)} tensor(s), the first is {missing[0]!r}; copy the task folder again."
        )
    if surplus := sorted(actual.keys() - expected.keys()):
        raise TaskError(
            f"{path} has {len(surplus)} tensor(s) too many, the first is {surplus[0]!r}; copy the task folder again."
        )
    for name, shape in expected.items():
        if actual[name] != shape:
            raise TaskError(f"{path}: tensor {name!r} should have shape {shape}, got {actual[name]}.")
