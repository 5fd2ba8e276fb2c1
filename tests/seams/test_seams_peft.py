"""peft's own outputs, after its tensors are copied: prefixes and prompts on BERT, GPT-2, Llama (grouped heads) and T5."""

import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, TaskType, get_peft_model

import tiny
from intarsia.backbone import Backbone
from intarsia.bank import TaskBank
from intarsia.methods.prefix import PrefixTuning
from intarsia.methods.prompt import PromptTuning
from intarsia.sites import Role
from intarsia.task import Task
from methods.every import stir
from seams.byhand import Exact, padded

KINDS = {
    "bert": TaskType.FEATURE_EXTRACTION,
    "gpt2": TaskType.CAUSAL_LM,
    "llama": TaskType.CAUSAL_LM,
    "t5": TaskType.SEQ_2_SEQ_LM,
}
LENGTH = 4
# peft asks the model for this property under the name that transformers 5.20 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
CLOSE = {"rtol": 0, "atol": 1e-9}


def peft_model(family, config):
    """peft's model on the tiny float64 one, its vectors large enough to matter."""
    model = tiny.build(family).double()
    if family == "t5":  # peft cannot have heads * d_kv != d_model
        model = tiny.build(family, d_kv=8).double()
    theirs = get_peft_model(model, config(task_type=KINDS[family], num_virtual_tokens=LENGTH)).double().eval()
    encoder = theirs.prompt_encoder["default"]
    stir(encoder, 0.5)
    return theirs, encoder.embedding.weight.detach().clone()


def states(family, model, batch):
    """What it puts out for the tokens, without scores of virtual ones."""
    with torch.no_grad():
        given = {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask", "decoder_input_ids")}
        if family == "bert":
            return model(**given).last_hidden_state
        return model(**given).logits


def ours(family, method, **changes):
    backbone = Backbone.wrap(tiny.build(family, **changes).double())
    return backbone, Task.new("copied", backbone, method).double().eval()


@pytest.mark.parametrize("family", KINDS)
def test_a_prefix_of_pefts_tensors_gives_its_outputs(family):
    with Exact():
        theirs, weight = peft_model(family, PrefixTuningConfig)
        # It has the decoder's own prefix only, and tokens' positions behind it.
        method = PrefixTuning(length=LENGTH, mid=None, position_offset=True, encoder=family == "bert", cross=False)
        backbone, task = ours(family, method, **({"d_kv": 8} if family == "t5" else {}))
        sites = [site for site in task.sites.values() if site.role is Role.KV]
        assert len(sites) == 2
        _, heads, _, width = task.delta(sites[0].key).key.shape
        layers = weight.view(LENGTH, 2 * len(sites), heads, width)
        with torch.no_grad():
            for site in sites:
                delta = task.delta(site.key)
                # Of an encoder-decoder peft doubles the 2L rows and deals them out by fours, self and cross attention to each
                # layer, and drops the cross ones: layer l has rows 4l and 4l + 1, counted round.
                at = (4 if family == "t5" else 2) * site.layer % (2 * len(sites))
                delta.key.copy_(layers[:, at].transpose(0, 1)[None])
                delta.value.copy_(layers[:, at + 1].transpose(0, 1)[None])
        bank = TaskBank(backbone, [task])
        bank.activate("copied")
        for side in ("none", "right"):
            batch = padded(family, 4, side)
            want = states(family, theirs, batch)
            got = states(family, backbone.model, batch)
            real = batch["attention_mask"].bool() if family != "t5" else slice(None)
            torch.testing.assert_close(got[real], want[real], **CLOSE)
            assert (states(family, theirs.get_base_model(), batch)[real] - want[real]).abs().max() > 1e-2


@pytest.mark.parametrize("family", KINDS)
def test_a_prompt_of_pefts_tensors_gives_its_outputs(family):
    with Exact():
        theirs, weight = peft_model(family, PromptTuningConfig)
        backbone, task = ours(
            family, PromptTuning(length=LENGTH, init="uniform"), **({"d_kv": 8} if family == "t5" else {})
        )
        assert len(weight) == (2 * LENGTH if family == "t5" else LENGTH)
        with torch.no_grad():
            task.prompt.prompt.copy_(weight[:LENGTH][None])
        bank = TaskBank(backbone, [task])
        bank.activate("copied")
        for side in ("none", "right"):
            batch = padded(family, 4, side)
            want = states(family, theirs, batch)
            want = want if family == "t5" else want[:, LENGTH:]  # it hands the virtual tokens' states out
            got = states(family, backbone.model, batch)
            real = batch["attention_mask"].bool() if family != "t5" else slice(None)
            torch.testing.assert_close(got[real], want[real], **CLOSE)
