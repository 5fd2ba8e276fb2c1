"""Heads: which state is read, what a loss is, what is refused."""

import dataclasses

import numpy as np
import pytest
import torch

import tiny
from intarsia.bank import TaskBank
from intarsia.errors import ConfigError, TaskError
from intarsia.heads import Decoding, Head, HeadModule, pool, score_rows
from intarsia.methods import HeadOnly
from intarsia.task import Task
from methods.every import wrap

LENGTHS = [5, 3, 1, 4]


def padded(side, mask_dtype=torch.long):
    """States whose padding is loud, and their mask."""
    g = torch.Generator().manual_seed(0)
    states = torch.full((4, 5, 6), 1e4)
    mask = torch.zeros(4, 5, dtype=mask_dtype)
    rows = [torch.randn(length, 6, generator=g) for length in LENGTHS]
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(5 - len(row), 5)
        states[i, where], mask[i, where] = row, 1
    return states, mask, rows


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("mask_dtype", [torch.long, torch.bool, torch.float32])
@pytest.mark.parametrize(
    ("pooling", "of_row"),
    [("cls", lambda r: r[0]), ("pooler", lambda r: r[0]), ("mean", lambda r: r.mean(0)), ("last", lambda r: r[-1])],
)
def test_pooling_reads_real_tokens_on_either_side_of_the_padding(side, mask_dtype, pooling, of_row):
    states, mask, rows = padded(side, mask_dtype)
    torch.testing.assert_close(pool(states, mask, pooling), torch.stack([of_row(r) for r in rows]))


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_without_a_mask_every_token_is_real(pooling):
    states = torch.randn(3, 4, 5)
    torch.testing.assert_close(pool(states, None, pooling), pool(states, torch.ones(3, 4), pooling))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("masked", [True, False])
def test_the_mean_of_a_long_text_does_not_overflow_or_lose_digits_in_low_precision(dtype, masked):
    states = torch.full((2, 515, 4), 200.0, dtype=dtype)  # their sum is beyond fp16's 65504; bf16 cannot hold 515
    mask = torch.ones(2, 515, dtype=torch.long) if masked else None
    torch.testing.assert_close(pool(states, mask, "mean").float(), torch.full((2, 4), 200.0), rtol=1e-3, atol=0)


def test_a_row_without_a_real_token_gives_finite_scores():
    for pooling in ("cls", "mean", "last"):
        assert pool(torch.randn(2, 3, 4), torch.zeros(2, 3), pooling).isfinite().all()


@pytest.mark.parametrize("family", ["bert", "llama", "t5", "vit"])
def test_auto_pooling_is_the_mean_for_encoders_and_the_last_token_for_decoders(family):
    task = Task.new("t", wrap(family), HeadOnly(), Head(labels=("a", "b")))
    assert task.head.pooling == ("mean" if family in tiny.ENCODERS else "last")


def test_the_pretrained_pooler_is_used_as_transformers_uses_it():
    backbone = wrap("bert")
    task = Task.new("t", backbone, HeadOnly(), Head(labels=("a", "b"), pooling="pooler")).eval()
    batch = tiny.inputs("bert")
    with torch.no_grad():
        pooled = backbone.model(**batch).pooler_output
        expected = pooled @ task.head_module.weight[0].T + task.head_module.bias[0]
        torch.testing.assert_close(TaskBank(backbone, [task])(batch, tasks="t"), expected)


@pytest.mark.parametrize("family", ["distilbert", "llama", "modernbert"])
def test_a_pooler_is_refused_where_there_is_none(family):
    with pytest.raises(ConfigError, match="has none; give cls, mean or last"):
        Task.new("t", wrap(family), HeadOnly(), Head(labels=("a", "b"), pooling="pooler"))


SHAPES = {
    "classification": (("a", "b", "c"), (3, 3), torch.tensor([0, 1, 2])),
    "multi-label": (("a",), (3, 1), torch.tensor([[1.0], [0.0], [1.0]])),
    "regression": ((), (3, 1), torch.tensor([0.1, 0.2, 0.3])),
    "token-classification": (("O", "B", "I"), (3, 7, 3), torch.zeros(3, 7, dtype=torch.long)),
}


