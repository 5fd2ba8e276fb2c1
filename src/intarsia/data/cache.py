"""Arrays kept on disk as safetensors, written atomically and checked on the way back."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np


def cached(
    folder: Path | None, key: str, make: Callable[[], dict[str, np.ndarray]]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays of `key`, from the folder or made now and kept there, and what is to be said of the cache."""
    if folder is None:
        return make(), []
    file = folder / f"{key}.safetensors"
    arrays, note = load_arrays(file, key)
    notes = [note] if note else []
    if arrays is None:
        arrays = make()
        if note := save_arrays(file, key, arrays):
            notes.append(note)
    return arrays, notes


def load_arrays(file: Path, key: str) -> tuple[dict[str, np.ndarray] | None, str | None]:
    """(arrays, None), (None, None) where there is no such file, or (None, note) where it is not what was written."""
    from safetensors import SafetensorError, safe_open

    if not file.exists():
        return None, None
    try:
        with safe_open(file, framework="numpy") as stored:
            arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a dict
            said = stored.metadata() or {}
    except (SafetensorError, OSError, ValueError):
        said, arrays = {}, {}
    if said.get("key") != key or said.get("digest") != _digest(arrays):
        return None, f"damaged token cache {file.name} made again"
    return arrays, None


def save_arrays(file: Path, key: str, arrays: dict[str, np.ndarray]) -> str | None:
    """Write `arrays`; returns None, or a note where the disk refuses: a cache is not worth an error."""
    from safetensors.numpy import save

    temporary = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=file.name, suffix=".tmp")
        with os.fdopen(handle, "wb") as out:
            out.write(save(arrays, {"key": key, "digest": _digest(arrays)}))
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, file)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        return f"token cache not written to {file.parent}: {error.strerror}"
    return None


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
