"""What a run does, undisturbed."""

import json

import pytest
import torch
from train_standins import TinySource, lines, new, same_bits, settings, validation

import tiny
from intarsia.backbone import Backbone
from intarsia.errors import ConfigError, DataError
from intarsia.heads import Head
from intarsia.methods import HeadOnly, LoRA
from intarsia.task import Task
from intarsia.training import evaluate, fit
from intarsia.training.optim import build_optimizer, decay_groups


def test_training_learns_and_leaves_a_whole_folder(tmp_path):
    bank, task = new()
    result = fit(bank, task, TinySource(200), validation(), settings(epochs=10), tmp_path / "out")
    assert result.best is not None
    assert result.best > 0.8
    assert (result.steps, result.epochs, result.stopped, result.metric) == (250, 10.0, "finished", "accuracy")
    assert result.tokens == 10 * 200 * 5
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["curve.png", "metrics.jsonl", "run.json", "task.json", "task.safetensors"]
    assert not task.training
    assert bank.modes[-1] is False
    assert task.metrics == result.metrics


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tmp_path):
    runs = {}
    for name, seed in {"a": 1, "b": 1, "c": 2}.items():
        bank, task = new()
        torch.rand(3)  # What was drawn before a run must not matter.
        fit(bank, task, TinySource(), validation(), settings(seed=seed), tmp_path / name)
        runs[name] = task.tensors()
    assert same_bits(runs["a"], runs["b"])
    assert not same_bits(runs["a"], runs["c"])
    assert lines(tmp_path / "a") == lines(tmp_path / "b")


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_accumulation_equals_a_large_batch(tmp_path, optimizer):
    results = []
    for batch_size, accumulate in ((20, 1), (8, 3)):  # 8 + 8 + 4 rows: unequal batches count by their rows.
        bank, task = new()
        task.double()
        task.dropout = 0.0
        source = TinySource(20, batch_size)
        chosen = settings(optimizer=optimizer, accumulate=accumulate, epochs=6, clip=0.05)
        fit(bank, task, source, None, chosen, tmp_path / f"{accumulate}")
        results.append(task.tensors())
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=1e-10, atol=1e-12)


def test_a_batch_without_one_labelled_word_is_left_out(tmp_path):
    bank, task = new(kind="token-classification", labels=("O", "B-X", "I-X"))
    source = TinySource(16, 8)
    source.labels = torch.where(source.ids % 3 == 0, -100, source.ids % 3)
    source.labels[source.plan(0)[1]] = -100
    result = fit(bank, task, source, source, settings(epochs=1, accumulate=2), tmp_path / "out")
    assert result.metric == "f1"
    assert all(p.isfinite().all() for p in task.tensors().values())
    bank, task = new(kind="token-classification", labels=("O", "B-X", "I-X"))
    fit(bank, task, source, None, settings(epochs=2, accumulate=1), tmp_path / "second")
    assert all(p.isfinite().all() for p in task.tensors().values())


def test_the_best_weights_are_kept_not_the_last(tmp_path):
    bank, task = new()
    # A rate that wrecks the weights sooner or later: some evaluation before the last is the best one.
    source = TinySource(40)
    chosen = settings(epochs=8, learning_rate=3.0, schedule="constant", metric="loss")
    result = fit(bank, task, source, validation(), chosen, tmp_path / "out")
    evaluations = {
        line["step"]: line["validation_loss"] for line in lines(tmp_path / "out") if "validation_loss" in line
    }
    assert result.best_step != result.steps
    assert result.best_step == min(evaluations, key=lambda step: evaluations[step])
    assert evaluate(bank, task, validation()).metrics["loss"] == pytest.approx(evaluations[result.best_step], abs=0)


def test_without_validation_the_last_weights_are_kept(tmp_path):
    bank, task = new()
    result = fit(bank, task, TinySource(), None, settings(), tmp_path / "out")
    assert (result.best, result.best_step, result.metric, result.metrics) == (None, None, None, {})
    assert result.steps == 15


def test_patience_ends_a_run_that_does_not_gain(tmp_path):
    bank, task = new()
    chosen = settings(epochs=50, learning_rate=1e-9, patience=3, evaluate_every=7, metric="accuracy")
    result = fit(bank, task, TinySource(), validation(), chosen, tmp_path / "out")
    assert (result.stopped, result.steps, result.best_step) == ("patience", 7 * 4, 7)
    # Steps after the last log line of the plan are in the log all the same.
    assert max(line["step"] for line in lines(tmp_path / "out") if "loss" in line) == 28


def test_max_steps_replaces_epochs(tmp_path):
    bank, task = new()
    result = fit(bank, task, TinySource(), validation(), settings(epochs=1, max_steps=12), tmp_path / "out")
    assert (result.steps, result.epochs) == (12, 2.4)
    assert [line["step"] for line in lines(tmp_path / "out") if "validation_loss" in line] == [5, 10, 12]


def test_dropout_of_the_trunk_follows_the_setting_and_is_off_in_evaluation(tmp_path):
    for wanted in (True, False):
        bank, task = new()
        fit(bank, task, TinySource(), validation(), settings(epochs=1, backbone_dropout=wanted), tmp_path / f"{wanted}")
        changes = [mode for mode, before in zip(bank.modes, [None, *bank.modes], strict=False) if mode is not before]
        assert changes == ([True, False] if wanted else [False])


