"""A pack: many tasks, or many trials of one, in training over one backbone.

Each member is a run of its own (`member.Member`), and its steps are those that it would take alone. Steppers take them: members
whose steps can be one pass of the model share a stepper. Between steps members leave, each when it has ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from intarsia.errors import IntarsiaError
from intarsia.memory import give_back, keep_freed
from intarsia.training.interrupt import CtrlC, Stopped
from intarsia.training.keeping import finish, save
from intarsia.training.member import Member
from intarsia.training.own_errors import MAYBE_OWN, own_error
from intarsia.training.state import FitResult
from intarsia.training.steppers import PlainStepper, Stepper

Assign = Callable[[Sequence[Member]], Sequence[Stepper]]
"""Members -> who takes their steps."""
Ended = Callable[[Member, "FitResult | Failed"], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """A member that could not go on; what it kept lies in its folder."""

    name: str
    error: IntarsiaError

    @property
    def message(self) -> str:
        """One line: what happened, what is kept, what to do."""
        return str(self.error)


def one_by_one(members: Sequence[Member]) -> Sequence[Stepper]:
    """Each member by itself: the steps of a pack are taken in turn."""
    return [PlainStepper(member) for member in members]


def train(
    members: Sequence[Member], assign: Assign = one_by_one, ended: Ended | None = None
) -> dict[str, FitResult | Failed]:
    """Trains all members to their ends. Returns how each ended, by its name.

    ended: called with each member as soon as it has. Raises KeyboardInterrupt after Ctrl-C, when all have been saved.
    """
    results: dict[str, FitResult | Failed] = {}
    active: list[Member] = list(members)
    steppers: list[Stepper] = []

    def leave(member: Member, result: FitResult | Failed) -> None:
        results[member.name] = result
        active.remove(member)
        member.report.stop()
        if ended is not None:
            ended(member, result)

    on_cpu = any(member.device.type == "cpu" for member in active)
    if on_cpu:
        keep_freed()
    for member in active:
        member.report.start(member.total, member.state.step)
        member.mark = time.perf_counter()
    try:
        with CtrlC() as ctrl_c:
            while active:
                over = _look(active, ctrl_c)
                ended_well = [member for member, failed in over.items() if failed is None]
                for stepper in [one for one in steppers if any(member in over for member in one.members)]:
                    stepper.test([member for member in stepper.members if member in ended_well])
                    stepper.close()
                    steppers.remove(stepper)
                for member, failed in over.items():
                    leave(member, failed or _finished(member))
                if waiting := [member for member in active if member.stepper is None]:
                    steppers += assign(waiting)
                for stepper in steppers:
                    _step(stepper)
    except Stopped:
        raise KeyboardInterrupt(_all_saved(active, alone=len(members) == 1)) from None
    finally:
        for stepper in steppers:
            stepper.close()
        for member in members:
            member.report.stop()
            member.task.eval()
            member.bank.backbone.train_mode(False)
        if on_cpu:
            give_back()
    return results


def _all_saved(members: Sequence[Member], *, alone: bool) -> str:
    """Saves what goes on with --resume, and says where it is. A run that has failed keeps its last checkpoint, says why, and is no
    reason not to save the others."""
    saved = []
    for member in members:
        try:
            if member.failed is not None:
                raise member.failed
            member.read_losses()
            save(member)
        except MAYBE_OWN as error:
            failed = own_error(error, member.place())
            if alone:
                raise failed from None
            member.report.say(str(failed))
        else:
            at = f"at step {member.state.step} of {member.total}"
            saved.append(at if alone else f"{member.name} {at}")
    where = f"stopped {saved[0]}" if alone else f"stopped: {', '.join(saved) or 'every run had failed'}"
    return f"{where}; go on with --resume"


def _look(members: Sequence[Member], ctrl_c: CtrlC) -> dict[Member, Failed | None]:
    """What is due between two steps. Returns those that take no further step; Failed says why where it is no good end."""
    over: dict[Member, Failed | None] = {}
    for member in members:
        if member.failed is None:
            try:
                goes_on = member.look(ctrl_c)
            except MAYBE_OWN as error:
                member.failed = own_error(error, member.place())
            else:
                if not goes_on:
                    over[member] = None
        if member.failed is not None:
            over[member] = Failed(name=member.name, error=member.failed)
    return over


def _step(stepper: Stepper) -> None:
    try:
        stepper.step()
    except MAYBE_OWN as error:
        for member in stepper.members:
            member.failed = own_error(error, member.place())


def _finished(member: Member) -> FitResult | Failed:
    try:
        return finish(member)
    except MAYBE_OWN as error:
        return Failed(name=member.name, error=own_error(error, member.place()))
