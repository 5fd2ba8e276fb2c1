"""Who takes the packed path, with whom, and what happens where it does not fit."""

import pytest
import torch
from test_packed import LABELS, MEAN, METHODS, backbone_of, members_of, pack

import tiny
from intarsia.backbone import Backbone
from intarsia.errors import UnsupportedError
from intarsia.heads import Head
from intarsia.methods import FullFineTuning, LoRA, PrefixTuning, PromptTuning
from intarsia.task import Task
from intarsia.training import TrainSettings, loop
from intarsia.training.packed import choice
from intarsia.training.packed.stepper import PackedStepper
from intarsia.training.reusing import Trunks
from intarsia.training.steppers import PlainStepper

QUIET = TrainSettings()


@pytest.fixture
def _gpu(monkeypatch):
    """As on a GPU, whatever the device."""
    whole = choice.packable

    class Device:
        type = "cuda"

    def there(task, backbone, settings):
        class Seen:
            device, dtype = Device, torch.bfloat16

            def __getattr__(self, name):
                return getattr(backbone, name)

        return whole(task, Seen(), settings)

    monkeypatch.setattr(choice, "packable", there)


def reason(family, method, settings=QUIET, head=MEAN):
    backbone = Backbone.wrap(tiny.build(family))
    return choice.packable(Task.new("t", backbone, method, head), backbone, settings)


def test_on_a_cpu_nobody_is_packed():
    assert reason("bert", LoRA()) == "the device is no GPU"


@pytest.mark.usefixtures("_gpu")
@pytest.mark.parametrize(
    ("family", "method", "settings", "why"),
    [
        ("bert", LoRA(), QUIET, None),
        ("llama", PrefixTuning(length=2, mid=4), QUIET, None),
        ("t5", LoRA(), QUIET, "encoder-decoder"),
        ("bert", FullFineTuning(), QUIET, None),
        ("bert", LoRA(dropout=0.1), QUIET, "dropout of its own"),
        ("bert", LoRA(), TrainSettings(backbone_dropout=True), "dropout in the backbone"),
        ("llama", FullFineTuning(), TrainSettings(backbone_dropout=True), None),
        ("bert", PromptTuning(init="uniform"), TrainSettings(optimizer="adafactor"), "adamw"),
        ("bert", PromptTuning(init="uniform", insert_at="embedding_output"), QUIET, "behind the embedding block"),
        ("bert", PrefixTuning(length=2, mid=4, leave_out=(0,)), QUIET, "leaves out layers"),
    ],
)
def test_who_can_and_why_not(family, method, settings, why):
    head = MEAN if family == "bert" else Head(labels=LABELS, pooling="last")
    found = reason(family, method, settings, head)
    assert found is None if why is None else why in found


@pytest.mark.usefixtures("_gpu")
def test_those_that_cannot_are_told_and_trained_all_the_same(tmp_path, monkeypatch):
    heads = [MEAN] * 3
    bank, entries = pack(backbone_of("bert"), [METHODS["lora"], LoRA(dropout=0.1), METHODS["lora"]], heads, tmp_path)
    said = []
    steppers = choice.assign(members_of(bank, entries), said.append, Trunks())
    assert [type(stepper) for stepper in steppers] == [PlainStepper, PackedStepper]
    assert [member.name for member in steppers[1].members] == ["t0", "t2"]


@pytest.mark.usefixtures("_gpu")
def test_who_trains_the_backbones_own_weights_has_a_pass_alone(tmp_path):
    methods = [METHODS["lora"], FullFineTuning(), METHODS["lora"], FullFineTuning()]
    bank, entries = pack(backbone_of("bert"), methods, [MEAN] * 4, tmp_path)
    steppers = choice.assign(members_of(bank, entries), pytest.fail, Trunks())
    assert sorted([member.name for member in stepper.members] for stepper in steppers) == [["t0", "t2"], ["t1"], ["t3"]]


def test_a_pack_that_does_not_fit_is_halved_until_it_does(tmp_path, monkeypatch):
    bank, entries = pack(backbone_of("bert"), [METHODS["lora"]] * 5, [MEAN] * 5, tmp_path)
    made = PackedStepper.__init__

    def small(self, members):
        if len(members) > 2:
            raise torch.OutOfMemoryError("too many")
        made(self, members)

    monkeypatch.setattr(PackedStepper, "__init__", small)
    said = []
    steppers = choice._together(members_of(bank, entries), said.append, Trunks())
    assert [len(stepper.members) for stepper in steppers] == [2, 1, 2]
    assert said[0] == "5 runs at once do not fit the device's memory; trying 2"


def test_what_turns_out_to_be_unsupported_goes_the_plain_way(tmp_path, monkeypatch):
    bank, entries = pack(
        backbone_of("mistral", sliding_window=3), [METHODS["prefix"]], [Head(labels=LABELS, pooling="last")], tmp_path
    )
    (member,) = members_of(bank, entries)
    stepper = PackedStepper([member])
    with pytest.raises(UnsupportedError, match="sliding window"):
        stepper.step()
    stepper.close()

    def refuses(self, members):
        raise UnsupportedError("packed rows do not know a sliding window")

    monkeypatch.setattr(PackedStepper, "__init__", refuses)
    said = []
    (plain,) = choice._together([member], said.append, Trunks())
    assert isinstance(plain, PlainStepper)
    assert "sliding window" in said[0]
    assert loop.fit_pack(bank, []) == {}
