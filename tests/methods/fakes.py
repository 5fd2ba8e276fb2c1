"""A frozen model that is only a table of numbers: what methods read when they build, without a transformer."""

import torch

from intarsia.sites import Role, Site


def attention(stack, layer, *, cross=False):
    return Site(stack=stack, layer=layer, role=Role.KV, module=f"{stack}.{layer}.attention", width=8, cross=cross)


def layers(stack, count):
    """The residual points, by which methods count layers."""
    return [Site(stack=stack, layer=i, role=Role.ATTN_OUT, module=f"{stack}.{i}.out", width=8) for i in range(count)]


ENCODER = [*layers("encoder", 2), attention("encoder", 0), attention("encoder", 1)]
DECODER = [*layers("decoder", 2), attention("decoder", 0), attention("decoder", 1)]
SEQ2SEQ = [*ENCODER, *DECODER, attention("decoder", 0, cross=True), attention("decoder", 1, cross=True)]
WORDS = Site(stack="", layer=-1, role=Role.EMBED, module="words", width=6)
BLOCK = Site(stack="", layer=-1, role=Role.EMBED_OUT, module="embeddings", width=8)

VOCABULARY = torch.arange(40 * 6, dtype=torch.float32).reshape(40, 6)


class FakePretrained:
    """Layers of different shapes; a text's tokens are its words, and a word's embedding is the row of its length."""

    def __init__(self, shape=None):
        self.shape = shape

    def heads(self, site):
        return self.shape or ((2, 4, 4) if site.layer == 0 else (1, 5, 3))

    def activations(self, text):
        g = torch.Generator().manual_seed(len(text))
        words = len(text.split())
        found = {}
        for site in (site for site in SEQ2SEQ if site.role is Role.KV):
            heads, key, value = self.heads(site)
            # As far from N(0, 1) as a real model's keys.
            found[site.key] = (
                torch.randn(heads, words, key, generator=g) * 7 + 3,
                torch.randn(heads, words, value, generator=g),
            )
        return found

    def embeddings(self, text):
        return VOCABULARY[[len(word) for word in text.split()]]

    def common_embeddings(self, count):
        return VOCABULARY[:count]

    def parameter(self, site):
        raise AssertionError("no prompt reads the weights")


def built(method, available, *, seed=0, labels=(), pretrained=None):
    """The method's new deltas, by their site's key, in a ModuleDict as a task holds them."""
    torch.manual_seed(seed)
    deltas = method.build(method.sites(available), pretrained or FakePretrained(), labels)
    return torch.nn.ModuleDict(deltas)
