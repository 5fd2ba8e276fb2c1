"""Ablation: modules taken out of trained tasks, layer by layer and virtual token by virtual token."""

import shutil

import pytest
import torch

from intarsia import methods
from intarsia.backbone import Backbone
from intarsia.errors import ConfigError
from intarsia.heads import Head
from intarsia.sites import Role
from intarsia.task import Task
from intarsia.workflow import ablation
from intarsia.workflow.ablation import ablate
from intarsia.workflow.ablation_parts import between, shortened, stacks_of, without
from intarsia.workflow.ablation_report import FILES, as_dict, dropped, words, write
from intarsia.workflow.scoring import evaluate, resident

METHODS = {
    "adapter": methods.BottleneckAdapter(width=4, init_up="normal"),
    "lora": methods.LoRA(rank=2),
    "prefix": methods.PrefixTuning(length=3, mid=8),
    "prompt": methods.PromptTuning(length=5),
    "layer-norm": methods.LayerNormTuning(),
    "full": methods.FullFineTuning(),
}


@pytest.fixture(scope="module")
def made(loaded, files, tmp_path_factory):
    """A folder for each method; its modules are no longer the identity."""
    folders = {}
    for name, method in METHODS.items():
        task = Task.new(name, loaded, method, Head(labels=("neg", "pos")))
        with torch.no_grad():
            for parameter in task.deltas.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        task.data = {"text_columns": ["text"], "label_column": "label", "max_length": 20}
        folders[name] = tmp_path_factory.mktemp("tasks") / name
        task.save(folders[name])
    return folders


def scores(backbone, task):
    batch = {
        "input_ids": torch.tensor([[2, 6, 9, 3], [2, 7, 12, 3]]),
        "attention_mask": torch.ones(2, 4, dtype=torch.long),
    }
    with torch.no_grad(), resident(backbone, [task.eval()]) as bank:
        return bank(batch, tasks=task.name)


@pytest.mark.parametrize("name", METHODS)
def test_taking_out_every_module_leaves_the_head_on_the_plain_backbone(loaded, made, name):
    task = Task.load(made[name], loaded)
    plain = Task.new("plain", loaded, methods.HeadOnly(), task.head)
    plain.head_module.load_state_dict(task.head_module.state_dict())
    bare = scores(loaded, without(task, lambda site: True))
    torch.testing.assert_close(bare, scores(loaded, plain), rtol=0, atol=0)
    assert not torch.equal(bare, scores(loaded, task))
    assert task.deltas, "the task itself is as it was"


@pytest.mark.parametrize("name", ["adapter", "lora", "prefix"])
def test_taking_out_a_layer_is_a_task_that_never_had_it(loaded, made, name):
    import dataclasses

    task = Task.load(made[name], loaded)
    one = without(task, lambda site: site.layer <= 0)
    never = Task.new("never", loaded, dataclasses.replace(task.method.folded(), leave_out=(0,)), task.head)
    kept = {key: tensor for key, tensor in task.tensors().items() if key in never.tensors()}
    assert len(kept) < len(task.tensors())
    never.load_tensors(kept)
    torch.testing.assert_close(scores(loaded, one), scores(loaded, never), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "length"), [("prefix", 3), ("prompt", 5)])
def test_fewer_virtual_tokens_are_the_first_ones(loaded, made, name, length):
    task = Task.load(made[name], loaded)
    torch.testing.assert_close(scores(loaded, shortened(task, length)), scores(loaded, task), rtol=0, atol=0)
    two = shortened(task, 2)
    shorter = Task.new(
        "two", loaded, type(task.method)(length=2, **({"mid": None} if name == "prefix" else {})), task.head
    )
    axis = 2 if name == "prefix" else 1
    shorter.load_tensors({k: v if k.startswith("head") else v.narrow(axis, 0, 2) for k, v in task.tensors().items()})
    torch.testing.assert_close(scores(loaded, two), scores(loaded, shorter), rtol=0, atol=0)
    torch.testing.assert_close(scores(loaded, shortened(task, 0)), scores(loaded, without(task, lambda s: True)))


def test_a_prefix_that_moves_positions_moves_them_by_what_is_left(loaded):
    method = methods.PrefixTuning(length=6, mid=None, position_offset=True)
    task = Task.new("moved", loaded, method, Head(labels=("a", "b")))
    assert (task.offset, shortened(task, 2).offset, shortened(task, 0).offset) == (6, 2, 0)


@pytest.mark.parametrize("name", METHODS)
def test_an_ablation_scores_every_span_and_length(loaded, made, files, name):
    found = ablate(made[name], str(files["test"]), backbone=loaded, timed=False)
    assert (found.rows, found.metric) == (32, "accuracy")
    assert found.score == evaluate(made[name], str(files["test"]), backbone=loaded).metrics["accuracy"]
    assert found.tolerance == 0.01
    if name == "prompt":
        assert found.stacks == []
    else:
        (stack,) = found.stacks
        assert set(stack.spans) == {(0, 0), (0, 1), (1, 1)}
        assert stack.single == [stack.spans[0, 0], stack.spans[1, 1]]
        assert [one.layers for one in stack.dropped] == [0, 1, 2]
        assert [one.score for one in stack.dropped] == [found.score, stack.spans[0, 0], stack.spans[0, 1]]
        assert stack.dropped[0].speed is None
        free = [s for s, score in stack.spans.items() if found.loss(score) <= found.tolerance * found.score]
        longest = max((last - first + 1 for first, last in free), default=0)
        assert (stack.widest.layers if stack.widest else 0) == longest
        if name in ("lora", "prefix"):  # nothing outside the layers
            assert stack.spans[0, 1] == found.without
    wanted = {"prefix": [0, 1, 2, 3], "prompt": [0, 1, 2, 5]}.get(name, [])
    assert [length for length, _ in found.lengths] == wanted
    if wanted:
        assert (found.lengths[0][1], found.lengths[-1][1]) == (found.without, found.score)


