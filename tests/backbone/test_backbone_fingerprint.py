"""Which models count as the same backbone."""

import copy

import pytest
import torch
import transformers as tf

import tiny
from intarsia.backbone import Backbone
from tiny import families


def fingerprint(model):
    return Backbone.wrap(model).fingerprint


@families
def test_fp32_and_bf16_copies_have_one_fingerprint(family):
    model = tiny.build(family)
    exact = fingerprint(copy.deepcopy(model))
    assert fingerprint(model.to(torch.bfloat16)) == exact
    assert len(exact) == 16


CLASSES = ("AutoModel", "AutoModelForSequenceClassification", "AutoModelForTokenClassification", "AutoModelForCausalLM")


@pytest.mark.parametrize("family", [f for f in tiny.FAMILIES if f not in ("vit", "t5", "mt5", "bart", "mbart")])
def test_every_class_that_loads_a_checkpoint_gives_one_fingerprint(family, tmp_path):
    tf.logging.set_verbosity_error()
    tiny.build(family).base_model.save_pretrained(tmp_path)
    found = {}
    for name in CLASSES:
        auto = getattr(tf, name)
        if type(tiny.config(family)) in auto._model_mapping and (family not in tiny.ENCODERS or "Causal" not in name):
            found[name] = fingerprint(auto.from_pretrained(tmp_path))
    assert len(found) >= 2
    assert len(set(found.values())) == 1, found


@pytest.mark.parametrize("family", tiny.SEQ2SEQ)
def test_every_class_of_an_encoder_decoder_gives_one_fingerprint(family, tmp_path):
    tf.logging.set_verbosity_error()
    tiny.build(family, tie_word_embeddings=family != "mt5").save_pretrained(tmp_path)
    names = ("AutoModel", "AutoModelForSeq2SeqLM", "AutoModelForSequenceClassification")
    found = {name: fingerprint(getattr(tf, name).from_pretrained(tmp_path)) for name in names}
    assert len(set(found.values())) == 1, found


@families
@pytest.mark.parametrize("lr", [1e-2, 2e-5])
def test_one_small_step_of_fine_tuning_makes_another_backbone(family, lr):
    model = tiny.build(family)
    before = fingerprint(model)
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    model(**tiny.inputs(family))[0].square().mean().backward()
    optimizer.step()
    assert fingerprint(model) != before


def test_other_weights_and_other_shapes_are_other_backbones():
    found = [
        fingerprint(tiny.build("bert")),
        fingerprint(tiny.build("bert", seed=1)),
        fingerprint(tiny.build("bert", num_hidden_layers=3)),
        fingerprint(tiny.build("roberta")),
    ]
    assert len(set(found)) == 4
    assert fingerprint(tiny.build("bert")) == found[0]


def test_a_fingerprint_does_not_depend_on_being_frozen_or_hooked():
    model = tiny.build("bert")
    backbone = Backbone.wrap(model)
    backbone.hook(next(s for s in backbone.sites if s.role == "ffn_out"), lambda _x, y: y + 1)
    assert fingerprint(model) == backbone.fingerprint
