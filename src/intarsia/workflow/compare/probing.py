"""What a run of each shape costs on this machine: seconds a step, seconds an evaluation, memory. Found out by a few steps."""

import json
import shutil
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from intarsia.training.record import METRICS
from intarsia.workflow.compare.budget import Cost

STEPS = 8


def probe(train: Callable[[], Any], folder: Path, device: torch.device) -> tuple[Cost, int | None] | None:
    """Calls `train`, a run of STEPS steps and one evaluation in `folder`, and takes the folder away again.

    Returns what it costs, and the largest memory in bytes: of the GPU, or of this process with all that it holds (None where
    the system does not say). None where the run did not come to its first step.
    """
    shutil.rmtree(folder, ignore_errors=True)
    peak = Peak(device)
    began = time.perf_counter()
    try:
        train()
        whole = time.perf_counter() - began
        memory = peak.read()
        written = folder / METRICS
        return (cost_of(written.read_text(), whole), memory) if written.exists() else None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def cost_of(metrics: str, whole: float) -> Cost:
    """From a run's `metrics.jsonl`, with a line for each step and one evaluation at the end, and the seconds of all of it."""
    lines = [json.loads(line) for line in metrics.splitlines()]
    steps = [(line["step"], line["seconds"]) for line in lines if "loss" in line]
    evaluated = next((line["seconds"] for line in lines if "validation_loss" in line), steps[-1][1])
    # The first step also pays for what is done once.
    each = [later[1] - before[1] for before, later in pairwise(steps)] or [steps[0][1]]
    step, evaluation = statistics.median(each), evaluated - steps[-1][1]
    return Cost(start=max(0.0, whole - step * steps[-1][0] - evaluation), step=step, evaluation=evaluation)


class Peak:
    """The largest memory since it was made."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak is what is in use now
        except OSError:
            self.device = torch.device("meta")

    def read(self) -> int | None:
        """Bytes, or None."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return None if self.device.type == "meta" else _status("VmHWM")


def in_use(device: torch.device) -> int | None:
    """Bytes now, as `Peak` counts them."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _status("VmRSS")


def free(device: torch.device) -> int | None:
    """Bytes that can be had; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _status("MemAvailable", Path("/proc/meminfo"))


def _status(name: str, path: Path = Path("/proc/self/status")) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith(name + ":")), None)
    return None if found is None else int(found.split()[1]) * 1024