@pytest.mark.parametrize("kind", list(SHAPES))
@pytest.mark.parametrize("family", ["bert", "llama", "t5", "vit"])
def test_every_kind_of_head_scores_and_trains_on_every_kind_of_backbone(kind, family):
    labels, shape, target = SHAPES[kind]
    if family == "vit" and kind == "token-classification":
        pytest.skip("an image has patches, not words")
    backbone = wrap(family)
    task = Task.new("t", backbone, HeadOnly(), Head(kind=kind, labels=labels))
    batch = tiny.inputs(family)
    batch.pop("decoder_input_ids", None)
    scores = TaskBank(backbone, [task])(batch, tasks="t")
    assert (tuple(scores.shape), scores.dtype) == (shape, torch.float32)
    task.loss(scores, target).backward()
    assert all(p.grad is not None for p in task.parameters())


def test_new_weights_are_a_normal_of_0_02_cut_at_two_deviations_and_biases_are_zero():
    made = HeadModule(Head(labels=tuple("abcdefgh"), pooling="mean"), 4000)
    assert 0.0399 < made.weight.abs().max() <= 0.04
    assert made.weight.std().item() == pytest.approx(0.88 * 0.02, rel=0.02)
    assert not made.bias.any()


def test_head_dropout_works_in_training_only():
    head = HeadModule(Head(labels=("a", "b"), pooling="mean", dropout=0.5), 8)
    states = torch.randn(3, 4, 8)
    assert not torch.equal(head(states, None), head(states, None))
    head.eval()
    assert torch.equal(head(states, None), head(states, None))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_rows_of_a_head_in_training_and_of_one_that_answers_are_read_apart(order):
    """Dropout is for the first one's rows alone, whichever comes first."""
    learning, answering = (HeadModule(Head(labels=("a", "b"), pooling="mean", dropout=0.5), 64) for _ in range(2))
    answering.eval()
    heads, states = [(learning, answering)[i] for i in order], torch.randn(2, 3, 64)
    found = score_rows(states, None, heads)
    for row, head in enumerate(heads):
        plain = states[row].mean(0) @ head.weight[0].T + head.bias[0]
        assert torch.allclose(found[row], plain, atol=1e-6) == (head is answering)


