"""What the inspection measures of a model that it does not know: by running it, and not by its names."""

import pytest
import torch
import transformers as tf
from test_backbone_inspection import _ENCODER, model_of

from intarsia.backbone import Backbone
from intarsia.errors import UnsupportedError
from intarsia.methods import PromptTuning, PTuning
from intarsia.sites import Role
from intarsia.task import Task


def test_prompts_are_refused_where_input_embeddings_stand_for_the_whole_embedding_block():
    # They would have no positions, nor would the rows beside them.
    backbone = Backbone.wrap(model_of("esm"))
    for method in (PromptTuning(length=3, init="uniform"), PTuning(length=3)):
        with pytest.raises(UnsupportedError, match="taken in place of tokens, which this backbone does not have"):
            Task.new("t", backbone, method)


def test_a_model_whose_base_is_its_language_model_is_refused():
    config = tf.Llama4TextConfig(**{**_ENCODER, "head_dim": 8, "num_key_value_heads": 2, "num_local_experts": 2})
    with pytest.raises(UnsupportedError, match="gives no states"):
        Backbone.wrap(tf.Llama4ForCausalLM(config).eval())


def test_a_model_in_training_mode_is_inspected_without_its_dropout():
    config = tf.BertGenerationConfig(**_ENCODER, is_decoder=True, bos_token_id=1, eos_token_id=2)
    assert Backbone.wrap(tf.BertGenerationEncoder(config)).kind == "decoder"


def test_the_one_stack_of_a_model_may_have_any_name():
    # A causal model whose path says "encoder": what lies behind its layers is its own all the same.
    config = tf.BertGenerationConfig(**_ENCODER, is_decoder=True, bos_token_id=1, eos_token_id=2)
    model = tf.BertGenerationEncoder(config).eval()
    model.encoder.end = torch.nn.LayerNorm(32)
    backbone = Backbone.wrap(model)
    assert backbone.kind == "decoder"
    behind = next(site for site in backbone.sites if site.module == "encoder.end" and site.role is Role.NORM)
    assert (behind.stack, behind.layer) == ("decoder", 2)
