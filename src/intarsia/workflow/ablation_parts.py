"""Tasks without some of their modules: nothing is trained, and the tensors that stay are shared."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from intarsia.backbone import Backbone
from intarsia.methods import EmbeddingDelta, KeyValueDelta, WeightDelta
from intarsia.methods.prefix_deltas import PrefixDelta
from intarsia.methods.prompt import PromptDelta
from intarsia.sites import Role, Site
from intarsia.task import Task

MOST_BLOCKS = 12
"""Rows of the heat map; deeper stacks are cut into blocks of layers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dropped:
    """Layers without modules."""

    first: int
    layers: int
    """How many, from the first on."""
    score: float
    speed: float | None
    """Rows a second while answering, over those with all modules; None where it was not measured."""


@dataclass(kw_only=True, slots=True)
class Stack:
    """Of one stack of the backbone."""

    name: str
    depth: int
    first: bool
    """Whether what stands before any layer belongs to it."""
    single: list[float] = field(default_factory=list)
    """By layer: the score without that layer's modules."""
    blocks: list[tuple[int, int]] = field(default_factory=list)
    """First and last layer of each row of the heat map."""
    spans: dict[tuple[int, int], float] = field(default_factory=dict)
    """(first, last) layer -> the score without the modules in between, both ends included."""
    dropped: list[Dropped] = field(default_factory=list)
    """The bottom n layers, for every n."""
    can_go: int = 0
    """Bottom layers that can be left out within the tolerance."""
    widest: Dropped | None = None
    """The longest span anywhere that can, the best of equally long ones."""


def without(task: Task, gone: Callable[[Site], bool]) -> Task:
    """The task without its modules at these sites; it shares the tensors of the others."""
    kept = {key: site for key, site in task.sites.items() if not gone(site)}
    return _with(task, {key: delta for key in kept if (delta := task.delta(key)) is not None}, kept)


def shortened(task: Task, length: int) -> Task:
    """The task with the first `length` of its virtual tokens; 0: with none."""
    if length == 0:
        return without(task, lambda site: isinstance(task.delta(site.key), EmbeddingDelta | KeyValueDelta))
    deltas: dict[str, nn.Module] = {}
    for key in task.sites:
        delta = task.delta(key)
        if isinstance(delta, PrefixDelta):
            key_part, value = delta.key[:, :, :length], delta.value[:, :, :length]
            deltas[key] = PrefixDelta(key_part, value, offset=delta.offset)
        elif isinstance(delta, PromptDelta):
            deltas[key] = PromptDelta(delta.prompt[:, :length], place=delta.place)
        elif delta is not None:
            deltas[key] = delta
    return _with(task, deltas, task.sites)


def _with(task: Task, deltas: dict[str, Any], sites: dict[str, Site]) -> Task:
    made = copy.copy(task)
    made._modules = dict(task._modules)
    made.deltas = nn.ModuleDict({key.replace(".", ":"): delta for key, delta in deltas.items()})
    made.sites = dict(sites)
    made.offset = max((d.length for d in deltas.values() if isinstance(d, KeyValueDelta) and d.offset), default=0)
    made.alone = any(isinstance(delta, WeightDelta) for delta in deltas.values())
    # A task without a single parameter that asks for gradients would be taken for a stored one.
    return made.requires_grad_(True)


def stacks_of(task: Task, backbone: Backbone) -> list[Stack]:
    """The stacks in whose layers the task has modules."""
    found = []
    own = [site for key, site in task.sites.items() if task.delta(key) is not None]
    for name in ("encoder", "decoder"):
        layers = [site.layer for site in backbone.sites if site.stack == name and site.role is Role.ATTN_OUT]
        depth = 1 + max(layers, default=-1)
        if any(site.stack == name and site.layer < depth for site in own):
            step = math.ceil(depth / MOST_BLOCKS)
            blocks = [(at, min(at + step, depth) - 1) for at in range(0, depth, step)]
            found.append(Stack(name=name, depth=depth, first=name == backbone.kind or name == "encoder", blocks=blocks))
    return found


def _layer(site: Site, stack: Stack) -> int | None:
    """Of a site in this stack; before layer 0 is layer 0, behind the last is none. A prompt is in no layer."""
    if site.role in (Role.EMBED, Role.EMBED_OUT) or site.layer >= stack.depth:
        return None
    if site.stack == stack.name or (site.stack == "" and site.layer < 0 and stack.first):
        return max(0, site.layer)
    return None


def between(task: Task, stack: Stack, first: int, last: int) -> Task:
    """The task without the modules of layers first to last of a stack."""

    def gone(site: Site) -> bool:
        layer = _layer(site, stack)
        return layer is not None and first <= layer <= last

    return without(task, gone)


def length_of(task: Task) -> int:
    """Virtual tokens of the task; 0 where it has none, or they stand in a template."""
    lengths = [
        delta.length
        for key in task.sites
        if isinstance(delta := task.delta(key), PrefixDelta | PromptDelta) and getattr(delta, "place", "") != "template"
    ]
    return max(lengths, default=0)


def lengths_to_try(task: Task) -> list[int]:
    """Which lengths are tried: 0, 1, 2, 5, 10, 20, 50 ... and all."""
    whole = length_of(task)
    tried = [factor * 10**power for power in range(5) for factor in (1, 2, 5)]
    return sorted({0, whole, *(length for length in tried if length < whole)}) if whole else []
