"""Passes of mixed rows as CUDA graphs: all rows one behind the other, without padding, each with its own task's tensors.

What differs from batch to batch (tokens, where rows begin, where their tasks lie) is numbers in tensors that stay where they are;
so one graph serves all batches of about one size whose tasks have the same forms, and the host sends one launch instead of
several hundred. Graphs are made when they are first wanted, in a tenth of a second each; `TaskBank.ahead` makes the usual ones
before.
"""

from intarsia.graphs.ahead import usual_batches
from intarsia.graphs.graphs import MOST, Graphs
from intarsia.graphs.layout import Packed, pack, pack_rows
from intarsia.graphs.sizes import LONGEST

__all__ = ["LONGEST", "MOST", "Graphs", "Packed", "pack", "pack_rows", "usual_batches"]
