"""A self-test of a method on the very backbone that a user has: the properties that everything else relies on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from intarsia.backbone import Backbone
from intarsia.errors import IntarsiaError, UnsupportedError
from intarsia.methods import METHODS, Method, method_from_dict
from intarsia.workflow import checks, row_checks
from intarsia.workflow.patient import Outcome, Patient, Status, tokens

CHECKS: dict[str, Callable[[Patient], Outcome | None]] = {
    "a new task is the identity": checks.identity,
    "the virtual tokens change every row": row_checks.prompt_works,
    "every parameter gets a gradient": checks.gradients,
    "padding changes nothing": row_checks.padding,
    "padding side changes nothing": row_checks.padding_side,
    "a row does not depend on its neighbours": row_checks.neighbours,
    "cached decoding equals the full forward": row_checks.cached_decoding,
    "checkpointing gives equal gradients": row_checks.checkpointing,
    "save and load are bit-equal": checks.save_and_load,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """The outcome of one check of one method."""

    method: str
    check: str
    status: Status
    reason: str


def examine(
    name: str, methods: Sequence[str | Mapping[str, Any]] | None = None, *, device: str = "auto"
) -> Iterator[Finding]:
    """Checks each method (None: all) on the backbone `name`, in fp32 and then in bf16; findings come as they are made.

    Raises ConfigError for an unknown method, BackboneError where the backbone cannot be loaded; any other trouble is a finding.
    """
    chosen = [{"name": m} if isinstance(m, str) else m for m in (methods or list(METHODS))]
    built = [method_from_dict(m) for m in chosen]
    backbone = Backbone.load(name, dtype="float32", device=device)
    batch = tokens(backbone)
    before = checks.state(backbone)
    for method in built:
        yield from _in_fp32(backbone, method, batch, before)
    del backbone
    half = Backbone.load(name, dtype="bfloat16", device=device)
    for method in built:
        yield from _finding(method, "bf16 works", lambda method=method: checks.bf16(Patient(half, method, batch)))


def _in_fp32(
    backbone: Backbone, method: Method, batch: dict[str, Tensor], before: tuple[str, str]
) -> Iterator[Finding]:
    try:
        patient = Patient(backbone, method, batch)
    except IntarsiaError as error:
        status = "not supported" if isinstance(error, UnsupportedError) else "fail"
        yield Finding(method=method.name, check="fits this backbone", status=status, reason=str(error))
        return
    for name, check in CHECKS.items():
        yield from _finding(method, name, lambda check=check: check(patient))
    yield from _finding(method, "the backbone is unchanged", lambda: checks.unchanged(patient, before))


def _finding(method: Method, check: str, run: Callable[[], Outcome | None]) -> Iterator[Finding]:
    """The outcome of a check; nothing where it does not apply."""
    try:
        outcome = run()
    except UnsupportedError as error:
        outcome = "not supported", str(error)
    except (IntarsiaError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, OSError) as error:
        outcome = "fail", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if outcome is not None:
        yield Finding(method=method.name, check=check, status=outcome[0], reason=outcome[1])
