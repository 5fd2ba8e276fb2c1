"""The hooks through which a delta reaches a frozen module. Forward hooks, not replaced modules: the backbone's state_dict
keys stay as they are, and Linear, Conv1D and quantised linears look alike."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from intarsia.backbone.ending import Ending
from intarsia.errors import ConfigError
from intarsia.ops import Own, Summed, made
from intarsia.sites import Part, Role, Site

Project = Callable[[Tensor, Tensor], Tensor]
"""(x, y) -> y', the change at a projection."""
Norm = Callable[[Tensor | Summed, Own], Tensor | None]
"""(x, the frozen norm) -> y', the whole norm as it is to be; None: it is to be as it was."""
Replace = Callable[[], Tensor | None]
"""() -> the parameter's stand-in for this call, or None to leave it."""


class Removable(Protocol):
    """What a hook leaves behind."""

    def remove(self) -> None:
        """Takes it off."""
        ...


class Hooks:
    """Handles that are removed together."""

    def __init__(self, *handles: Removable) -> None:
        self.handles = handles

    def remove(self) -> None:
        """Takes all of them off; the modules are as before."""
        for handle in self.handles:
            handle.remove()


def first_argument(args: tuple, kwargs: dict) -> Any:
    """A module's input, however its caller spelt it: a Tensor, or a norm's Summed."""
    if args:
        return args[0]
    return kwargs["hidden_states"] if "hidden_states" in kwargs else next(iter(kwargs.values()))


def first_output(y: Any) -> Any:
    """What a module hands on: the first of its outputs, where it has several (experts with their router's scores)."""
    return y[0] if isinstance(y, (tuple, list)) else y


def with_first_output(y: Any, new: Tensor) -> Any:
    """The same outputs with another first one."""
    return (new, *y[1:]) if isinstance(y, (tuple, list)) else new


class WholeNorm:
    """A norm's forward while tasks train it. A change behind the frozen norm's would be passes of its own over the states."""

    def __init__(self, module: nn.Module, site: Site, change: Norm, *, alone: bool = False) -> None:
        """module: computes n(x) times its weight, plus its bias, and nothing else; its forward is its class's. alone: as of an
        ops.Own."""
        self.module, self.site, self.change, self.alone = module, site, change, alone
        self.frozen: Callable[[Tensor], Tensor] = module.forward
        module.__dict__["forward"] = self  # past nn.Module's own __setattr__; the class, hooks and state_dict stay

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """y'"""
        x, module = first_argument(args, kwargs), self.module
        alone = self.alone and not module._forward_hooks and not module._forward_pre_hooks  # which may keep x
        own = Own(module.weight, getattr(module, "bias", None), self.site.eps, self.site.parameter == "layer", alone)  # type: ignore[arg-type]
        y = self.change(x, own)
        return self.frozen(x) if y is None else y

    def remove(self) -> None:
        """The module is as before."""
        del self.module.__dict__["forward"]


@contextmanager
def computing(modules: Sequence[tuple[nn.Module, Callable[[Tensor], Tensor]]]) -> Iterator[None]:
    """Meanwhile each module's own computation is another one; its hooks stay."""
    places = [_forward(module) for module, _ in modules]
    before = [held.get(name) for held, name in places]
    for (held, name), (_, forward) in zip(places, modules, strict=True):
        held[name] = forward
    try:
        yield
    finally:
        for (held, name), own in zip(places, before, strict=True):
            if own is None:
                del held[name]
            else:
                held[name] = own


def _forward(module: nn.Module) -> tuple[dict[str, Any], str]:
    """Where a module's own computation is kept; a trained norm's is behind the tasks'."""
    own = module.__dict__.get("forward")
    return (vars(own), "frozen") if isinstance(own, WholeNorm) else (module.__dict__, "forward")


