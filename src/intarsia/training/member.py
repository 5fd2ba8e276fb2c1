"""One member of a pack: a run between its steps. What is due, what is kept, and what its next step needs.

The state of a run at a step boundary is (task tensors, best tensors, optimizer state, random generators, `State`); all
else follows from the step by pure functions: the learning rate, the epoch, the order of the rows, whether an evaluation
is due. So a run that was killed at any moment and resumed ends with the very bits of a run that was not, and so does one
whose steps were taken in turn with those of others.

A GPU is never waited for within a step: losses stay on it, and are read (and checked) at log points, and before each
evaluation and checkpoint. So no checkpoint holds the weights of a step whose loss or gradient was not finite.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from intarsia.errors import IntarsiaError, TrainingError
from intarsia.training.checkpoint import restore_rng, rng_tensors, snapshot
from intarsia.training.evaluation import Scores, evaluate
from intarsia.training.generating import Writing, wants_texts
from intarsia.training.interrupt import CtrlC
from intarsia.training.keeping import save
from intarsia.training.loggers import Logger, logger_errors
from intarsia.training.metrics import higher_is_better
from intarsia.training.optim import OptimizerState
from intarsia.training.progress import Reporter
from intarsia.training.record import RunRecord
from intarsia.training.reusing import Ready, as_it_is
from intarsia.training.schedule import learning_rate
from intarsia.training.settings import TrainSettings
from intarsia.training.source import BatchSource
from intarsia.training.state import State

if TYPE_CHECKING:
    from intarsia.training.steppers import Stepper

Prune = Callable[[str, int, float | None], bool]
"""(name of the task, step, value of its validation metric) -> whether the run ends here. Asked after each evaluation, and with None
between two of its steps, for who has no more time; a run that ends so is evaluated once more."""


class Member:
    """A task in training: its data, schedule, scores and record. A stepper takes its steps."""

    def __init__(
        self,
        bank: Any,
        task: Any,
        train: BatchSource,
        validation: BatchSource | None,
        settings: TrainSettings,
        steps_per_epoch: int,
        record: RunRecord,
        report: Reporter,
        logger: Logger | None,
        identity: Mapping[str, Any],
        prune: Prune | None = None,
    ) -> None:
        self.bank, self.task, self.source, self.validation = bank, task, train, validation
        self.settings, self.record, self.report, self.logger, self.identity = settings, record, report, logger, identity
        self.steps_per_epoch, self.prune = steps_per_epoch, prune
        self.total = settings.max_steps or settings.epochs * steps_per_epoch
        # Twenty points at least, so that a short run has a curve too.
        self.log_every = max(1, min(10, self.total // 20))
        self.device = torch.device(bank.backbone.device)
        # Text is generated for validation only where a score of it names the best weights: it costs far more than the loss.
        self.writing = Writing.of(task, bank.backbone) if wants_texts(task.head, settings.metric) else None
        self.state = State()
        self.failed: IntarsiaError | None = None
        """Why it cannot go on."""
        self.best: dict[str, Tensor] = {}
        self.optimizer: OptimizerState = ({}, {})
        """Of its parameters, while no stepper has it."""
        self.stepper: Stepper | None = None
        self.test: BatchSource | None = None
        """Rows for its best weights, at its end."""
        self.tested: dict[str, float] = {}
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(settings.seed)
            self.random = rng_tensors(self.device)
        self.saved_at = 0
        self.unread: list[Tensor] = []
        self.plan: tuple[int, Sequence[Any]] = (-1, ())
        self.mark = time.perf_counter()

    @property
    def name(self) -> str:
        """The task's, by which the bank knows it."""
        return self.task.name

    def look(self, ctrl_c: CtrlC) -> bool:
        """Evaluates and saves what is due at this step; whether another step follows. Stopped after Ctrl-C."""
        state = self.state
        due = self.evaluation_due()
        if (
            not due
            and state.step > 0  # a run of no step has nothing to keep
            and self.validation is not None
            and self.prune is not None
            and self.prune(self.name, state.step, None)
        ):
            state.pruned = due = True
        if due:
            self._evaluate(ctrl_c)
        if due or (state.step % self.settings.checkpoint_every == 0 and state.step != self.saved_at):
            self.read_losses()
            save(self)
        ctrl_c.check()
        return self.stopped() is None

    def stepped(self, seen: Tensor, tokens: int) -> None:
        """A stepper has taken a step of so many real tokens. seen: (2,) fp32, loss and gradient norm, still on the device."""
        state = self.state
        self.unread.append(seen)
        state.step += 1
        state.tokens += tokens
        state.window_tokens += tokens
        self.report.advance(state.step)
        if state.step % self.log_every == 0 or state.step == self.total:
            try:
                self.log()
            except IntarsiaError as error:  # said between the steps: others may have taken this one too
                self.failed = error

    def keys(self) -> Sequence[Any]:
        """Of the batches of the next step: `accumulate` of them, fewer at the end of an epoch."""
        epoch, position = divmod(self.state.step, self.steps_per_epoch)
        if self.plan[0] != epoch:
            self.plan = (epoch, self.source.plan(epoch))
        n = self.settings.accumulate
        keys = self.plan[1][position * n : (position + 1) * n]
        assert len(keys), f"epoch {epoch} has fewer batches than epoch 0"
        return keys

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        s = self.settings
        assert s.learning_rate is not None
        return learning_rate(step, self.total, peak=s.learning_rate, warmup=s.warmup, schedule=s.schedule)

    @contextmanager
    def own_random(self) -> Iterator[None]:
        """Random numbers come from this member's own generators meanwhile."""
        before = rng_tensors(self.device)
        restore_rng(self.random, self.device)
        try:
            yield
        finally:
            self.random = rng_tensors(self.device)
            restore_rng(before, self.device)

    def scores(self, tick: Callable[[], None], ready: Ready = as_it_is) -> Scores:
        """On its validation rows, batch after batch. ready: see `evaluate`."""
        assert self.validation is not None
        return evaluate(self.bank, self.task, self.validation, tick=tick, writing=self.writing, ready=ready)

    # -- looking at it -------------------------------------------------------------------------------------------------

    def read_losses(self) -> None:
        """Waits for the device, and checks every step since the last time."""
        if not self.unread:
            return
        values = torch.stack(self.unread).tolist()
        first = self.state.step - len(values) + 1
        self.unread.clear()
        self.state.window_seconds += self.lap()
        for step, (loss, norm) in enumerate(values, first):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
                raise TrainingError(self._not_finite(what, step))
        self.state.window += values

    def place(self) -> str:
        """Where it is, and what is kept of it."""
        return f"after step {self.state.step} of {self.total}; {self._kept()}"

    def _kept(self) -> str:
        return f"the checkpoint of step {self.saved_at} is intact" if self.saved_at else "there was no checkpoint yet"

    def _not_finite(self, what: str, step: int) -> str:
        advice = (
            "no step had been taken, so the backbone or the labels give it: try --dtype float32"
            if step == 1
            else "try a lower --lr (a third), a longer warm-up, or --dtype float32; --resume would meet it again"
        )
        return (
            f"{what} at step {step} of {self.total}, learning rate {self.rate(step - 1):.3g}; {self._kept()}; {advice}"
        )

    def log(self) -> None:
        self.read_losses()
        state = self.state
        losses, norms = zip(*state.window, strict=True)
        state.loss = sum(losses) / len(losses)
        speed = state.window_tokens / max(state.window_seconds, 1e-9)
        self._write(
            loss=state.loss,
            lr=self.rate(state.step - 1),
            gradient_norm=sum(norms) / len(norms),
            tokens=state.tokens,
            tokens_per_second=round(speed, 1),
            seconds=round(state.seconds, 3),
        )
        self.report.log(state.step, state.loss, speed)
        state.window, state.window_tokens, state.window_seconds = [], 0, 0.0

    def evaluation_due(self) -> bool:
        """Whether it is to be scored before its next step."""
        state, every = self.state, self.settings.evaluate_every or self.steps_per_epoch
        if self.validation is None or state.step == state.evaluated_at:
            return False
        return state.step % every == 0 or state.step == self.total

    def _evaluate(self, ctrl_c: CtrlC) -> None:
        assert self.validation is not None
        assert self.settings.metric is not None
        self.read_losses()
        state, metric = self.state, self.settings.metric
        found = self.scores(ctrl_c.check) if self.stepper is None else self.stepper.evaluate(self, ctrl_c.check)
        metrics = found.metrics
        if not math.isfinite(metrics["loss"]):
            raise TrainingError(self._not_finite(f"the validation loss is {metrics['loss']}", state.step))
        value, sign = metrics[metric], 1 if higher_is_better(metric) else -1
        gain = state.best is None or sign * value > sign * state.best
        if gain:
            state.best, state.best_step, state.best_metrics = value, state.step, metrics
            self.best = snapshot(self.task.tensors())
        state.without_gain = 0 if gain else state.without_gain + 1
        state.evaluated_at = state.step
        self.lap()
        named = {f"validation_{name}": number for name, number in metrics.items()}
        self._write(**named, tokens=state.tokens, seconds=round(state.seconds, 3))
        self.report.evaluated(state.step, metrics, metric, gain)
        state.pruned |= self.prune is not None and self.prune(self.name, state.step, value)

    def _write(self, **values: float) -> None:
        step = self.state.step
        epoch = round(step / self.steps_per_epoch, 4)
        self.record.append({"step": step, "epoch": epoch, **values})
        if self.logger is not None:
            with logger_errors(self.record.out):
                self.logger.log(step, {"epoch": epoch, **values})

    def lap(self) -> float:
        """Seconds since the last call; all of them count in the run's time."""
        now = time.perf_counter()
        lap, self.mark = now - self.mark, now
        self.state.seconds += lap
        return lap

    def stopped(self) -> str | None:
        """Why there is no further step; None: there is one."""
        if self.state.step >= self.total:
            return "finished"
        if self.state.pruned:
            return "pruned"
        patience = self.settings.patience
        return "patience" if patience is not None and self.state.without_gain >= patience else None
