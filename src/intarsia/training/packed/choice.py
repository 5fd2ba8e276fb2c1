"""Which members take the fast path, and with whom."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch

from intarsia.backbone import Backbone
from intarsia.data import Arrangement
from intarsia.errors import UnsupportedError
from intarsia.methods import KeyValueDelta
from intarsia.routing import NotByRow
from intarsia.sites import Role
from intarsia.task import Task
from intarsia.training.member import Member
from intarsia.training.packed.stack import form_of
from intarsia.training.packed.stepper import PackedStepper
from intarsia.training.reusing import Trunks
from intarsia.training.settings import TrainSettings
from intarsia.training.steppers import PlainStepper, Stepper

Say = Callable[[str], None]


def packable(task: Task, backbone: Backbone, settings: TrainSettings) -> str | None:
    """Why a task's training cannot have the fast path, in a few words; None: it can."""
    if backbone.device.type != "cuda":
        return "the device is no GPU"
    sites = [site for site in backbone.sites if site.role is Role.KV]
    reasons = {
        "the backbone does not compute in half precision": backbone.dtype not in (torch.bfloat16, torch.float16),
        "the backbone is an encoder-decoder": backbone.kind == "encoder-decoder",
        "the backbone does not call transformers' attention interface, or reads no tokens": not sites
        or not backbone.family.gives_input_embeddings,
        "the backbone has layers without attention": not backbone.attends_only,
        "the backbone has experts, to whom ever other tokens go": backbone.has_experts,
        "gradient checkpointing is on": backbone.checkpointing,
        "dropout in the backbone is on": bool(settings.backbone_dropout) and backbone.drops,
        "the optimizer is not adamw": settings.optimizer != "adamw",
    }
    return next((why for why, holds in reasons.items() if holds), None) or _task_reason(task, len(sites))


def _task_reason(task: Task, attentions: int) -> str | None:
    """Why this task cannot, on any backbone."""
    prefixes = [delta for delta in task.deltas.values() if isinstance(delta, KeyValueDelta)]
    dropout = getattr(task.method, "dropout", 0.0) if dataclasses.is_dataclass(task.method) else 0.0
    reasons = {
        "it has dropout of its own": bool(dropout),
        "it answers with a verbaliser": bool(task.words),
        "its prompt goes behind the embedding block": any(s.role is Role.EMBED_OUT for s in task.sites.values()),
        "its prefix leaves out layers": 0 < len(prefixes) < attentions,
    }
    return next((why for why, holds in reasons.items() if holds), None)


def arranged(asked: str, task: Task, backbone: Backbone, settings: TrainSettings) -> Arrangement:
    """What `TrainSettings.batches` means here."""
    if asked != "auto":
        return asked  # type: ignore[return-value]
    return "balanced" if packable(task, backbone, settings) is None else "like"


def assign(members: Sequence[Member], say: Say, trunks: Trunks) -> Sequence[Stepper]:
    """Packed steppers for those that can, as many together as the device's memory takes; the others one by one.

    say: is told, in one line, who goes without and why. trunks: what those may reuse.
    """
    alone, groups = [], {}
    for member in members:
        why = packable(member.task, member.bank.backbone, member.settings)
        if why is None and not hasattr(member.source, "flat"):
            why = "its rows come padded"
        if why is None:
            groups.setdefault(_alike(member), []).append(member)
        else:
            if member.device.type == "cuda":
                say(f"{member.name} takes the plain path: {why}")
            alone.append(PlainStepper(member, trunks.of(member)))
    return [*alone, *(stepper for group in groups.values() for stepper in _together(group, say, trunks))]


def _alike(member: Member) -> tuple[object, ...]:
    """Members with the same word here waste little room beside each other."""
    head = member.task.head
    kind = head.kind if head.kind in ("generation", "token-classification") else (head.kind, head.pooling)
    step = member.settings.batch_size * member.settings.accumulate
    mean = float(member.source.encoded.lengths.mean())  # type: ignore[attr-defined]
    form = None if member.bank.mixes else form_of(member.task)
    # One that replaces the backbone's weights shares them with nobody.
    alone = member.name if member.task.alone else None
    return kind, step, round(mean).bit_length(), form, alone


def _together(members: Sequence[Member], say: Say, trunks: Trunks) -> list[Stepper]:
    try:
        return [PackedStepper(members)]
    except torch.OutOfMemoryError:
        pass
    except NotByRow:  # This backbone does not keep a site's rows apart (OPT): each form by itself.
        members[0].bank.mixes = False
        return [*assign(members, say, trunks)]
    except UnsupportedError as error:  # found out by running it
        say(f"{', '.join(member.name for member in members)}: the plain path, since {error}")
        return [PlainStepper(member, trunks.of(member)) for member in members]
    torch.cuda.empty_cache()
    if len(members) == 1:
        say(f"{members[0].name} takes the plain path: a packed step does not fit the device's memory")
        return [PlainStepper(members[0], trunks.of(members[0]))]
    half = len(members) // 2
    say(f"{len(members)} runs at once do not fit the device's memory; trying {half}")
    return [*_together(members[:half], say, trunks), *_together(members[half:], say, trunks)]
