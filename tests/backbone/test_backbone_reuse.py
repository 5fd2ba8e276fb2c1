"""A reused trunk: the same numbers, without running the layers below; a row's stored states depend on the row alone."""

import pytest
import torch

import tiny
from intarsia.backbone import Backbone
from intarsia.backbone.reuse import ReusedTrunk, layers_of, lowest_layer
from intarsia.bank import TaskBank
from intarsia.errors import BackboneError, ConfigError, UnsupportedError
from intarsia.methods import (
    BottleneckAdapter,
    HeadOnly,
    LayerNormTuning,
    LoRA,
    Method,
    PrefixTuning,
    PromptTuning,
    TopLayers,
)
from intarsia.task import Task
from methods.every import HEAD, new_task, stir, wrap

SINGLE = tiny.ENCODERS + tiny.DECODERS
ROOM = 2**24


def exact(family: str, **changes) -> Backbone:
    return Backbone.wrap(tiny.build(family, **changes).double())


def padded(family: str, lengths=(7, 3, 5, 7), *, left: bool = False, seed: int = 0) -> dict[str, torch.Tensor]:
    """Rows of unequal length."""
    batch = tiny.inputs(family, rows=len(lengths), tokens=max(lengths), seed=seed)
    if family == "vit":
        return {name: tensor.double() for name, tensor in batch.items()}
    for row, length in enumerate(lengths):
        batch["attention_mask"][row, length:] = 0
        batch["input_ids"][row, length:] = 1
        if left:
            for tensor in batch.values():
                tensor[row] = tensor[row].roll(max(lengths) - length)
    return batch


