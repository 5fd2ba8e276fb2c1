"""A checkpoint: one safetensors file with all that decides the rest of a run.

    task/NAME              the weights now
    best/NAME              the weights of the best evaluation so far, if there was one
    optimizer/NAME/KEY     the optimizer's state of parameter NAME
    rng/cpu, rng/cuda      the states of the random generators, as bytes

The file's metadata holds one JSON string: the rest of the state, and the run's identity (settings, data, method), so
that a run is not resumed with others. Epoch and position in it follow from the step.
"""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from intarsia.errors import DiskError, TrainingError

FILE = "checkpoint.safetensors"
FULL = {errno.ENOSPC, errno.EDQUOT}
"""The errors of a full disk, or of a spent quota."""
_CURES = {
    **dict.fromkeys(FULL, "free some space"),
    errno.ENOENT: "bring the folder back",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
}
_FORMAT = "intarsia checkpoint 1"


@dataclass
class Checkpoint:
    tensors: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under `prefix/`, by the rest of their names."""
        return {name[len(prefix) + 1 :]: x for name, x in self.tensors.items() if name.startswith(prefix + "/")}

    def add(self, prefix: str, tensors: dict[str, Tensor]) -> None:
        self.tensors.update({f"{prefix}/{name}": x for name, x in tensors.items()})


def snapshot(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU that the next step does not change."""
    return {name: x.detach().to("cpu", copy=True).contiguous() for name, x in tensors.items()}


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Atomic: a reader finds the old checkpoint or the new one, at any moment. DiskError when the disk is full."""
    from safetensors.torch import save

    metadata = {"format": _FORMAT, "facts": json.dumps(checkpoint.facts, allow_nan=False)}
    data = save(snapshot(checkpoint.tensors), metadata)
    with disk_errors("the checkpoint", folder):
        write_atomic(folder / FILE, data)


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """The last checkpoint of the folder, or None. TrainingError when it is damaged."""
    from safetensors import SafetensorError, safe_open

    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise TrainingError(
                    f"{path} is not a checkpoint of this version; delete it to start from the beginning"
                )
            # Copies: the file is replaced by the next checkpoint while its tensors are in use.
            names = list(file.keys())
            return Checkpoint({name: file.get_tensor(name).clone() for name in names}, json.loads(metadata["facts"]))
    except (SafetensorError, OSError, ValueError) as error:
        raise TrainingError(f"{path} cannot be read ({error}); delete it to start from the beginning") from error


def write_atomic(path: Path, data: bytes) -> None:
    """The temporary file has a fixed name: a killed run leaves at most one behind, and the next write takes it over."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself survive a power cut, where the system lets folders be synced."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_errors(
    what: str, folder: Path, *, kept: str | None = None, again: str = "go on with --resume"
) -> Iterator[None]:
    """A failed write as one line that says what is safe and what to do. kept, again: both, where the folder is not a run's."""
    try:
        yield
    except OSError as error:
        why = "the disk is full" if error.errno in FULL else (error.strerror or str(error))
        cure = _CURES.get(error.errno or 0, "make the folder writable")
        raise DiskError(
            f"cannot write {what} to {folder}: {why}; {kept or _kept(folder)}; {cure}, then {again}"
        ) from error


def _kept(folder: Path) -> str:
    """What there is of a run."""
    if (folder / FILE).exists():
        return "the last checkpoint is intact"
    return "the task is saved" if (folder / "task.json").exists() else "there is no checkpoint yet"


def rng_tensors(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_rng(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
