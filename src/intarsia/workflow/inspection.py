"""What `intarsia inspect` shows, as plain JSON values."""

from collections import Counter
from pathlib import Path
from typing import Any

from intarsia import taskfile
from intarsia.backbone import Backbone


def describe_task(folder: Path) -> dict[str, Any]:
    """A task folder, read in full (the content hash is checked) without its backbone."""
    description, tensors = taskfile.read(folder)
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
    }


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
