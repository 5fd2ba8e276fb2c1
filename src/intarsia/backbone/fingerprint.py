"""What a backbone is, as a short text: tasks are refused on any other."""

import hashlib

import torch
from torch import Tensor, nn

SAMPLES = 256
"""Values taken of each tensor: a fine-tuned sibling moves nearly all of them, and hashing all of a large model takes minutes."""


def dense(tensor: Tensor) -> Tensor:
    """A parameter as a plain tensor: a quantised one (torchao's are subclasses) is multiplied out."""
    return tensor.detach() if type(tensor) in (Tensor, nn.Parameter) else tensor.detach().dequantize()


def fingerprint(base: nn.Module) -> str:
    """16 hex digits from the names, shapes and sampled values of the backbone without its head and pooler.

    Values are rounded to bfloat16 first, so that the same checkpoint loaded in fp32 and in bf16 has one fingerprint.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(base.state_dict().items()):
        if "pooler." in name or name.startswith("lm_head.") or not isinstance(tensor, Tensor):
            continue  # a pooler is there or not, depending on the class that the same checkpoint was loaded with
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        flat = dense(tensor).flatten()
        step = max(1, flat.numel() // SAMPLES)
        sample = flat[::step][: SAMPLES + 1]
        if sample.is_floating_point():
            sample = sample.to("cpu", torch.bfloat16).view(torch.int16)
        digest.update(sample.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
