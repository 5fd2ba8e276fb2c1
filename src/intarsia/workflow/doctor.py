"""A self-test of a method on the very backbone that a user has: the properties that everything else relies on."""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from intarsia.backbone import Backbone
from intarsia.backbone.fingerprint import fingerprint
from intarsia.bank import TaskBank
from intarsia.errors import ConfigError, IntarsiaError, UnsupportedError
from intarsia.heads import Head
from intarsia.methods import METHODS, Method, method_from_dict
from intarsia.task import Task

Status = Literal["pass", "fail", "not supported"]
TEXTS = ("A short one.", "This sentence is a good deal longer than the one before it.", "Two.")
TOLERANCE = 1e-4
"""Largest difference, relative to the largest value, that rounding in fp32 explains."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """The outcome of one check of one method."""

    method: str
    check: str
    status: Status
    reason: str


@dataclass
class Patient:
    """A method on a backbone, with a batch of texts of unequal length."""

    backbone: Backbone
    method: Method
    batch: dict[str, Tensor]
    task: Task = field(init=False)

    def __post_init__(self) -> None:
        # A tensor at zero can hide its neighbours' gradients and any mistake in saving: here all have moved.
        self.task = Task.new("probe", self.backbone, self.method, Head(labels=("no", "yes"), dropout=0.0))
        g = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for tensor in self.task.parameters():
                noise = torch.randn(tensor.shape, generator=g).to(tensor.device)
                tensor.add_(noise * 0.02 * tensor.abs().mean().clamp(min=0.5))
        self.task.eval()

    def scores(self, task: Task, batch: Mapping[str, Tensor] | None = None) -> Tensor:
        """(B, 2) scores of a task, hooked only for this call."""
        bank = TaskBank(self.backbone, [task])
        try:
            return bank(self.batch if batch is None else batch, tasks=task.name)
        finally:
            bank.detach()


def examine(
    name: str, methods: Sequence[str | Mapping[str, Any]] | None = None, *, device: str = "auto"
) -> Iterator[Finding]:
    """Checks each method (None: all) on the backbone `name`, in fp32 and then in bf16; findings come as they are made.

    Raises ConfigError for an unknown method, BackboneError where the backbone cannot be loaded; any other trouble is a finding.
    """
    chosen = [{"name": m} if isinstance(m, str) else m for m in (methods or list(METHODS))]
    built = [method_from_dict(m) for m in chosen]
    backbone = Backbone.load(name, dtype="float32", device=device)
    batch = _tokens(backbone)
    before = _bytes(backbone), fingerprint(backbone.base)
    for method in built:
        yield from _in_fp32(backbone, method, batch, before)
    del backbone
    half = Backbone.load(name, dtype="bfloat16", device=device)
    for method in built:
        yield _finding(method, "bf16 works", lambda method=method: _bf16(Patient(half, method, batch)))


def _in_fp32(
    backbone: Backbone, method: Method, batch: dict[str, Tensor], before: tuple[str, str]
) -> Iterator[Finding]:
    try:
        patient = Patient(backbone, method, batch)
    except IntarsiaError as error:
        status = "not supported" if isinstance(error, UnsupportedError) else "fail"
        yield Finding(method=method.name, check="fits this backbone", status=status, reason=str(error))
        return
    yield _finding(method, "a new task is the identity", lambda: _identity(patient))
    yield _finding(method, "every parameter gets a gradient", lambda: _gradients(patient))
    yield _finding(method, "padding changes nothing", lambda: _padding(patient))
    yield _finding(method, "save and load are bit-equal", lambda: _save_and_load(patient))
    yield _finding(method, "the backbone is unchanged", lambda: _unchanged(patient, before))


def _finding(method: Method, check: str, run: Callable[[], tuple[Status, str]]) -> Finding:
    try:
        status, reason = run()
    except UnsupportedError as error:
        status, reason = "not supported", str(error)
    except (IntarsiaError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, OSError) as error:
        status, reason = "fail", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return Finding(method=method.name, check=check, status=status, reason=reason)


def _identity(patient: Patient) -> tuple[Status, str]:
    """States of a new task without a head, against those of the plain backbone."""
    task = Task.new("new", patient.backbone, patient.method).eval()
    bank = TaskBank(patient.backbone, [task])
    try:
        with torch.no_grad():
            new = bank(patient.batch, tasks="new")
    finally:
        bank.detach()
    with torch.no_grad():
        difference = _difference(new, patient.backbone.features(patient.batch))
    if difference <= TOLERANCE:
        return "pass", "to the bit" if difference == 0 else f"to {difference:.0e}, rounding"
    if getattr(patient.method, "init_up", "zero") != "zero":
        std = getattr(patient.method, "init_std", 0)
        return (
            "not supported",
            f"the up-projection starts at std {std:g}, as in the paper: states move by {difference:.0e}",
        )
    return "fail", f"states differ by {difference:.0e} of the largest"


def _gradients(patient: Patient) -> tuple[Status, str]:
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


def _padding(patient: Patient) -> tuple[Status, str]:
    with torch.no_grad():
        together = patient.scores(patient.task)
        alone = []
        for row, mask in enumerate(patient.batch["attention_mask"].bool()):
            one = {key: value[row : row + 1, mask] for key, value in patient.batch.items()}
            alone.append(patient.scores(patient.task, one))
    difference = _difference(together, torch.cat(alone))
    if difference <= TOLERANCE:
        return "pass", f"alone and in a padded batch: equal to {difference:.0e}"
    return "fail", f"scores of a row alone and in a padded batch differ by {difference:.0e} of the largest"


def _save_and_load(patient: Patient) -> tuple[Status, str]:
    with tempfile.TemporaryDirectory() as folder:
        patient.task.save(folder)
        loaded = Task.load(folder, patient.backbone)
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
    kept = loaded.tensors()
    if wrong := [name for name, tensor in patient.task.tensors().items() if not torch.equal(tensor, kept[name])]:
        return "fail", f"{wrong[0]} comes back changed ({len(wrong)} tensors)"
    with torch.no_grad():
        if not torch.equal(patient.scores(loaded), patient.scores(patient.task)):
            return "fail", "the tensors are equal, the scores are not"
    return "pass", f"{size / 1e6:.2f} MB"


def _unchanged(patient: Patient, before: tuple[str, str]) -> tuple[Status, str]:
    backbone = patient.backbone
    if (_bytes(backbone), fingerprint(backbone.base)) != before:
        return "fail", "its weights are not what they were"
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in backbone.model.modules())
    if hooks:
        return "fail", f"{hooks} hooks are left on it"
    return "pass", f"fingerprint {before[1]}, every byte of {len(backbone.model.state_dict())} tensors"


def _bf16(patient: Patient) -> tuple[Status, str]:
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


def _tokens(backbone: Backbone) -> dict[str, Tensor]:
    # Only what the model is given in training: some tokenizers return more.
    encoded = backbone.tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    batch = {
        key: encoded[key].to(backbone.device)
        for key in ("input_ids", "attention_mask", "token_type_ids")
        if key in encoded
    }
    if batch["attention_mask"].all():
        raise ConfigError(
            f"the tokenizer of {backbone.name!r} makes equal lengths of unequal texts; is it the model's own?"
        )
    return batch


def _difference(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest value; masked places of states are compared too."""
    return ((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-12)).item()


def _bytes(backbone: Backbone) -> str:
    digest = hashlib.sha256()
    for name, tensor in backbone.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