def test_settings_of_decoding_are_those_that_have_a_meaning():
    common = {"max_new_tokens": 64, "use_cache": True}
    assert Decoding(length_penalty=0.5).settings() == common | {"num_beams": 1, "do_sample": False}
    beams = common | {"num_beams": 2, "do_sample": False, "length_penalty": 0.5}
    assert Decoding(beams=2, length_penalty=0.5).settings() == beams
    drawn = {"do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.9}
    assert Decoding(sample=True, temperature=0.7, top_k=5, top_p=0.9).settings() == common | {"num_beams": 1} | drawn


BAD = {
    "kind": (lambda: Head(kind="clasification", labels=("a", "b")), "'clasification'"),
    "pooling": (lambda: Head(pooling="max", labels=("a", "b")), "cls, mean, last"),
    "one label": (lambda: Head(labels=("a",)), "at least 2 label names, got 1"),
    "no label": (lambda: Head(), "at least 2 label names, got 0"),
    "no tags": (lambda: Head(kind="token-classification"), "at least 2 label names"),
    "no multi-labels": (lambda: Head(kind="multi-label"), "at least 1 label names"),
    "a label twice": (lambda: Head(labels=("a", "b", "a")), "differ from one another"),
    "no names": (lambda: Head(labels=2), "must be a tuple of names"),
    "one string": (lambda: Head(labels="ab"), "must be a tuple of names"),
    "a set": (lambda: Head(labels={"a", "b"}), "must be a tuple of names"),
    "a label is nothing": (lambda: Head(labels=("a", None)), "must be names, got None"),
    "two numbers": (lambda: Head(kind="regression", labels=("a", "b")), "predicts one number"),
    "dropout 1": (lambda: Head(labels=("a", "b"), dropout=1.0), "dropout must be in [0, 1)"),
    "dropout nan": (lambda: Head(labels=("a", "b"), dropout=float("nan")), "got nan"),
}


@pytest.mark.parametrize(("make", "fragment"), BAD.values(), ids=BAD)
def test_a_bad_head_is_refused_in_one_line(make, fragment):
    with pytest.raises(ConfigError) as error:
        make()
    assert fragment in str(error.value)
    assert "\n" not in str(error.value)


def test_a_head_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Head(labels=("a", "b")).kind = "regression"


@pytest.mark.parametrize("name", ["", " ", "a/b", "a\\b", " a", "a\n", "a\nb"])
def test_a_tasks_name_must_be_a_word(name):
    with pytest.raises(ConfigError) as error:
        Task.new(name, wrap("bert"), HeadOnly())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("labels", [["a", "b"], np.array(["a", "b"]), {"a": 0, "b": 1}.keys(), np.array([0, 1])])
def test_labels_of_any_sequence_are_kept_as_plain_names(labels, tmp_path):
    backbone = wrap("bert")
    task = Task.new("t", backbone, HeadOnly(), Head(labels=labels))
    task.metrics = {"accuracy": np.float32(0.5), "loss": torch.tensor(0.25), "rows": np.int64(3)}
    task.save(tmp_path)
    back = Task.load(tmp_path, backbone)
    assert back.head.labels == task.head.labels == tuple(np.asarray(list(labels)).tolist())
    assert back.metrics == {"accuracy": 0.5, "loss": 0.25, "rows": 3}


def test_metrics_that_json_has_no_word_for_are_refused_in_one_line(tmp_path):
    task = Task.new("t", wrap("bert"), HeadOnly(), Head(labels=("a", "b")))
    task.metrics = {"scores": np.zeros(2)}
    with pytest.raises(TaskError, match="ndarray") as error:
        task.save(tmp_path)
    assert "\n" not in str(error.value)


def test_regression_answers_in_the_labels_units_and_its_loss_knows_no_unit():
    """Prices and probabilities have the same gradients; alone, in a mixed batch and stored they are answered alike."""
    backbone = wrap("bert")
    batch = {"input_ids": torch.randint(3, 97, (3, 6))}
    plain = Task.new("plain", backbone, HeadOnly(), Head(kind="regression", dropout=0.0))
    priced = Task.new("priced", backbone, HeadOnly(), Head(kind="regression", dropout=0.0, mean=2e4, scale=1e3))
    labels = torch.tensor([0.5, -1.0, 2.0])
    bank = TaskBank(backbone, [plain, priced])
    losses = [bank.loss(batch, labels, "plain"), bank.loss(batch, labels * 1e3 + 2e4, "priced")]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=0)
    for one in losses:
        one.backward()
    torch.testing.assert_close(priced.head_module.weight.grad, plain.head_module.weight.grad, rtol=1e-3, atol=1e-5)
    expected = bank(batch, "plain").detach() * 1e3 + 2e4
    for task in (plain, priced):
        task.eval().requires_grad_(False)
    for own in (bank, TaskBank(backbone, [plain, priced])):
        torch.testing.assert_close(own(batch, "priced"), expected)
        first, second, third = own(batch, ["priced", "plain", "priced"])
        torch.testing.assert_close(torch.stack([first, third]), expected[[0, 2]])
        torch.testing.assert_close(second * 1e3 + 2e4, expected[1])


def test_autocast_does_not_round_answers_in_the_labels_units():
    backbone = wrap("bert")
    head = Head(kind="regression", mean=2000.0, scale=3.0, dropout=0.0)
    task = Task.new("year", backbone, HeadOnly(), head).eval()
    bank, batch = TaskBank(backbone, [task]), tiny.inputs("bert")
    frozen = TaskBank(backbone, [Task.new("year", backbone, HeadOnly(), head).requires_grad_(False)])
    with torch.no_grad():
        want = bank(batch, tasks="year")
        with torch.autocast("cpu", torch.bfloat16):
            for found in (bank(batch, tasks="year"), torch.stack(frozen(batch, tasks=["year"] * 3))):
                assert found.dtype is torch.float32
                torch.testing.assert_close(found, want, rtol=0, atol=0.3)  # bf16's steps are 8 there


@pytest.mark.parametrize(
    "units", [{"scale": 0.0}, {"scale": float("nan")}, {"mean": float("inf")}, {"kind": "classification", "mean": 1.0}]
)
def test_units_that_mean_nothing_are_refused(units):
    with pytest.raises(
        ConfigError, match=r"Head.mean and Head.scale are for regression, finite, and scale above 0; got"
    ):
        Head(**{"kind": "regression", "labels": ("a", "b") if "kind" in units else ()} | units)
