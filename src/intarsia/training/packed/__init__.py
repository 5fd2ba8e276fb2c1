"""The fast path of training: the rows of many members in one pass of the model, without padding, in one shape.

A step is a pass of K members, each with its own rows in S columns, over tensors (K, ...): forward, backward, clipping and AdamW
are a fixed list of kernels, which a GPU replays as one CUDA graph.
"""

from intarsia.training.packed.choice import arranged, assign, packable

__all__ = ["arranged", "assign", "packable"]
