"""The model as its owner calls it, with tasks on it: positions, tuples, other attention, calls that failed."""

import pytest
import torch

import tiny
from intarsia.bank import TaskBank
from intarsia.errors import ConfigError
from intarsia.methods import PrefixTuning, PromptTuning
from intarsia.task import Task
from methods.every import stir, wrap

CLOSE = {"rtol": 0, "atol": 1e-5}


def prompted(family, *, name="prompt", **settings):
    """A backbone with an active prompt of three virtual tokens; the bank."""
    backbone = wrap(family)
    task = stir(Task.new(name, backbone, PromptTuning(length=3, init="uniform", **settings))).eval()
    bank = TaskBank(backbone, [task])
    bank.activate(name)
    return backbone, bank


def test_after_a_call_that_failed_the_next_one_has_no_prompt_that_was_not_asked_for():
    backbone, bank = prompted("vit")
    images = tiny.inputs("vit")
    with torch.no_grad():
        bank.activate(None)
        plain = backbone.features(images)
        with pytest.raises(ValueError, match="image size"):
            bank({"pixel_values": torch.zeros(3, 3, 20, 20)}, tasks="prompt")
        assert torch.equal(backbone.features(images), plain)


MASKS = {"4d": torch.ones(3, 1, 7, 7), "by sort of layer": {"full_attention": torch.ones(3, 1, 7, 7)}}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    ("family", "where"), [("bert", "word_embeddings"), ("gpt2", "word_embeddings"), ("bert", "embedding_output")]
)
def test_a_mask_of_who_sees_whom_has_no_column_for_a_prompt(family, where, mask):
    backbone, _ = prompted(family, insert_at=where)
    with pytest.raises(ConfigError, match=r"attention_mask must say of each token whether it is one, \[3, 7\]; got"):
        backbone.model(input_ids=tiny.inputs("bert")["input_ids"], attention_mask=MASKS[mask])


@pytest.mark.parametrize("place", ["start", "after-first", "end"])
@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_a_callers_own_positions_count_beside_a_prompt(family, place):
    backbone, bank = prompted(family, place=place)
    batch = tiny.inputs(family)
    counted = torch.arange(7)[None] + backbone.first_position
    with torch.no_grad():
        usual = bank(batch, tasks="prompt")
        torch.testing.assert_close(bank({**batch, "position_ids": counted}, tasks="prompt"), usual)
        # The same tokens in another order, each with its own position: nothing but the order of the states changes.
        if family != "gpt2":
            turned = torch.tensor([0, 2, 1, 3, 5, 4, 6])
            other = {name: tensor[:, turned] for name, tensor in batch.items()}
            states = bank({**other, "position_ids": counted[:, turned].expand(3, -1)}, tasks="prompt")
            torch.testing.assert_close(states, usual[:, turned], **CLOSE)
        moved = bank({**batch, "position_ids": (counted + torch.arange(7) // 3).expand(3, -1)}, tasks="prompt")
        assert (moved - usual).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["bert", "roberta", "vit", "gpt2"])
def test_a_prompt_leaves_tuples_pooled_and_hidden_states_to_the_caller_as_they_are_without_one(family):
    backbone, bank = prompted(family)
    model, batch = backbone.base, tiny.inputs(family)
    with torch.no_grad():
        usual = model(**batch, output_hidden_states=True)
        states = [usual.last_hidden_state, *usual.hidden_states]
        bank.activate(None)
        plain = model(**batch, output_hidden_states=True)
        assert [own.shape for own in states] == [own.shape for own in (plain.last_hidden_state, *plain.hidden_states)]
        bank.activate("prompt")
        found = model(**batch, return_dict=False)
        assert torch.equal(found[0], usual.last_hidden_state)
        if "pooler_output" in usual:
            assert torch.equal(found[1], usual.pooler_output)


@pytest.mark.parametrize("family", ["bert", "llama", "t5", "gemma3"])
def test_a_prefix_stays_where_the_models_owner_chooses_another_attention(family):
    backbone = wrap(family)
    task = stir(Task.new("prefix", backbone, PrefixTuning(length=3, mid=None, init_std=0.5))).eval()
    bank, batch = TaskBank(backbone, [task]), tiny.inputs(family)
    with torch.no_grad():
        plain, before = backbone.features(batch), bank(batch, tasks="prefix")
        backbone.model.set_attn_implementation("eager")
        torch.testing.assert_close(bank(batch, tasks="prefix"), before, **CLOSE)
        bank.activate("prefix")
        weights = backbone.model(**batch, output_attentions=True)[
            "decoder_attentions" if family == "t5" else "attentions"
        ]
        assert weights[0].shape[-1] == weights[0].shape[-2] + 3
        bank.detach()
        assert backbone.model.config._attn_implementation == "eager"
        torch.testing.assert_close(backbone.features(batch), plain, **CLOSE)
    assert not any(module._forward_pre_hooks for module in backbone.model.modules())
