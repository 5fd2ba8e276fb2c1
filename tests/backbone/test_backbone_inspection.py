"""Models that the table does not know: inspected, refused with what was found, or given by hand."""

import pytest
import torch
import transformers as tf

from backbone.unknown import CAUSAL, ENCODER, UNKNOWN, batch_of, model_of
from intarsia.backbone import Attention, Backbone, Family, FeedForward, Stack
from intarsia.bank import TaskBank
from intarsia.errors import UnsupportedError
from intarsia.methods import BottleneckAdapter, LoRA
from intarsia.sites import Role
from intarsia.task import Task
from methods.every import HEAD, METHODS, new_task, row, stir

unknown = pytest.mark.parametrize("family", list(UNKNOWN))


@unknown
def test_adapters_work_on_inspected_models(family):
    backbone = Backbone.wrap(model_of(family))
    assert backbone.kind == ("decoder" if family in CAUSAL else "encoder")
    batch = batch_of()
    with torch.no_grad():
        before = backbone.features(batch)
        bank = TaskBank(backbone, [new_task(backbone, "serial", head=None, awake=0.0)])
        assert torch.equal(bank(batch, tasks="serial"), before)
        bank.detach()
    for method in ("serial", "pfeiffer", "parallel", "layer-norm", "head"):
        task = new_task(backbone, method)
        bank = TaskBank(backbone, [task])
        task.loss(bank(batch, tasks=method), torch.tensor([0, 1, 2, 1])).backward()
        assert not [n for n, p in task.named_parameters() if p.grad is None], method
        bank.detach()
    with torch.no_grad():
        assert torch.equal(backbone.features(batch), before)


@unknown
@pytest.mark.parametrize("method", ["full", "top-layers"])
def test_every_trained_weight_of_an_inspected_model_gets_a_gradient(family, method):
    backbone = Backbone.wrap(model_of(family))
    task = new_task(backbone, method)
    bank = TaskBank(backbone, [task])
    task.loss(bank(batch_of(), tasks=method), torch.tensor([0, 1, 2, 1])).backward()
    assert not [n for n, p in task.named_parameters() if p.grad is None]


def lora_that_fits(backbone):
    roles = {site.role for site in backbone.sites}
    return LoRA(rank=2, targets=tuple(r for r in ("q", "k", "v", "o", "ffn_in", "ffn_down") if Role(r) in roles))


@unknown
@pytest.mark.parametrize("kinds", ["adapters", "lora", "bitfit", "layer-norm"])
def test_a_row_does_not_depend_on_its_neighbours_on_inspected_models(family, kinds):
    # DeBERTa runs its position table (not the rows) through projections and norms that have sites.
    backbone = Backbone.wrap(model_of(family))
    if kinds == "bitfit" and not any(s.role is Role.BIAS for s in backbone.sites):
        pytest.skip("this model has no biases")
    methods = {
        "adapters": ("serial", "parallel"),
        "lora": (lora_that_fits(backbone),) * 2,
        "bitfit": ("bitfit", "bitfit"),
        "layer-norm": ("layer-norm", "layer-norm"),
    }[kinds]
    tasks = [
        stir(Task.new(n, backbone, METHODS.get(m, m) if isinstance(m, str) else m, HEAD), seed=i).eval()
        for i, (n, m) in enumerate(zip("ab", methods, strict=True))
    ]
    bank = TaskBank(backbone, tasks)
    batch = batch_of(rows=5)
    names = ["a", "b", None, "b", "a"]
    with torch.no_grad():
        together = bank(batch, tasks=names)
        for index, name in enumerate(names):
            alone = bank(row(batch, index), tasks=[name])[0]
            torch.testing.assert_close(together[index], alone, rtol=0, atol=1e-5)
            if name:
                torch.testing.assert_close(bank(batch, tasks=name)[index], alone, rtol=0, atol=1e-5)


@unknown
def test_zeroed_adapters_places_leave_the_residual_stream_of_inspected_models(family):
    backbone = Backbone.wrap(model_of(family))
    if family.startswith("deberta") or family in ("mpnet", "camembert"):
        pytest.skip("norms lie on the residual stream")
    for site in backbone.sites:
        if site.role in (Role.ATTN_OUT, Role.FFN_OUT):
            backbone.hook(site, lambda _x, y: torch.zeros_like(y))
    layers = backbone.base.get_submodule(backbone.family.stacks[0].layers)

    compared = []

    def same(module, args, kwargs, output):
        output = output if isinstance(output, torch.Tensor) else output[0]
        torch.testing.assert_close(output, args[0] if args else kwargs["hidden_states"], rtol=0, atol=0)
        compared.append(module)

    for layer in layers:
        layer.register_forward_hook(same, with_kwargs=True)
    with torch.no_grad():
        backbone.features(batch_of())
    assert compared == list(layers)