def at_projection(base: nn.Module, site: Site, change: Project, ending: Ending | None = None) -> Hooks:
    """y <- change(x, y) at every call of the site's module. ending: what may leave tokens out between x and y.

    change may write into y where no gradients are wanted: what a site's module puts out has been made for it alone. (A dropout in
    evaluation puts out its input, but at these places that is what the projection before it has just made.)
    """
    module = base.get_submodule(site.module)
    if site.beside:
        return _at_sum(base, site, change)
    if not site.source:

        def own(_module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
            return _changed(site, made(first_argument(args, kwargs)), output, change)

        # Before the others on this module: where a norm ends a sublayer (Gemma 2), its adapter reads the trained norm.
        return Hooks(module.register_forward_hook(own, with_kwargs=True, prepend=site.role is Role.NORM))

    # x is the input of an earlier module of the same sublayer. It is kept only from there to here, and a recomputation
    # (gradient checkpointing) or a next chunk passes both places again in the same order.
    kept: list[tuple[Tensor, bool]] = []

    def behind() -> bool:
        return ending is not None and ending.met

    def keep(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        kept[:] = [(first_argument(args, kwargs), behind())]

    def later(_module: nn.Module, _args: tuple, output: Any) -> Any:
        x, was_behind = kept.pop()
        if ending is not None and behind() and not was_behind:
            x = ending.at(x)
        return _changed(site, x, output, change)

    source = base.get_submodule(site.source)
    return Hooks(
        source.register_forward_pre_hook(keep, with_kwargs=True),
        module.register_forward_hook(later),
    )


def _at_sum(base: nn.Module, site: Site, change: Project) -> Hooks:
    """y1 + y2 <- change(x, y1 + y2), where the layer itself adds the outputs of two modules; the site's is called last."""
    kept: list[Tensor] = []

    def first(_module: nn.Module, _args: tuple, output: Any) -> None:
        kept[:] = [first_output(output)]

    def last(_module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        y = first_output(output)
        both = kept.pop() + y
        # The difference: where nothing is changed, y stays what it was to the bit.
        return with_first_output(output, y + (change(first_argument(args, kwargs), both.clone()) - both))

    return Hooks(
        base.get_submodule(site.beside).register_forward_hook(first),
        base.get_submodule(site.module).register_forward_hook(last, with_kwargs=True),
    )


def _changed(site: Site, x: Tensor, output: Any, change: Project) -> Any:
    """A module's output, or the first of several, with the change in it."""
    y = made(first_output(output))
    # Llama 4's experts hand on the tokens of all rows in one list, (B * T, D).
    rows = y.unflatten(0, x.shape[:-1]) if y.dim() == 2 < x.dim() else y
    new = _on_part(site.part, x, rows, change)
    return with_first_output(output, new if rows is y else new.flatten(0, 1))


def _on_part(part: Part | None, x: Tensor, y: Tensor, change: Project) -> Tensor:
    """Applies `change` to the columns of a fused projection that belong to the site."""
    if part is None:
        return change(x, y)
    grouped = y.unflatten(-1, (part.groups, -1))
    old = grouped[..., part.start : part.stop]
    own = old.flatten(-2)
    new = change(x, own)
    if not torch.is_grad_enabled():
        if new is not own or part.groups > 1:  # several groups were copied together
            old.copy_(new.unflatten(-1, (part.groups, -1)))
        return y
    new = new.unflatten(-1, (part.groups, -1))
    # slice_scatter wants one axis at a time: the slice is along the last one.
    return grouped.slice_scatter(new, dim=-1, start=part.start, end=part.stop).flatten(-2)


def at_parameter(model: nn.Module, base: nn.Module, site: Site, replace: Replace) -> Hooks:
    """While a module that owns the parameter runs, `replace()` stands in its place; a tied parameter has several owners,
    one of which may be in the model's own head.

    The swap is inside the module's own call, not around the whole forward pass, so that gradient checkpointing, which runs the
    module again during backward, sees the stand-in too.
    """
    parameter = base.get_submodule(site.module)._parameters[site.parameter]
    handles: list[RemovableHandle] = []
    for path, module in model.named_modules():
        for name, value in module._parameters.items():
            if value is parameter:
                # The parent too: some read a child's weight themselves (DeBERTa's table of relative positions).
                parent = model.get_submodule(path.rpartition(".")[0])
                handles += _swap(module, name, {module, parent}, replace)
    return Hooks(*handles)


def _swap(module: nn.Module, name: str, while_running: set[nn.Module], replace: Replace) -> list[RemovableHandle]:
    original = module._parameters[name]
    assert original is not None
    running = 0

    def put(_module: nn.Module, _args: tuple) -> None:
        nonlocal running
        running += 1
        if running == 1 and (new := replace()) is not None:
            if new.shape != original.shape:
                raise ConfigError(
                    f"a task has {name} as {list(new.shape)}, and the model now as {list(original.shape)}; resize embeddings "
                    "before tasks are made"
                )
            module._parameters[name] = new.to(original.dtype)  # type: ignore[assignment]

    def restore(_module: nn.Module, _args: tuple, _y: object) -> None:
        nonlocal running
        running = max(0, running - 1)  # a failing hook before ours leaves us uncounted
        if running == 0:
            module._parameters[name] = original

    # `restore` also after an exception, or the backbone would keep a task's weights.
    return [
        handle
        for caller in while_running
        for handle in (
            caller.register_forward_pre_hook(put),
            caller.register_forward_hook(restore, always_call=True),
        )
    ]
