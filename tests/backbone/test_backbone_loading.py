"""What a loaded backbone holds is what the checkpoint held: nothing is random."""

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

import tiny
from intarsia import Backbone, Head, HeadOnly, Task
from intarsia.errors import BackboneError, ConfigError


def saved_bert(folder, **options):
    model = tf.BertModel(tiny.config("bert"), **options)
    model.save_pretrained(folder)
    return folder


def test_a_checkpoint_without_a_pooler_has_none(tmp_path):
    backbone = Backbone.load(str(saved_bert(tmp_path, add_pooling_layer=False)), dtype="float32", device="cpu")
    assert backbone.base.pooler is None
    with pytest.raises(ConfigError, match="has none; give cls, mean or last"):
        Task.new("probe", backbone, HeadOnly(), Head(labels=("no", "yes"), pooling="pooler"))


def test_a_checkpoint_with_a_pooler_keeps_its_own(tmp_path):
    backbone = Backbone.load(str(saved_bert(tmp_path)), dtype="float32", device="cpu")
    kept = load_file(tmp_path / "model.safetensors")["pooler.dense.weight"]
    assert torch.equal(backbone.base.pooler.dense.weight, kept)


def test_a_checkpoint_that_lacks_a_weight_is_refused_rather_than_filled_with_random_numbers(tmp_path):
    file = saved_bert(tmp_path) / "model.safetensors"
    tensors = load_file(file)
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"lacks 1 tensor\(s\) of BertModel.*layer\.1\.output\.dense\.weight"):
        Backbone.load(str(tmp_path), dtype="float32", device="cpu")


def test_rotary_frequencies_stay_in_fp32_when_the_weights_are_bf16(tmp_path):
    tiny.build("llama").save_pretrained(tmp_path)
    backbone = Backbone.load(str(tmp_path), dtype="bfloat16", device="cpu")
    assert backbone.dtype is torch.bfloat16
    assert {buffer.dtype for name, buffer in backbone.base.named_buffers() if "inv_freq" in name} == {torch.float32}
