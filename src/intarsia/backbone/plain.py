"""Modules of a backbone whose computation is one that torch has a kernel for.

transformers' RMSNorms and its GELU by tanh are half a dozen kernels each, and keep what is between them for gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from intarsia.backbone.rotary import know_rotary
from intarsia.sites import Role, Site

if TYPE_CHECKING:
    from intarsia.backbone.backbone import Backbone


class Plain(NamedTuple):
    """What was found in one backbone."""

    norms: tuple[tuple[Site, Any], ...]
    """Those that are n(x) times their weight, plus their bias, and nothing else; some add 1 to their weight."""
    own: tuple[tuple[nn.Module, Callable[[Tensor], Tensor]], ...]
    """RMSNorms and activations, and the kernel that computes the same."""
    activations: tuple[tuple[nn.Module, str], ...]
    """Those of feed-forwards, by their names in ops.ACTIVATIONS."""


def find_plain(backbone: Backbone) -> Plain:
    """Tries every RMSNorm, which waits for the device: not to be done while a graph is captured. Sees to it, too, that attentions
    turn their queries and keys at once (`rotary`)."""
    from transformers.activations import FastGELUActivation, GELUActivation, GELUTanh, NewGELUActivation, SiLUActivation

    for site in (site for site in backbone.sites if site.role is Role.KV):
        know_rotary(backbone.base.get_submodule(site.module))
    norms = tuple(_norms(backbone))
    bent = dict.fromkeys((FastGELUActivation, NewGELUActivation), "gelu_new")
    names = {GELUActivation: "gelu", SiLUActivation: "silu", nn.SiLU: "silu", GELUTanh: "gelu_new", **bent}
    activations = [(module, names[type(module)]) for module in backbone.base.modules() if type(module) in names]
    return Plain(
        norms,
        (
            *((norm, partial(_rms_norm, norm, site.eps)) for site, norm in norms if site.parameter == "rms"),
            *(
                (module, partial(nn.functional.gelu, approximate="tanh"))
                for module, _ in activations
                if type(module) in bent
            ),
        ),
        tuple(activations),
    )


def _norms(backbone: Backbone) -> Iterator[tuple[Site, Any]]:
    """RMSNorms in half precision only: in float64 transformers' compute in fp32, and whoever replaces one would differ."""
    half = backbone.dtype in (torch.bfloat16, torch.float16)
    for site in (site for site in backbone.sites if site.role is Role.NORM):
        module: Any = backbone.base.get_submodule(site.module)
        if type(module) is nn.LayerNorm:
            if module.elementwise_affine:
                yield site, module
        elif half and site.parameter == "rms" and getattr(module, "weight", None) is not None:
            weight = module.weight.float()
            probe = torch.linspace(-2, 3, len(weight), device=weight.device)
            with torch.no_grad():
                theirs = copy.deepcopy(module).float().forward(probe)  # past the hooks, which have tasks behind them
            if torch.allclose(theirs, nn.functional.rms_norm(probe, weight.shape, weight, site.eps), rtol=1e-5):
                yield site, module


def _rms_norm(norm: Any, eps: float, hidden_states: Tensor) -> Tensor:
    return nn.functional.rms_norm(hidden_states, norm.weight.shape, norm.weight, eps)
