"""Frozen backbones: loading, the family table, the sites, the hooks."""

from intarsia.backbone.backbone import Backbone
from intarsia.backbone.families import FAMILIES, Attention, Family, FeedForward, Stack

__all__ = ["FAMILIES", "Attention", "Backbone", "Family", "FeedForward", "Stack"]