def real(states: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    mask = batch.get("attention_mask")
    return states if mask is None else states[mask.bool()]


def count_calls(backbone: Backbone) -> list[int]:
    calls = [0] * len(layers_of(backbone))

    def counted(index, module):
        inner = next(child for child in module.modules() if child is not module)

        def count(*_):
            calls[index] += 1

        inner.register_forward_hook(count)

    for index, layer in enumerate(layers_of(backbone)):
        counted(index, layer)
    return calls


@pytest.mark.parametrize("family", SINGLE)
def test_with_stored_states_a_model_gives_what_it_gave(family):
    backbone = exact(family)
    # DistilBERT and ViT count positions from the first column; Gemma 2 itself gives nan in float64 at left padding.
    sides = (False,) if family in ("distilbert", "vit", "gemma2") else (False, True)
    # transformers' RMSNorms are fp32 whatever the rest is: where a product's last digit differs, they may round the other way.
    atol = 1e-5 if any(site.parameter == "rms" for site in backbone.sites) else 1e-12
    for below in (1, len(layers_of(backbone))):
        trunk = ReusedTrunk(backbone, below=below, limit=ROOM)
        for left in sides:
            batch = padded(family, left=left)
            with torch.no_grad():
                want = real(backbone.features(batch), batch)
                got = real(backbone.features(trunk.with_states(batch)), batch)
            torch.testing.assert_close(got, want, rtol=0, atol=atol)
        # Left or right, a row is the same row.
        assert len(trunk) == 4


def test_layers_below_do_not_run_again_and_the_model_is_left_as_it_was():
    backbone = wrap("bert", num_hidden_layers=4)
    keys, trunk = list(backbone.model.state_dict()), ReusedTrunk(backbone, below=3, limit=ROOM)
    batch = padded("bert")
    calls = count_calls(backbone)
    stored = trunk.with_states(batch)
    assert calls[2] > 0
    assert calls[3] == 0  # nothing above is run to compute what is below
    calls[:] = [0] * 4
    backbone.features(trunk.with_states(batch))
    backbone.features(stored)
    assert calls[:3] == [0, 0, 0]
    assert calls[3] > 0
    backbone.features(batch)
    assert min(calls) > 0
    assert list(backbone.model.state_dict()) == keys
    assert not any("forward" in layer.__dict__ for layer in layers_of(backbone))


def test_gradients_above_the_reused_layers_are_the_same():
    def gradients(reuse: bool) -> list[torch.Tensor]:
        backbone = exact("llama", num_hidden_layers=4)
        task = stir(Task.new("t", backbone, LoRA(rank=2, leave_out=(0, 1)), HEAD)).double()
        bank = TaskBank(backbone, [task])
        assert lowest_layer(backbone, task.sites.values()) == 2
        batch = padded("llama")
        if reuse:
            batch = ReusedTrunk(backbone, below=2, limit=ROOM).with_states(batch)
        bank.loss(batch, torch.tensor([0, 1, 2, 1]), task="t").backward()
        return [parameter.grad for parameter in task.parameters()]

    for with_reuse, without in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(with_reuse, without, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_loss_curves_over_epochs_are_the_same(family):
    def losses(reuse: bool) -> list[float]:
        backbone = exact(family, num_hidden_layers=3)
        task = Task.new("t", backbone, BottleneckAdapter(width=4, leave_out=(0, 1)), HEAD).double()
        bank, found = TaskBank(backbone, [task]), []
        trunk = ReusedTrunk(backbone, below=lowest_layer(backbone, task.sites.values()), limit=ROOM)
        optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2)
        rows = padded(family, tuple(range(3, 15)))
        labels = torch.arange(12) % 3
        for epoch in range(3):
            order = torch.randperm(12, generator=torch.Generator().manual_seed(epoch))
            for part in order.split(4):
                longest = int(rows["attention_mask"][part].sum(1).max())
                batch = {name: tensor[part][:, :longest] for name, tensor in rows.items()}
                loss = bank.loss(trunk.with_states(batch) if reuse else batch, labels[part], task="t")
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                found.append(loss.item())
        return found

    with_reuse, without = losses(True), losses(False)
    assert with_reuse == pytest.approx(without, rel=0, abs=1e-12)
    assert len(set(without)) == len(without)  # it did learn


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_rows_states_depend_on_the_row_alone_to_the_bit(dtype):
    backbone = Backbone.wrap(
        tiny.build("bert", hidden_size=96, num_attention_heads=12, intermediate_size=192).to(dtype)
    )
    lengths = (3, 9, 5, 14, 7, 8, 12, 3, 16, 11, 6, 10)
    rows = padded("bert", lengths)

    def part(indices: list[int]) -> dict[str, torch.Tensor]:
        longest = max(lengths[i] for i in indices)
        return {name: tensor[indices][:, :longest] for name, tensor in rows.items()}

    def of_each(groups: list[list[int]], ahead: bool) -> list[torch.Tensor]:
        trunk = ReusedTrunk(backbone, below=2, limit=ROOM)
        if ahead:
            assert trunk.fill(part(group) for group in groups) == 12
        found = {}
        for group in groups:
            batch = trunk.with_states(part(group))
            for i, states in zip(group, batch["states_below_2"], strict=True):
                found[i] = states[: lengths[i]]
        return [found[i] for i in range(12)]

    groups = [list(range(12))], [[i] for i in range(12)], [[11, 2, 5], [0, 7, 9, 1], [3, 4], [10, 8, 6]]
    every = [of_each(group, ahead) for group in groups for ahead in (False, True)]
    for other in every[1:]:
        assert all(torch.equal(one, same) for one, same in zip(every[0], other, strict=True))


def test_states_go_with_their_rows_when_a_bank_sorts_them():
    backbone = exact("bert", num_hidden_layers=3)
    tasks = [
        stir(Task.new(name, backbone, LoRA(rank=rank, leave_out=(0,)), HEAD)).double()
        for name, rank in (("b", 2), ("a", 3))
    ]
    bank, batch = TaskBank(backbone, tasks), padded("bert")
    trunk = ReusedTrunk(backbone, below=1, limit=ROOM)
    with torch.no_grad():
        plain = bank(batch, tasks=["b", "a", "b", "a"])
        reused = bank(trunk.with_states(batch), tasks=["b", "a", "b", "a"])
    for one, other in zip(reused, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_token_scores_take_stored_states_too():
    backbone = exact("gpt2", n_layer=3)
    batch = padded("gpt2")
    read = batch["attention_mask"].bool()
    with torch.no_grad():
        want = backbone.token_scores(batch, read)
        got = backbone.token_scores(ReusedTrunk(backbone, below=2, limit=ROOM).with_states(batch), read)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)  # scores are fp32


def test_no_more_than_the_limit_is_kept_and_the_rest_is_computed():
    backbone = wrap("bert")
    batch = padded("bert", (8, 8, 4, 2))
    size = 32 * 4
    trunk = ReusedTrunk(backbone, below=1, limit=10 * size)
    whole = ReusedTrunk(backbone, below=1, limit=ROOM)
    assert whole.fill([batch]) == 4
    assert whole.used == (8 + 8 + 4 + 2) * size
    first = {name: tensor[2:] for name, tensor in batch.items()}
    trunk.with_states(first)
    assert (len(trunk), trunk.used) == (2, 6 * size)
    assert torch.equal(
        trunk.with_states(batch)["states_below_1"][batch["attention_mask"].bool()],
        whole.with_states(batch)["states_below_1"][batch["attention_mask"].bool()],
    )
    assert (len(trunk), trunk.used) == (2, 6 * size)


def test_filling_ends_with_the_first_rows_that_have_no_room():
    """They would be computed and thrown away, as would all that come behind them."""
    backbone = exact("bert")
    size = backbone.hidden * backbone.dtype.itemsize
    batches = [padded("bert", lengths=(5,) * 8, seed=seed) for seed in range(6)]
    calls = count_calls(backbone)
    trunk = ReusedTrunk(backbone, below=1, limit=70 * size)  # of 8 rows of 5 tokens once, not twice
    assert trunk.fill(batches) == len(trunk) == 8
    assert calls[0] == 2
    assert (
        ReusedTrunk(backbone, below=1, limit=0).fill(batches[:1] + [padded("bert", lengths=(n,)) for n in (9, 7)]) == 0
    )
    assert calls[0] == 3


def test_states_in_a_folder_are_the_same_and_leave_no_file(tmp_path):
    backbone = wrap("bert")
    batch = padded("bert")
    kept = ReusedTrunk(backbone, below=2, limit=ROOM, folder=tmp_path / "new")
    kept.with_states({name: tensor[:2] for name, tensor in batch.items()})
    want = ReusedTrunk(backbone, below=2, limit=ROOM).with_states(batch)
    for _ in range(2):
        assert torch.equal(kept.with_states(batch)["states_below_2"], want["states_below_2"])
    assert len(kept) == 4
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    ("method", "lowest"),
    [
        (HeadOnly(), 4),
        (TopLayers(k=1), 3),
        (BottleneckAdapter(width=4, leave_out=(0, 1)), 2),
        (BottleneckAdapter(width=4, leave_out=(1, 2)), 0),
        (LoRA(rank=2), 0),
        (LoRA(rank=2, leave_out=(0,)), 1),
        (LayerNormTuning(), 0),  # the embeddings have a norm
        (PromptTuning(length=2, init="uniform"), 0),
        (PrefixTuning(length=2, leave_out=(0, 1, 2)), 3),
        (PrefixTuning(length=2, leave_out=(0, 1, 2), position_offset=True), 0),
    ],
    ids=str,
)
def test_the_lowest_layer_is_below_every_module(method: Method, lowest: int):
    backbone = wrap("bert", num_hidden_layers=4)
    task = Task.new("t", backbone, method, HEAD)
    assert lowest_layer(backbone, task.sites.values()) == lowest


def test_what_cannot_be_reused_is_said_in_one_line():
    t5 = wrap("t5")
    assert lowest_layer(t5, new_task(t5, "head").sites.values()) == 0
    with pytest.raises(UnsupportedError, match="encoder-decoder"):
        ReusedTrunk(t5, below=1, limit=ROOM)
    backbone = wrap("bert")
    for below in (0, 3):
        with pytest.raises(ConfigError, match=f"1 to the backbone's 2 layers, got {below}"):
            ReusedTrunk(backbone, below=below, limit=ROOM)
    trunk = ReusedTrunk(backbone, below=1, limit=ROOM)
    with pytest.raises(BackboneError, match="states already"):
        trunk.with_states(trunk.with_states(padded("bert")))
    backbone.train_mode(True)
    with pytest.raises(ConfigError, match="backbone_dropout"):
        trunk.with_states(padded("bert", seed=5))


def test_layers_that_hand_on_more_than_a_tensor_are_refused():
    backbone = wrap("bert")
    layers_of(backbone)[1].register_forward_hook(lambda _module, _args, y: (y, y))
    trunk = ReusedTrunk(backbone, below=2, limit=ROOM)
    with pytest.raises(UnsupportedError, match="one tensor each"):
        trunk.with_states(padded("bert"))