def test_what_stands_before_the_layers_goes_with_the_first_and_what_stands_behind_stays(loaded, made):
    task = Task.load(made["full"], loaded)
    (stack,) = stacks_of(task, loaded)
    first, last = (between(task, stack, layer, layer) for layer in (0, 1))
    gone = {"first": set(task.sites) - set(first.sites), "last": set(task.sites) - set(last.sites)}
    assert any("word_embeddings" in key for key in gone["first"])
    assert all(task.sites[key].layer == 1 for key in gone["last"])


def test_an_encoder_decoder_has_two_maps(encoder_decoder, files, tmp_path):
    loaded = Backbone.load(str(encoder_decoder), dtype="float32", device="cpu")
    task = Task.new("both", loaded, methods.LoRA(rank=2), Head(labels=("neg", "pos")))
    task.data = {"text_columns": ["text"], "label_column": "label", "max_length": 20}
    task.save(tmp_path / "both")
    found = ablate(tmp_path / "both", str(files["test"]), backbone=loaded, timed=False, most_rows=5)
    assert [stack.name for stack in found.stacks] == ["encoder", "decoder"]
    assert found.rows == 5
    cross = {key for key, site in task.sites.items() if site.cross}
    (decoder,) = [stack for stack in found.stacks if stack.name == "decoder"]
    assert cross
    assert not cross & set(between(task, decoder, 0, 1).sites)


def test_a_deep_stack_is_cut_into_blocks():
    sites = [
        methods.base.Site(stack="decoder", layer=layer, role=Role.ATTN_OUT, module=f"l.{layer}", width=8)
        for layer in range(30)
    ]

    class Deep:
        kind = "decoder"

    Deep.sites = sites

    class One:
        def __init__(self):
            self.sites = {site.key: site for site in sites}

        def delta(self, key):
            return key

    (stack,) = stacks_of(One(), Deep)
    assert stack.blocks[0] == (0, 2)
    assert stack.blocks[-1] == (27, 29)
    assert len(stack.blocks) == 10
    assert ablation._runs(stack) == 55 + 30


def test_speeds_are_measured_over_the_same_rows(loaded, made, files):
    found = ablate(made["adapter"], str(files["test"]), backbone=loaded)
    (stack,) = found.stacks
    assert stack.dropped[0].speed == 1.0
    assert all(one.speed and one.speed > 0 for one in stack.dropped)


def test_a_head_alone_has_nothing_to_take_out(loaded, tmp_path):
    Task.new("alone", loaded, methods.HeadOnly(), Head(labels=("a", "b"))).save(tmp_path / "alone")
    with pytest.raises(ConfigError, match="there is no module to take out"):
        ablate(tmp_path / "alone", backbone=loaded)


def test_the_command_prints_and_writes_what_was_found(cli, made, files, tmp_path, backbone):
    import json

    folder = tmp_path / "copy"
    shutil.copytree(made["prefix"], folder)
    done = cli(
        "ablate",
        folder,
        "--data",
        files["test"],
        "--backbone",
        backbone,
        "--dtype",
        "float32",
        "--out",
        tmp_path / "report",
    )
    assert done.status == 0, done.err
    assert "virtual tokens kept" in done.out
    assert "first ↓ last →" in done.out
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == sorted(FILES)
    found = cli("ablate", folder, "--data", files["test"], "--backbone", backbone, "--dtype", "float32", "--json")
    (plain,) = found.lines()
    written = json.loads((tmp_path / "report" / "ablation.json").read_text())
    for one in (plain, written):  # speeds are measured anew
        for stack in one["stacks"]:
            stack.pop("dropped"), stack.pop("widest")
    assert plain == written
    assert cli("ablate", tmp_path / "nothing").status == 2


def test_as_dict_is_json(loaded, made, files, tmp_path):
    found = ablate(made["lora"], str(files["test"]), backbone=loaded, timed=False)
    write(found, tmp_path)
    assert as_dict(found)["stacks"][0]["spans"][0][:2] == [0, 0]


def test_a_file_is_called_by_its_name_and_not_by_a_split(loaded, made, files):
    found = ablate(made["lora"], str(files["test"]), backbone=loaded, timed=False)
    assert dropped(found, found.stacks[0])[0][1] == f"{files['test'].name} accuracy, %"
    assert f"{files['test'].name} accuracy" in words(found)[0]


def test_an_out_that_is_a_file_is_said_before_anything_is_scored(cli, made, files, tmp_path, backbone):
    (tmp_path / "there").write_text("mine")
    given = ("--data", files["test"], "--backbone", backbone, "--out", tmp_path / "there")
    done = cli("ablate", made["prompt"], *given)
    assert (done.status, done.out) == (2, "")
    assert "out must be a folder" in done.err
    assert (tmp_path / "there").read_text() == "mine"
