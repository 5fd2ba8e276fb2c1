"""Our attention function on a model while anything wants to go in there, and the model's own before and after."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from intarsia.backbone.attention import EXTEND, OVER, RELATIVE, WATCH, Extend, register
from intarsia.sites import Site


class AttentionSeam:
    """Switches one model to our attention function while anything is hooked there, and back afterwards."""

    def __init__(self, model: Any, base: nn.Module) -> None:
        # cuDNN's attention plans anew for every shape that it meets, for milliseconds, and rows of a batch that want the same thing
        # come in ever other numbers; and while decoding it failed now and then (H100, torch 2.11: "mha_graph.execute").
        torch.backends.cuda.enable_cudnn_sdp(False)
        self.model, self.base = model, base
        self.users = 0
        self.before = ""
        self._watches: list[RemovableHandle] = []

    @property
    def plain(self) -> bool:
        """Whether attention is a softmax of scaled products and a mask: not eager, nor with T5's bias."""
        relative = "relative_attention_num_buckets" in self.base.config.to_dict()  # type: ignore[union-attr]
        return self.model.config._attn_implementation in ("sdpa", OVER["sdpa"]) and not relative

    def extend(self, site: Site, change: Extend) -> "AttentionHook":
        """Puts `change` at a KV site."""
        return AttentionHook(self, self.base.get_submodule(site.module), EXTEND, change, self._table(site))

    @contextmanager
    def watching(self, sites: Sequence[Site], look: Callable[[Site, Tensor, Tensor], None]) -> Iterator[None]:
        """look(site, keys, values) at every attention call of the sites meanwhile."""
        hooks = []
        for site in sites:

            def watch(_module: nn.Module, key: Tensor, value: Tensor, site: Site = site) -> None:
                look(site, key, value)

            hooks.append(AttentionHook(self, self.base.get_submodule(site.module), WATCH, watch, None))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def enter(self) -> None:
        self.users += 1
        if self.users > 1:
            return
        from transformers import PreTrainedModel

        register()
        if self._over():
            models = [module for module in self.model.modules() if isinstance(module, PreTrainedModel)]
            self._watches = [module.register_forward_pre_hook(self._again_over) for module in models]

    def leave(self) -> None:
        self.users -= 1
        if self.users == 0:
            while self._watches:
                self._watches.pop().remove()
            if self._ours:
                self.switch(self.before)

    @property
    def _ours(self) -> bool:
        return self.model.config._attn_implementation.startswith("intarsia")  # also for packed rows

    def _over(self) -> bool:
        """Our function over the one that the model has; whether transformers takes it."""
        self.before = self.model.config._attn_implementation
        self.switch(OVER["eager" if self.before == "eager" else "sdpa"])
        return self._ours

    def _again_over(self, _module: nn.Module, _args: tuple) -> None:
        """Whose model it is may have chosen another attention meanwhile (eager, to see its weights); prefixes go in there too."""
        if not self._ours:
            self._over()

    def switch(self, name: str) -> None:
        """Lets the model call another attention function, by its name."""
        from transformers import PreTrainedModel

        self.model.set_attn_implementation(name)
        if self.model.config._attn_implementation != name:
            return  # transformers refused: this model does not call the interface
        # Before 5.18 or so, stacks with a copy of the config (T5's) were left out.
        for module in self.model.modules():
            if isinstance(module, PreTrainedModel) and module.config._attn_implementation != name:
                module.config._attn_implementation = name

    def _table(self, site: Site) -> nn.Module | None:
        """The attention of the site's stack that holds T5's relative bias: the first layer's; the others get its result."""
        if site.cross:
            return None
        stack = site.module.partition(".")[0]
        for path, module in self.base.named_modules():
            if path.startswith(stack) and getattr(module, "has_relative_attention_bias", False):
                return module
        return None


class AttentionHook:
    """One function at one attention module; several banks may have one there."""

    def __init__(self, seam: AttentionSeam, module: nn.Module, slot: str, call: Any, table: nn.Module | None) -> None:
        self.seam, self.module, self.slot, self.call = seam, module, slot, call
        # Past nn.Module's own __setattr__: the table must not become a submodule here, with keys in the state_dict.
        module.__dict__.setdefault(slot, []).append(call)
        if slot == EXTEND:
            module.__dict__[RELATIVE] = table
        seam.enter()

    def remove(self) -> None:
        """Takes it off; the model is as before."""
        calls = self.module.__dict__[self.slot]
        calls.remove(self.call)
        if not calls:
            del self.module.__dict__[self.slot]
            if self.slot == EXTEND:
                del self.module.__dict__[RELATIVE]
        self.seam.leave()
