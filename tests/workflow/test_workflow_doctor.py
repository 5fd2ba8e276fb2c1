"""The doctor finds what is wrong, and says why a method that is well cannot pass."""

import pytest
import torch

from intarsia.backbone import Backbone
from intarsia.workflow import doctor


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


def test_a_backbone_that_was_changed_is_found(backbone):
    loaded = Backbone.load(str(backbone), dtype="float32", device="cpu")
    batch = doctor._tokens(loaded)
    before = doctor._bytes(loaded), loaded.fingerprint
    method = doctor.method_from_dict({"name": "lora"})
    patient = doctor.Patient(loaded, method, batch)
    assert doctor._unchanged(patient, before)[0] == "pass"
    with torch.no_grad():
        next(loaded.model.parameters()).view(-1)[0] += 1e-3
    assert doctor._unchanged(patient, before)[0] == "fail"


def test_a_leak_through_padding_is_found(backbone, monkeypatch):
    loaded = Backbone.load(str(backbone), dtype="float32", device="cpu")
    patient = doctor.Patient(loaded, doctor.method_from_dict({"name": "adapter"}), doctor._tokens(loaded))
    assert doctor._padding(patient)[0] == "pass"
    features = loaded.features
    monkeypatch.setattr(
        loaded, "features", lambda batch: features({k: v for k, v in batch.items() if k != "attention_mask"})
    )
    assert doctor._padding(patient)[0] == "fail"


def test_a_parameter_without_a_gradient_is_found(backbone):
    loaded = Backbone.load(str(backbone), dtype="float32", device="cpu")
    patient = doctor.Patient(loaded, doctor.method_from_dict({"name": "lora"}), doctor._tokens(loaded))
    patient.task.register_parameter("idle", torch.nn.Parameter(torch.ones(1)))
    status, reason = doctor._gradients(patient)
    assert (status, reason.split()[0]) == ("fail", "idle")
