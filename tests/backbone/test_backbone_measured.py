"""What the inspection measures of a model that it does not know: by running it, and not by its names."""

import pytest
import torch
import transformers as tf

from backbone.unknown import ENCODER, model_of
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


def test_a_language_model_that_calls_itself_its_base_is_taken_by_the_model_in_it():
    config = tf.Llama4TextConfig(**{**ENCODER, "head_dim": 8, "num_key_value_heads": 2, "num_local_experts": 2})
    backbone = Backbone.wrap(tf.Llama4ForCausalLM(config).eval())
    assert backbone.base is backbone.model.model
    assert backbone.language_head is backbone.model.lm_head


def test_a_model_whose_attention_is_beside_another_block_is_refused():
    # What enters the stream beside attention is no part of a feed-forward, though both are silent when it is.
    config = tf.FalconH1Config(
        **{
            **ENCODER,
            "num_key_value_heads": 2,
            "mamba_d_ssm": 64,
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
        }
    )
    with pytest.raises(
        UnsupportedError, match=r"expected a feed-forward 32 -> wide -> 32, found .* in \['mamba', 'feed_forward'\]"
    ):
        Backbone.wrap(tf.FalconH1Model(config).eval())


def test_layers_whose_tokens_are_not_beside_one_another_are_refused():
    # Rows of a batch are told apart by the first axis, which is time in XLNet.
    with pytest.raises(
        UnsupportedError, match=r"expected states of \(1, 4, width\) to enter a layer once, found \(4, 1, 32\)"
    ):
        Backbone.wrap(tf.XLNetModel(tf.XLNetConfig(vocab_size=97, d_model=32, n_layer=2, n_head=4, d_inner=48)).eval())


def test_a_model_in_training_mode_is_inspected_without_its_dropout():
    config = tf.BertGenerationConfig(**ENCODER, is_decoder=True, bos_token_id=1, eos_token_id=2)
    assert Backbone.wrap(tf.BertGenerationEncoder(config)).kind == "decoder"


def test_the_one_stack_of_a_model_may_have_any_name():
    # A causal model whose path says "encoder": what lies behind its layers is its own all the same.
    config = tf.BertGenerationConfig(**ENCODER, is_decoder=True, bos_token_id=1, eos_token_id=2)
    model = tf.BertGenerationEncoder(config).eval()
    model.encoder.end = torch.nn.LayerNorm(32)
    backbone = Backbone.wrap(model)
    assert backbone.kind == "decoder"
    behind = next(site for site in backbone.sites if site.module == "encoder.end" and site.role is Role.NORM)
    assert (behind.stack, behind.layer) == ("decoder", 2)
