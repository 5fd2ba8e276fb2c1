"""What `intarsia inspect` shows, as plain JSON values."""

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from intarsia import taskfile
from intarsia.backbone import Backbone
from intarsia.backbone.reading import Pretrained
from intarsia.errors import IntarsiaError
from intarsia.sites import Role

NEAREST = 3
"""Words shown for each virtual token."""


def describe_task(folder: Path) -> dict[str, Any]:
    """A task folder, read in full (the content hash is checked). Its backbone is needed for the words of a prompt alone."""
    description, tensors = taskfile.read(folder)
    prompt = next((x for name, x in tensors.items() if name.startswith(f"{Role.EMBED}/")), None)
    files = {name: (folder / name).stat().st_size for name in (taskfile.TENSORS, taskfile.DESCRIPTION)}
    return {
        "kind": "task",
        "name": description["name"],
        "backbone": description["backbone"],
        "method": description["method"],
        "head": description["head"],
        "metrics": description["metrics"],
        "data": description["data"],
        "content": description["content"],
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "bytes": sum(files.values()),
        "tensors": {
            name: {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
            for name, tensor in sorted(tensors.items())
        },
        **({} if prompt is None else _words(prompt, str(description["backbone"].get("name")))),
    }


def _words(prompt: Tensor, name: str) -> dict[str, Any]:
    """For each virtual token the nearest words (Lester et al. 2021, section 7); or why they cannot be shown."""
    try:
        backbone = Backbone.load(name, dtype="float32", device="cpu")
        words = nearest_words(prompt[0], Pretrained(backbone).vocabulary_embeddings(), backbone.tokenizer)
    except IntarsiaError as error:
        return {"words": None, "words_missing": str(error)}
    return {"words": words}


def nearest_words(
    prompt: Tensor, vocabulary: Tensor, tokenizer: Any, count: int = NEAREST
) -> list[list[dict[str, Any]]]:
    """prompt: (P, E), vocabulary: (V, E). For each virtual token the `count` tokens of the highest cosine, best first."""
    unit = torch.nn.functional.normalize
    cosines, ids = (unit(prompt.float(), dim=-1) @ unit(vocabulary, dim=-1).T).topk(min(count, len(vocabulary)))
    return [
        [
            {"word": word, "cosine": round(cosine, 4)}
            for word, cosine in zip(tokenizer.convert_ids_to_tokens(row), near, strict=True)
        ]
        for row, near in zip(ids.tolist(), cosines.tolist(), strict=True)
    ]


def describe_backbone(name: str) -> dict[str, Any]:
    """A backbone's family, sizes, fingerprint and sites; it is loaded for that, on the CPU in fp32."""
    backbone = Backbone.load(name, dtype="float32", device="cpu")
    return {
        "kind": "backbone",
        "name": backbone.name,
        "model_type": backbone.config.model_type,
        "stacks": backbone.kind,
        "hidden": backbone.hidden,
        "max_length": backbone.max_length,
        "parameters": backbone.parameter_count(),
        "fingerprint": backbone.fingerprint,
        "roles": dict(Counter(site.role.value for site in backbone.sites)),
        "sites": [
            {"key": site.key, "module": site.module, "role": site.role.value, "width": site.width}
            for site in backbone.sites
        ],
    }


def describe(target: str) -> dict[str, Any]:
    """A task folder where there is a task.json, else a backbone."""
    folder = Path(target)
    is_task = (folder / taskfile.DESCRIPTION).exists() or (folder / taskfile.TENSORS).exists()
    return describe_task(folder) if is_task else describe_backbone(target)
