"""Checks of any method: identity, gradients, saving, the backbone left as it was, bf16."""

import copy
import hashlib
import tempfile
from pathlib import Path

import torch

from intarsia.backbone import Backbone
from intarsia.backbone.fingerprint import fingerprint
from intarsia.task import Task
from intarsia.workflow.patient import TOLERANCE, Outcome, Patient, difference


def identity(patient: Patient) -> Outcome | None:
    """States of a new task without a head, against those of the plain backbone. None: virtual tokens are read at once."""
    if patient.extends:
        return None
    task = Task.new("new", patient.backbone, patient.method).eval()
    with torch.no_grad(), patient.bank(task) as bank:
        new = bank(patient.batch, tasks="new")
    with torch.no_grad():
        moved = difference(new, patient.backbone.features(patient.batch))
    if moved <= TOLERANCE:
        return "pass", "to the bit" if moved == 0 else f"to {moved:.0e}, rounding"
    if getattr(patient.method, "init_up", "zero") != "zero":
        std = getattr(patient.method, "init_std", 0)
        return "not supported", f"the up-projection starts at std {std:g}, as in the paper: states move by {moved:.0e}"
    return "fail", f"states differ by {moved:.0e} of the largest"


def gradients(patient: Patient) -> Outcome:
    """Every trained tensor gets a finite gradient, and nothing else gets one."""
    task = patient.task
    labels = torch.tensor([0, 1, 0], device=patient.backbone.device)
    task.loss(patient.scores(task), labels).backward()
    none = [name for name, p in task.named_parameters() if p.grad is None or not p.grad.any()]
    wrong = [name for name, p in task.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    stray = [name for name, p in patient.backbone.model.named_parameters() if p.grad is not None]
    task.zero_grad(set_to_none=True)
    for names, what in ((none, "no gradient"), (wrong, "a gradient that is not finite"), (stray, "one, though frozen")):
        if names:
            return "fail", f"{names[0]} gets {what} ({len(names)} tensors)"
    return "pass", f"{len(list(task.parameters()))} tensors, {task.trained_parameters():,} parameters"


def save_and_load(patient: Patient) -> Outcome:
    """The folder gives back every bit of the form that is shipped, and its scores."""
    task = copy.deepcopy(patient.task).fold()
    with tempfile.TemporaryDirectory() as folder:
        patient.task.save(folder)
        loaded = Task.load(folder, patient.backbone)
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
    kept = loaded.tensors()
    if wrong := [name for name, tensor in task.tensors().items() if not torch.equal(tensor, kept[name])]:
        return "fail", f"{wrong[0]} comes back changed ({len(wrong)} tensors)"
    with torch.no_grad():
        if not torch.equal(patient.scores(loaded), patient.scores(task)):
            return "fail", "the tensors are equal, the scores are not"
        moved = difference(patient.scores(task), patient.scores(patient.task))
    if moved > TOLERANCE:
        return (
            "fail",
            f"the form that is shipped differs from the one that is trained by {moved:.0e} of the largest score",
        )
    return "pass", f"{size / 1e6:.2f} MB"


def unchanged(patient: Patient, before: tuple[str, str]) -> Outcome:
    """No byte of the backbone and no hook on it. before: its bytes and fingerprint at the start."""
    backbone = patient.backbone
    if state(backbone) != before:
        return "fail", "its weights are not what they were"
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in backbone.model.modules())
    if hooks:
        return "fail", f"{hooks} hooks are left on it"
    return "pass", f"fingerprint {before[1]}, every byte of {len(backbone.model.state_dict())} tensors"


def bf16(patient: Patient) -> Outcome:
    """Forward and backward over a backbone in bf16."""
    task = patient.task
    scores = patient.scores(task)
    task.loss(scores, torch.tensor([0, 1, 0], device=patient.backbone.device)).backward()
    finite = all(p.grad is not None and p.grad.isfinite().all() for p in task.parameters())
    kinds = {p.dtype for p in task.parameters()} | {scores.dtype}
    task.zero_grad(set_to_none=True)
    if not finite or not scores.isfinite().all():
        return "fail", "a score or a gradient is not finite"
    if kinds != {torch.float32}:
        return "fail", f"scores and trained tensors should be fp32, got {sorted(map(str, kinds))}"
    return "pass", "forward and backward; trained tensors and scores stay fp32"


def state(backbone: Backbone) -> tuple[str, str]:
    """A hash over every byte of the model, and its fingerprint."""
    digest = hashlib.sha256()
    for name, tensor in backbone.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest(), fingerprint(backbone.base)
