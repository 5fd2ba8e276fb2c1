"""What a run writes about itself: `run.json` (what, where, with which result) and `metrics.jsonl` (how it went)."""

import errno
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from intarsia.errors import ConfigError, TrainingError
from intarsia.training.checkpoint import FILE, FULL, disk_errors, write_atomic

RUN = "run.json"
METRICS = "metrics.jsonl"
_TRACES = (RUN, METRICS, FILE, "task.json")
_PACKAGES = ("intarsia", "torch", "transformers", "tokenizers", "safetensors", "numpy")


class RunRecord:
    """The record in the folder `out`, held by one process at a time. Times are written and never read: they cannot change a run."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.facts: dict[str, Any] = {}
        self._folder: int | None = None

    def open(self, *, resume: bool) -> None:
        """Makes the folder, and holds it until `close`. ConfigError where it cannot be written, holds a run that is not to be
        resumed, or one that is still at work; DiskError when the disk is full."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            if not os.access(self.out, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            if error.errno in FULL:
                with disk_errors("a run", self.out):
                    raise
            raise ConfigError(f"cannot write to {self.out}: {error.strerror or error}; choose another --out") from error
        self._hold()
        found = [name for name in _TRACES if (self.out / name).exists()]
        if found and not resume:
            raise ConfigError(
                f"{self.out} already holds a run ({', '.join(found)}); go on with --resume, or choose another --out"
            )
        if (self.out / RUN).exists():
            self.facts = _read_json(self.out / RUN)

    def close(self) -> None:
        """Lets the folder go."""
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None

    def _hold(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows
            return
        with disk_errors("a run", self.out):  # one may write in it and not read it, or too many files are open
            self._folder = os.open(self.out, os.O_RDONLY)
        try:
            fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise ConfigError(f"another run is at work in {self.out}; wait for it, or choose another --out") from None
        except OSError:  # a file system that locks no folders
            pass

    def begin(self, identity: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """The record of a run that starts from its first step, also where an earlier attempt left something."""
        with disk_errors(METRICS, self.out):
            (self.out / METRICS).unlink(missing_ok=True)
        about = {"versions": versions(), "hardware": hardware(), "commit": commit(), "command": shlex.join(sys.argv)}
        self.facts = {**identity, **facts, **about, "started": _now(), "resumed": [], "ended": None, "result": None}
        self._write()

    def go_on(self, metrics_bytes: int) -> None:
        """Of a resumed run: lines written after the checkpoint are cut off, since their steps are done again."""
        path = self.out / METRICS
        with disk_errors(METRICS, self.out):
            path.touch()
            if path.stat().st_size > metrics_bytes:
                os.truncate(path, metrics_bytes)
        self.facts.setdefault("resumed", []).append(_now())
        self._write()

    def end(self, result: Mapping[str, Any]) -> None:
        self.facts |= {"ended": _now(), "result": dict(result)}
        self._write()

    def append(self, line: Mapping[str, Any]) -> None:
        with disk_errors(METRICS, self.out), open(self.out / METRICS, "ab") as file:
            file.write(json.dumps(line, allow_nan=False).encode() + b"\n")

    def synced_bytes(self) -> int:
        """The length of `metrics.jsonl`, once it is safely on the disk."""
        with disk_errors(METRICS, self.out), open(self.out / METRICS, "ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def lines(self) -> list[dict[str, Any]]:
        path = self.out / METRICS
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def _write(self) -> None:
        data = json.dumps(self.facts, indent=2, ensure_ascii=False, default=str).encode() + b"\n"
        with disk_errors(RUN, self.out):
            write_atomic(self.out / RUN, data)


def check_same(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """ConfigError that names what a resumed run has otherwise than the run it goes on with."""
    a, b = _flat(then), _flat(now)
    names = [name for name in {**a, **b} if a.get(name) != b.get(name)]
    if names:
        changes = "; ".join(f"{name} was {a.get(name)!r} and is {b.get(name)!r}" for name in names)
        raise ConfigError(
            f"--resume needs the settings and data of the first start, but {changes}; choose another --out"
        )


def as_json(value: Any) -> Any:
    """The value as it will be read back: tuples are lists, and what JSON does not have is its string."""
    return json.loads(json.dumps(value, default=str))


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def hardware() -> dict[str, Any]:
    import torch

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    memory = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1) if os.name == "posix" else None
    return {"cpu": _cpu(), "cores": cpus, "threads": torch.get_num_threads(), "memory_gib": memory, "gpus": gpus}


def commit() -> str | None:
    """The git commit of the library, `-dirty` with local changes; None where it does not run from its repository."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    if isinstance(value, Mapping):
        parts = (_flat(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in value.items())
        return {name: v for part in parts for name, v in part.items()}
    return {prefix: value}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path} cannot be read ({error}); choose another --out") from error
    if not isinstance(value, dict):
        raise TrainingError(f"{path} must hold a JSON object, got {type(value).__name__}; choose another --out")
    return value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