@pytest.mark.parametrize("family", [family for family in UNKNOWN if family.startswith("deberta")])
def test_debertas_attention_ends_in_its_output_and_not_in_its_table_of_positions(family):
    sites = {site.key: site.module for site in Backbone.wrap(model_of(family)).sites}
    assert sites["encoder/1/attn_out"] == "encoder.layer.1.attention.output.dropout"
    assert sites["encoder/1/o"] == "encoder.layer.1.attention.output.dense"


@pytest.mark.parametrize("family", ["bloom", "falcon"])
def test_lora_says_which_targets_an_inspected_fused_projection_leaves(family):
    backbone = Backbone.wrap(model_of(family))
    with pytest.raises(UnsupportedError) as error:
        Task.new("t", backbone, LoRA())
    assert "\n" not in str(error.value)
    assert "every layer is left out" not in str(error.value)
    assert "ffn_down" in str(error.value)
    Task.new("t", backbone, LoRA(targets=(Role.O, Role.FFN_DOWN)))


def albert(groups=1):
    config = tf.AlbertConfig(**{**ENCODER, "embedding_size": 16, "num_hidden_groups": groups})
    torch.manual_seed(0)
    return tf.AlbertModel(config).eval()


ALBERT = Family(
    model_types=("albert",),
    stacks=(
        Stack(
            name="encoder",
            layers="encoder.albert_layer_groups.0.albert_layers",
            attention=Attention(
                module="attention",
                q="attention.query",
                k="attention.key",
                v="attention.value",
                o="attention.dense",
                out="attention.output_dropout",
            ),
            feed_forward=FeedForward(into=("ffn",), down="ffn_output", out="ffn_output"),
        ),
    ),
)


def test_a_model_that_inspection_is_not_sure_of_is_refused_with_what_was_found():
    with pytest.raises(UnsupportedError) as error:
        Backbone.wrap(albert())
    text = str(error.value)
    assert "\n" not in text
    assert "'albert' is not in the family table" in text
    assert "found" in text
    assert "Backbone.wrap(model, family=Family(" in text


@pytest.mark.parametrize(
    ("config", "reads"),
    [
        (tf.Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4), "pixel_values"),
        (tf.ASTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_length=32), "input_values"),
    ],
    ids=["dinov2", "ast"],
)  # fmt: skip
def test_a_model_of_images_or_sounds_that_is_not_known_is_one_clear_line(config, reads):
    with pytest.raises(UnsupportedError, match=f"it reads {reads}, and only models of texts are inspected"):
        Backbone.wrap(tf.AutoModel.from_config(config))


def test_albert_works_with_its_sites_given_by_hand():
    model = albert()
    module = model.get_submodule("encoder.albert_layer_groups.0.albert_layers.0.attention")
    if not hasattr(module, "output_dropout"):
        pytest.skip("this transformers names Albert's dropout otherwise")
    backbone = Backbone.wrap(model, family=ALBERT)
    batch = batch_of()
    with torch.no_grad():
        before = backbone.features(batch)
    for method in ("serial", "parallel", "lora"):
        with torch.no_grad():
            new = TaskBank(backbone, [Task.new("new", backbone, METHODS[method])])
            assert torch.equal(new(batch, tasks="new"), before)
            new.detach()
        tasks = [new_task(backbone, method, name="a"), new_task(backbone, "layer-norm", name="b")]
        bank = TaskBank(backbone, tasks)
        tasks[0].loss(bank(batch, tasks="a"), torch.tensor([0, 1, 2, 0])).backward()
        assert not [n for n, p in tasks[0].named_parameters() if p.grad is None]
        with torch.no_grad():
            together = bank(batch, tasks=["a", "b", None, "a"])
            for index, name in enumerate(["a", "b", None, "a"]):
                torch.testing.assert_close(together[index], bank(row(batch, index), tasks=[name])[0], rtol=0, atol=1e-5)
        bank.detach()
        with torch.no_grad():
            assert torch.equal(backbone.features(batch), before)


def test_a_row_given_by_hand_that_does_not_fit_names_the_missing_module():
    from intarsia.errors import BackboneError

    with pytest.raises(BackboneError, match=r"has no module 'encoder\.albert_layer_groups"):
        Backbone.wrap(model_of("mpnet"), family=ALBERT)


def test_an_inspected_camembert_has_berts_sites():
    inspected = Backbone.wrap(model_of("camembert"))
    known = Backbone.wrap(tf.AutoModel.from_config(tf.RobertaConfig(**UNKNOWN["camembert"][1])))
    assert [s for s in inspected.sites if s.role in (Role.ATTN_OUT, Role.FFN_OUT, Role.Q)] == [
        s for s in known.sites if s.role in (Role.ATTN_OUT, Role.FFN_OUT, Role.Q)
    ]
    assert Task.new("t", inspected, BottleneckAdapter()).trained_parameters() > 0