def test_a_frozen_trunk_has_no_dropout_unless_asked_for_and_a_trained_one_has(tmp_path):
    for alone in (False, True):
        bank, task = new()
        task.alone = alone
        fit(bank, task, TinySource(), validation(), settings(epochs=1), tmp_path / f"{alone}")
        assert (True in bank.modes) == alone


def test_names_free_of_decay_get_none():
    _, task = new()
    decayed, spared = decay_groups(task, 0.1)
    assert [id(p) for p in spared["params"]] == [id(task.bias)]
    assert {id(p) for p in decayed["params"]} == {id(task.table), id(task.weight)}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    with torch.no_grad():
        task.bias.fill_(1.0)
    before = {name: p.clone() for name, p in task.tensors().items()}
    optimizer = build_optimizer(task, settings(weight_decay=0.5))
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for parameter in task.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(task.bias, before["bias"])
    torch.testing.assert_close(task.table.detach(), before["table"] * 0.95)


@pytest.mark.parametrize(
    ("method", "given", "rate"),
    [(HeadOnly(), {}, 5e-2), (LoRA(rank=2), {}, 5e-3), (HeadOnly(), {"head_learning_rate": 1e-2}, 1e-2)],
    ids=["alone", "beside modules", "its own"],
)
def test_a_head_alone_learns_at_the_rate_that_is_given_and_beside_modules_at_5e_3_at_most(method, given, rate):
    chosen = settings(learning_rate=5e-2, **given)
    task = Task.new("t", Backbone.wrap(tiny.build("bert")), method, Head(labels=("no", "yes")))
    shares = {id(p): group["share"] for group in build_optimizer(task, chosen).param_groups for p in group["params"]}
    assert shares[id(task.head_module.weight)] * 5e-2 == pytest.approx(rate)
    assert all(shares[id(p)] == 1.0 for name, p in task.named_parameters() if not name.startswith("head_module."))


def test_adafactor_takes_steps_of_the_given_rate():
    """Relative steps and parameter scaling are off: the first update is lr in size, whatever the weights are."""
    _, task = new()
    optimizer = build_optimizer(task, settings(optimizer="adafactor", weight_decay=0.0))
    for group in optimizer.param_groups:
        group["lr"] = 0.3
    before = task.bias.detach().clone()
    for parameter in task.parameters():
        parameter.grad = torch.full_like(parameter, 4.0)
    optimizer.step()
    torch.testing.assert_close(before - task.bias.detach(), torch.full_like(before, 0.3))


def test_the_record_says_what_ran(tmp_path):
    bank, task = new()
    out = tmp_path / "out"
    identity = {"data": {"fingerprint": "abc"}, "method": {"name": "adapter", "sites": ("a", "b")}}
    fit(bank, task, TinySource(), validation(), settings(), out, identity=identity, facts={"notes": ["guessed"]})
    run = json.loads((out / "run.json").read_text())
    assert run["settings"]["learning_rate"] == 0.02
    assert run["settings"]["weight_decay"] == 0.01
    assert run["settings"]["metric"] == "accuracy"
    assert run["data"] == {"fingerprint": "abc"}
    assert run["notes"] == ["guessed"]
    assert {"python", "torch", "transformers", "intarsia"} <= run["versions"].keys()
    assert run["hardware"]["cores"] >= 1
    assert run["result"]["steps"] == 15
    assert run["started"] <= run["ended"]
    assert (out / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_the_default_rate_is_the_methods(tmp_path):
    bank, task = new()
    fit(bank, task, TinySource(), None, settings(learning_rate=None, max_steps=1), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "run.json").read_text())["settings"]["learning_rate"] == 1e-2


def test_log_lines_are_complete(tmp_path):
    bank, task = new()
    fit(bank, task, TinySource(), validation(), settings(), tmp_path / "out")
    parsed = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in parsed if "loss" in line]
    assert [line["step"] for line in logged] == list(range(1, 16))
    wanted = {"step", "epoch", "loss", "lr", "gradient_norm", "tokens", "tokens_per_second", "seconds"}
    assert all(set(line) == wanted for line in logged)
    evaluated = [line for line in parsed if "validation_accuracy" in line]
    assert [line["epoch"] for line in evaluated] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("name", ["metric", "patience"])
def test_what_needs_validation_says_so(tmp_path, name):
    bank, task = new()
    chosen = settings(**{name: {"metric": "accuracy", "patience": 2}[name]})
    with pytest.raises(ConfigError, match=f"^{name} needs validation rows"):
        fit(bank, task, TinySource(), None, chosen, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_metric_is_refused_before_training(tmp_path):
    bank, task = new()
    with pytest.raises(ConfigError, match="got 'accurracy'; did you mean 'accuracy'"):
        fit(bank, task, TinySource(), validation(), settings(metric="accurracy"), tmp_path / "out")


def test_no_rows_is_an_error(tmp_path):
    bank, task = new()
    with pytest.raises(DataError, match="at least one row"):
        fit(bank, task, TinySource(0), None, settings(), tmp_path / "out")


def test_logger_gets_every_line(tmp_path):
    class Kept:
        def __init__(self):
            self.steps = []

        def log(self, step, values):
            assert all(isinstance(value, (int, float)) for value in values.values())
            self.steps.append(step)

        def close(self): ...

    bank, task = new()
    logger = Kept()
    fit(bank, task, TinySource(), validation(), settings(), tmp_path / "out", logger=logger)
    assert logger.steps == [line["step"] for line in lines(tmp_path / "out")]
