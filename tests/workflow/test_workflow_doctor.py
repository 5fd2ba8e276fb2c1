"""The doctor finds what is wrong, and says why a method that is well cannot pass."""

import pytest
import torch

from intarsia.backbone import Backbone
from intarsia.bank import TaskBank
from intarsia.methods import method_from_dict
from intarsia.workflow import checks, doctor, row_checks
from intarsia.workflow.patient import Patient, tokens

PROMPTS = (
    {"name": "prefix", "length": 4, "mid": 8},
    {"name": "prefix", "length": 4, "position_offset": True},
    {"name": "ptuning-v2", "length": 4},
    {"name": "prompt", "length": 4},
    {"name": "prompt", "length": 4, "place": "end"},
    {"name": "ptuning", "length": 4, "encoder": "lstm", "place": "template"},
)


def outcome(findings, check):
    return next((f.status, f.reason) for f in findings if f.check == check)


@pytest.mark.parametrize("method", ["adapter", {"name": "adapter", "parallel": True, "scale": "learned"}, "lora"])
def test_a_healthy_method_passes_all(backbone, method):
    assert {f.status for f in doctor.examine(str(backbone), [method], device="cpu")} == {"pass"}


def test_the_paper_start_is_no_identity_and_says_so(backbone):
    method = {"name": "adapter", "init_up": "normal", "init_std": 0.5}
    status, reason = outcome(list(doctor.examine(str(backbone), [method], device="cpu")), "a new task is the identity")
    assert status == "not supported"
    assert "as in the paper" in reason


def test_a_method_that_does_not_fit_is_a_finding(backbone):
    (finding, *_) = doctor.examine(str(backbone), [{"name": "top-layers", "k": 9}], device="cpu")
    assert (finding.check, finding.status) == ("fits this backbone", "fail")
    assert "TopLayers.k is 9" in finding.reason


@pytest.mark.parametrize("family", ["backbone", "decoder", "encoder_decoder"])
@pytest.mark.parametrize("method", PROMPTS, ids=lambda method: "-".join(map(str, method.values())))
def test_prompts_and_prefixes_are_well_on_every_sort_of_backbone(request, family, method):
    folder = request.getfixturevalue(family)
    findings = list(doctor.examine(str(folder), [method], device="cpu"))
    assert not [f for f in findings if f.status == "fail"]
    assert outcome(findings, "a row does not depend on its neighbours")[0] == "pass"
    wanted = "not supported" if method.get("place") == "template" else "pass"
    assert outcome(findings, "the virtual tokens change every row")[0] == wanted
    checked = [f.check for f in findings]
    assert ("cached decoding equals the full forward" in checked) == (family != "backbone")
    assert "a new task is the identity" not in checked


def test_a_prompt_longer_than_the_positions_is_said_to_be(backbone):
    (finding, *_) = doctor.examine(str(backbone), [{"name": "prompt", "length": 30}], device="cpu")
    assert finding.status == "not supported"
    assert "too few for a text of 15 tokens and 30 virtual ones" in finding.reason


def patient(folder, method) -> Patient:
    loaded = Backbone.load(str(folder), dtype="float32", device="cpu")
    return Patient(loaded, method_from_dict({"name": method} if isinstance(method, str) else method), tokens(loaded))


def status(outcome) -> str:
    """Of a check that applies."""
    assert outcome is not None
    return outcome[0]


def test_a_backbone_that_was_changed_is_found(backbone):
    found = patient(backbone, "lora")
    before = checks.state(found.backbone)
    assert checks.unchanged(found, before)[0] == "pass"
    with torch.no_grad():
        next(found.backbone.model.parameters()).view(-1)[0] += 1e-3
    assert checks.unchanged(found, before)[0] == "fail"


def test_a_leak_through_padding_is_found(backbone, monkeypatch):
    found = patient(backbone, "adapter")
    features = found.backbone.features
    assert row_checks.padding(found)[0] == row_checks.padding_side(found)[0] == "pass"
    monkeypatch.setattr(
        found.backbone, "features", lambda batch: features({k: v for k, v in batch.items() if k != "attention_mask"})
    )
    assert row_checks.padding(found)[0] == row_checks.padding_side(found)[0] == "fail"


def test_a_leak_between_rows_is_found(backbone, monkeypatch):
    found = patient(backbone, "adapter")
    features = found.backbone.features

    def leaking(batch):
        states = features(batch)
        return states + states.mean(0, keepdim=True)

    monkeypatch.setattr(found.backbone, "features", leaking)
    assert row_checks.neighbours(found)[0] == "fail"


def test_a_prompt_without_effect_is_found(backbone, monkeypatch):
    found = patient(backbone, {"name": "prompt", "length": 4})
    assert status(row_checks.prompt_works(found)) == "pass"
    monkeypatch.setattr(TaskBank, "__call__", lambda self, batch, tasks: found.backbone.features(batch))
    assert status(row_checks.prompt_works(found)) == "fail"


def test_decoding_that_forgets_the_prefix_is_found(decoder, monkeypatch):
    found = patient(decoder, {"name": "prefix", "length": 4, "mid": None, "init_std": 2.0})
    assert status(row_checks.cached_decoding(found)) == "pass"
    generate = TaskBank.generate

    def forgetful(self, batch, tasks, decoding):
        return generate(self, batch, (None,) * len(batch["input_ids"]), decoding)

    monkeypatch.setattr(TaskBank, "generate", forgetful)
    assert status(row_checks.cached_decoding(found)) == "fail"


def test_checkpointing_leaves_the_model_as_it_was(decoder):
    found = patient(decoder, "lora")
    before = checks.state(found.backbone)
    assert row_checks.checkpointing(found)[0] == "pass"
    assert not found.backbone.checkpointing
    assert not found.backbone.model.training
    assert checks.unchanged(found, before)[0] == "pass"


def test_a_parameter_without_a_gradient_is_found(backbone):
    found = patient(backbone, "lora")
    found.task.register_parameter("idle", torch.nn.Parameter(torch.ones(1)))
    status, reason = checks.gradients(found)
    assert (status, reason.split()[0]) == ("fail", "idle")
