"""What a method reads of a frozen model when it builds a task: parameters, shapes, embeddings and activations of words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from intarsia.backbone.fingerprint import dense
from intarsia.errors import ConfigError, UnsupportedError
from intarsia.sites import Role, Site

if TYPE_CHECKING:
    from intarsia.backbone.backbone import Backbone


class Pretrained:
    """`methods.base.Pretrained` of a backbone. Tensors are fp32 on the CPU, besides parameters, which are the model's own."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self._heads: dict[str, tuple[int, int, int]] = {}

    def parameter(self, site: Site) -> Tensor:
        """The present value at a site of Role.WEIGHT. UnsupportedError where it is in 4 bits: no other stands in its place."""
        held = self.backbone.parameter(site)
        if hasattr(held, "quant_state"):
            raise UnsupportedError(
                f"{site.key} is held in 4 bits, and bitsandbytes reads nothing else there; to train the backbone's own weights "
                "load it with another dtype, or train a module"
            )
        return dense(held)

    def heads(self, site: Site) -> tuple[int, int, int]:
        """At a KV site: key-value heads, width of a key, width of a value; measured in a forward pass over four tokens.

        UnsupportedError where attention does not go through transformers' attention interface.
        """
        if not self._heads:

            def look(at: Site, key: Tensor, value: Tensor) -> None:
                self._heads[at.key] = (key.shape[1], key.shape[-1], value.shape[-1])

            with torch.no_grad(), self.backbone.attention.watching(self._kv_sites(), look):
                self.backbone.features(self._probe())
        if site.key not in self._heads:
            raise UnsupportedError(
                f"prefix tuning and P-tuning v2 need a backbone that calls transformers' attention interface, and "
                f"{self.backbone.config.model_type!r} does not. Methods that work on it: adapter, lora, prompt, ptuning, "
                "layer-norm, full, top-layers, head."
            )
        return self._heads[site.key]

    def activations(self, text: str) -> dict[str, tuple[Tensor, Tensor]]:
        """Keys (H, n, D) and values of a text's n tokens at every KV site, by its key; fp32."""
        found: dict[str, tuple[Tensor, Tensor]] = {}

        def look(at: Site, key: Tensor, value: Tensor) -> None:
            found[at.key] = (key[0].float().cpu(), value[0].float().cpu())

        ids = torch.tensor([self._ids(text)])
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.backbone.kind == "encoder-decoder":
            batch["decoder_input_ids"] = ids
        with torch.no_grad(), self.backbone.attention.watching(self._kv_sites(), look):
            self.backbone.features(batch)
        return found

    def embeddings(self, text: str) -> Tensor:
        """(n, E): the embeddings of a text's n tokens, as they leave the embedding module; fp32."""
        return self._embed(self._ids(text))

    def common_embeddings(self, count: int) -> Tensor:
        """(count or fewer, E): of the commonest whole words. Tokenizers number their tokens by frequency, or nearly so."""
        special = set(self.backbone.tokenizer.all_special_ids)
        words = []
        for index in range(len(self.backbone.tokenizer)):
            word = str(self.backbone.tokenizer.convert_ids_to_tokens(index)).lstrip("Ġ▁ ")
            if index not in special and len(word) > 1 and word.isalpha():
                words.append(index)
                if len(words) == count:
                    break
        return self._embed(words)

    def vocabulary_embeddings(self) -> Tensor:
        """(V, E): the whole table, as the embedding module puts it out; fp32."""
        return self._embed(list(range(len(self.backbone.tokenizer))))

    def _ids(self, text: str) -> list[int]:
        ids = self.backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise ConfigError(f"the tokenizer makes no token of the initial text {text!r}; give at least one word")
        return list(ids)  # type: ignore[arg-type]

    def _embed(self, ids: list[int]) -> Tensor:
        with torch.no_grad():
            table: Any = self.backbone.base.get_input_embeddings()  # type: ignore[operator]
            return table(torch.tensor(ids, device=self.backbone.device)).float().cpu()

    def _kv_sites(self) -> list[Site]:
        return [site for site in self.backbone.sites if site.role is Role.KV]

    def _probe(self) -> dict[str, Tensor]:
        """The smallest input that runs through every layer."""
        if self.backbone.family.gives_input_embeddings or not hasattr(self.backbone.config, "image_size"):
            ids = torch.ones(1, 4, dtype=torch.long)
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        size = self.backbone.config.image_size
        return {
            "pixel_values": torch.zeros(1, self.backbone.config.num_channels, size, size, dtype=self.backbone.dtype)
        }
