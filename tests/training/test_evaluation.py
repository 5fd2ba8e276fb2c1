import numpy as np
import pytest
import torch
from train_standins import TinySource, new, validation

from intarsia.errors import DataError
from intarsia.training import evaluate, predict

TAGS = ("O", "B-X", "I-X")


def test_scores_come_in_the_order_of_the_plan():
    bank, task = new()
    source = TinySource(20, batch_size=6)
    result = evaluate(bank, task, source)
    order = np.concatenate(source.plan(0))
    task.eval()
    with torch.no_grad():
        logits = task(source.load(order)[0])
    torch.testing.assert_close(torch.tensor(np.stack(result.scores)), logits.softmax(-1), rtol=1e-6, atol=1e-6)
    assert result.predictions == logits.argmax(-1).tolist()
    assert result.metrics["accuracy"] == pytest.approx(
        float((logits.argmax(-1) == source.labels[order]).float().mean())
    )
    assert result.metrics["loss"] == pytest.approx(float(task.loss(logits, source.labels[order])), rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 24])
def test_the_size_of_batches_does_not_matter(batch_size):
    bank, task = new()
    whole = evaluate(bank, task, validation(batch_size=24)).metrics
    assert evaluate(bank, task, validation(batch_size=batch_size)).metrics == pytest.approx(whole, rel=1e-6)


def test_multi_label():
    bank, task = new(kind="multi-label", labels=("a", "b", "c"))
    source = validation()
    source.labels = (source.ids[:, :3] % 2).float()
    result = evaluate(bank, task, source)
    assert result.scores[0].shape == (3,)
    assert all(((row > 0.5) == found).all() for row, found in zip(result.scores, result.predictions, strict=True))
    assert set(result.metrics) == {"micro_f1", "macro_f1", "loss"}


def test_regression():
    bank, task = new(kind="regression", labels=())
    source = validation()
    source.labels = source.ids.float().mean(1)
    result = evaluate(bank, task, source)
    assert result.scores[0].shape == ()
    assert result.metrics["loss"] == pytest.approx(result.metrics["mse"], rel=1e-5)


def test_token_classification_counts_labelled_words_only():
    bank, task = new(kind="token-classification", labels=TAGS)
    source = validation(batch_size=8)
    source.labels = torch.where(source.ids % 4 == 3, -100, source.ids % 3)
    source.labels[:8] = -100  # A whole batch without a label has no loss, and must not make it nan.
    result = evaluate(bank, task, source)
    assert result.scores[0].shape == (5, 3)
    kept = source.labels != -100
    found = torch.tensor(np.stack(result.predictions))
    assert result.metrics["accuracy"] == pytest.approx(float((found == source.labels)[kept].float().mean()))
    task.eval()
    with torch.no_grad():
        logits = task(source.load(np.arange(24))[0])
    assert result.metrics["loss"] == pytest.approx(float(task.loss(logits, source.labels)), rel=1e-6)


def test_evaluation_leaves_no_trace():
    bank, task = new()
    task.train()
    before = torch.get_rng_state()
    evaluate(bank, task, validation())
    assert torch.equal(before, torch.get_rng_state())
    assert task.training
    assert torch.is_grad_enabled()
    assert bank.modes == [False]
    assert all(p.grad is None for p in task.parameters())


def test_a_failure_leaves_gradients_on_and_the_mode_as_it_was():
    bank, task = new()
    task.train()

    def stop():
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        evaluate(bank, task, validation(), tick=stop)
    assert torch.is_grad_enabled()
    assert task.training


def test_prediction_needs_no_labels_and_evaluation_does():
    class Unlabelled(TinySource):
        def load(self, key):
            return super().load(key)[0], None

    bank, task = new()
    source = Unlabelled(10, shuffle=False)
    result = predict(bank, task, source)
    assert len(result.predictions) == 10
    assert result.metrics == {}
    with pytest.raises(DataError, match="evaluation needs labels"):
        evaluate(bank, task, source)
    assert predict(bank, task, TinySource(0)).scores == []
    with pytest.raises(DataError, match="at least one row"):
        evaluate(bank, task, TinySource(0))
