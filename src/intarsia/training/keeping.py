"""What is kept of a run: checkpoints while it goes on, the task folder at its end."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from intarsia.training.checkpoint import FILE, Checkpoint, disk_errors, write_checkpoint
from intarsia.training.state import FitResult, State

if TYPE_CHECKING:
    from intarsia.training.member import Member


def save(run: "Member") -> None:
    """Writes the checkpoint of the present step: the task in its training form, which a resumed run goes on with."""
    tensors, scalars = run.optimizer if run.stepper is None else run.stepper.optimizer_state(run)
    facts = {"state": asdict(run.state), "optimizer": scalars, "identity": run.identity}
    checkpoint = Checkpoint(facts=facts | {"metrics_bytes": run.record.synced_bytes()})
    checkpoint.add("task", run.task.tensors())
    checkpoint.add("best", run.best)
    checkpoint.add("optimizer", tensors)
    checkpoint.add("rng", run.random)
    write_checkpoint(run.record.out, checkpoint)
    run.saved_at = run.state.step
    run.lap()


def restore(run: "Member", checkpoint: Checkpoint) -> None:
    """The inverse of `save`, into a run that has not begun."""
    facts = checkpoint.facts
    run.state = State(**facts["state"])
    run.saved_at = run.state.step
    run.task.load_tensors(checkpoint.group("task"))
    run.best = checkpoint.group("best")
    run.optimizer = checkpoint.group("optimizer"), facts["optimizer"]
    run.random = checkpoint.group("rng")
    run.record.go_on(facts["metrics_bytes"])


def fold(bank: Any, task: Any) -> None:
    """Brings a task of the bank into the form that is shipped, so that what is scored from here on is what is saved."""
    bank.evict(task.name)
    task.fold()
    bank.add(task)


def finish(run: "Member") -> FitResult:
    """In this order: a run killed in here does it again when resumed, and is finished once `run.json` says so."""
    state, task, out = run.state, run.task, run.record.out
    if state.window or run.unread:  # Stopped between two log lines.
        run.log()
    assert state.loss is not None
    task.eval()
    if run.best:
        task.load_tensors(run.best)
    fold(run.bank, task)
    task.metrics = dict(state.best_metrics)
    with disk_errors("the task", out):
        task.save(out)
    result = FitResult(
        steps=state.step,
        epochs=round(state.step / run.steps_per_epoch, 4),
        loss=state.loss,
        metric=run.settings.metric,
        best=state.best,
        best_step=state.best_step,
        metrics=dict(state.best_metrics),
        tokens=state.tokens,
        seconds=round(state.seconds, 3),
        stopped=run.stopped() or "finished",
        test=run.tested,
    )
    run.record.end(asdict(result))
    with disk_errors("the end of the run", out):
        (out / FILE).unlink(missing_ok=True)
    return result
