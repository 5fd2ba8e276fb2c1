"""Which rows a step sees, what a line of the log holds of it, and when there is no further one."""

import pytest
from train_standins import TinySource, lines, new, settings, validation

from intarsia.training import fit, member
from intarsia.training.evaluation import Scores
from intarsia.training.schedule import learning_rate


class Watched(TinySource):
    """Remembers the rows of each batch."""

    def __init__(self):
        super().__init__()
        self.loaded = []

    def load(self, key):
        self.loaded.append(key.tolist())
        return super().load(key)


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 5), (2, 3), (5, 1), (9, 1)])
def test_an_epoch_shows_each_batch_once_in_an_order_of_its_own(tmp_path, accumulate, steps):
    bank, task = new()
    source = Watched()
    result = fit(bank, task, source, None, settings(accumulate=accumulate), tmp_path / "out")
    assert result.steps == 3 * steps
    plans = [[key.tolist() for key in source.plan(epoch)] for epoch in range(3)]
    assert source.loaded == [key for plan in plans for key in plan]
    assert plans[0] != plans[1] != plans[2]


def test_a_line_of_the_log_has_the_means_of_its_steps_and_the_rate_of_the_last(tmp_path, monkeypatch):
    seen, stepped = [], member.Member.stepped

    def watching(self, values, tokens):
        seen.append(values.tolist())
        stepped(self, values, tokens)

    monkeypatch.setattr(member.Member, "stepped", watching)
    bank, task = new()
    fit(bank, task, TinySource(), None, settings(max_steps=90, warmup=0.2), tmp_path / "out")
    logged = lines(tmp_path / "out")
    assert [line["step"] for line in logged] == [*range(4, 90, 4), 90]
    before = 0
    for line in logged:
        losses, norms = zip(*seen[before : line["step"]], strict=True)
        assert line["loss"] == pytest.approx(sum(losses) / len(losses))
        assert line["gradient_norm"] == pytest.approx(sum(norms) / len(norms))
        assert line["lr"] == learning_rate(line["step"] - 1, 90, peak=0.02, warmup=0.2, schedule="linear")
        before = line["step"]


def test_a_gain_starts_the_count_of_evaluations_without_one_anew(tmp_path, monkeypatch):
    """An equal score is none."""
    scores = iter([0.5, 0.4, 0.6, 0.5, 0.6, 0.9])
    monkeypatch.setattr(
        member,
        "evaluate",
        lambda *_, **__: Scores(scores=[], predictions=[], metrics={"accuracy": next(scores), "loss": 1.0}),
    )
    bank, task = new()
    chosen = settings(epochs=50, patience=2, evaluate_every=1)
    result = fit(bank, task, TinySource(), validation(), chosen, tmp_path / "out")
    assert (result.stopped, result.steps, result.best_step, result.best) == ("patience", 5, 3, 0.6)
