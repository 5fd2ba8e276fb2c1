"""The C files of this folder, compiled by GCC for the processor that is there, and kept in the user's cache.

They are not part of the package's wheel as machine code: that would have to suit every processor, and to link torch's own OpenMP,
whose threads they share. Without a compiler there is torch, which takes longer.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger("intarsia.native")
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
X86 = ("-mprefer-vector-width=512",)
SHARED = ("-fopenmp", "-fPIC", "-shared", "-w")
LIMIT = 120.0
"""Seconds that a compiler may take; it takes one."""


def watched() -> bool:
    """Whether somebody looks into what is computed, which kernels of ours do not show: torch.compile, export and tracing,
    torch.func, modes that see each call of torch's."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return True
    return torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack() > 0


@cache
def amx() -> bool:
    """Whether this processor has AMX, which multiplies matrices in bf16."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def in_training(x: Tensor) -> bool:
    """Whether x is what kernels for training are for: bfloat16 on a CPU with AMX, where all that is not a product takes most of the
    time, while gradients are on."""
    ours = x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.numel() > 0
    return ours and amx() and torch.is_grad_enabled() and not watched()


def alike(found: Iterable[Tensor], wanted: Iterable[Tensor]) -> bool:
    """Whether results in bfloat16 are those in float64, within some roundings of the largest."""
    pairs = zip(found, wanted, strict=True)
    return all(bool((one - other).abs().max() < 0.02 * other.abs().max()) for one, other in pairs)


class Library:
    """The kernels of one C file."""

    def __init__(self, name: str, agrees: Callable[[], bool]) -> None:
        """agrees: whether they compute what they should, which is tried before they are used: nobody else has seen this machine
        code yet."""
        self.name, self.agrees = name, agrees
        self._trusted: bool | None = None
        self._first = threading.Lock()
        self._calls: dict[str, Callable[..., int]] = {}

    def there(self) -> bool:
        """Whether they can be used: False where they cannot be compiled or run, or compute something else, which the log says."""
        if self._trusted is None:
            with self._first:  # of several threads
                if self._trusted is None:
                    self._trusted = self._loaded() is not None and self._tried()
        return self._trusted

    def run(self, function: str, shape: ctypes.Structure, *arguments: Any) -> None:
        """function(shape, *arguments), a tensor by where it begins. MemoryError where it found no room."""
        call = self._calls.get(function) or self._call(function, len(arguments) + 1)
        if call(ctypes.byref(shape), *[x.data_ptr() if isinstance(x, Tensor) else x for x in arguments]):
            raise MemoryError(f"there is no memory left for {self.name}; use smaller batches")

    def forget(self) -> None:
        """They are tried again at their next use."""
        self._trusted = None

    def _call(self, function: str, count: int) -> Callable[..., int]:
        """A function of theirs that takes so many pointers, as numbers."""
        found = self._calls[function] = getattr(self._loaded(), function)
        found.argtypes = [ctypes.c_void_p] * count
        return found  # type: ignore[no-any-return]

    def _loaded(self) -> ctypes.CDLL | None:
        found = library(self.name)
        return found if found is not None and found.ready() else None

    def _tried(self) -> bool:
        try:
            with ThreadPoolExecutor(
                1
            ) as fresh:  # it has none of the caller's modes and hooks (autocast, checkpointing)
                if fresh.submit(self.agrees).result():
                    return True
        except (MemoryError, RuntimeError) as error:  # no room, no more threads
            log.warning("%s.c cannot be tried, so torch computes it: %s", self.name, error)
            return False
        log.warning("%s.c as compiled here computes something else than it should, so torch computes it", self.name)
        return False


@cache
def library(name: str) -> ctypes.CDLL | None:
    """The compiled `name`.c; None where there is no compiler or no OpenMP of torch's, or where it fails, which the log says."""
    if os.name != "posix" or not hasattr(ctypes.CDLL(None), "GOMP_parallel"):
        return None
    if not (compiler := _compiler()):
        log.info("no C compiler is there, so torch computes what %s.c would be quicker at; install gcc", name)
        return None
    source = Path(__file__).with_name(f"{name}.c")
    command = [*compiler, *FLAGS, *(X86 if platform.machine() == "x86_64" else ()), *SHARED]
    try:
        kept = _folder() / f"{name}-{_key(source, command)}.so"
        with suppress(OSError):  # not there yet, or not whole
            return ctypes.CDLL(str(kept))
        return _made(source, command, kept)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        log.warning("%s cannot be compiled, so torch computes it: %s", source.name, " ".join(said.split())[:200])
        return None


def _made(source: Path, command: list[str], kept: Path) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / kept.name
        whole = [*command, str(source), "-o", str(built)]
        subprocess.run(whole, check=True, capture_output=True, text=True, timeout=LIMIT)
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            # Processes of other machines may have our number. Mapped memory of half a file would end the process.
            handle, part = tempfile.mkstemp(dir=kept.parent, prefix=f"{kept.name}.")
            try:
                with open(handle, "wb") as file:
                    file.write(built.read_bytes())
                    file.flush()
                    os.fsync(handle)
                os.replace(part, kept)
            except OSError:
                os.unlink(part)
                raise
        except OSError as error:  # a home without room, or that cannot be written: compiled again the next time
            log.info("%s is not kept: %s", kept, error)
        return ctypes.CDLL(str(built))  # mapped, so its file may go


def _compiler() -> list[str]:
    """The compiler's command; empty where there is none."""
    names = [shlex.split(os.environ["CC"])] if os.environ.get("CC") else [["gcc"], ["cc"]]
    return next((name for name in names if name and shutil.which(name[0])), [])


def _folder() -> Path:
    """OSError where there is no home: what lies where others can write must not be run."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if base.startswith("~"):
        raise OSError("there is no home folder to keep it in; set XDG_CACHE_HOME")
    return Path(base) / "intarsia" / "native"


def _key(source: Path, command: list[str]) -> str:
    """Of all that the machine code depends on."""
    compiler = Path(shutil.which(command[0]) or command[0]).resolve()
    seen = hashlib.sha256(source.read_bytes())
    for header in sorted(source.parent.glob("*.h")):
        seen.update(header.read_bytes())
    seen.update(repr((command, str(compiler), compiler.stat().st_mtime_ns, _processor())).encode())
    return seen.hexdigest()[:16]


def _processor() -> str:
    """What the processor can do, since a home may be shared by several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return " ".join(os.uname())
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
