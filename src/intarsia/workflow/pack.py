"""Many runs in one process over one backbone: what differs is the task, the method, the hyperparameters, the seed, the data."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from intarsia.backbone import Backbone
from intarsia.data import DataSpec, Splits, load_data
from intarsia.errors import ConfigError, IntarsiaError
from intarsia.modes import own_modes
from intarsia.training import Failed, FitResult, SilentReporter, draw_run, fit_pack
from intarsia.training.member import Member, Prune
from intarsia.training.own_errors import MAYBE_OWN, own_error
from intarsia.training.progress import PackReporter
from intarsia.workflow.scoring import resident
from intarsia.workflow.sections import RunSettings
from intarsia.workflow.trained import Trained
from intarsia.workflow.training import Prepared, load_backbone, logging, prepare

SHARED = ("backbone", "dtype", "device", "threads")
"""What the runs of a pack have in common."""


@own_modes()
def run_pack(
    runs: Sequence[RunSettings],
    *,
    resume: bool = False,
    score_test: bool | None = None,
    report: PackReporter | None = None,
    backbone: Backbone | None = None,
    prune: Prune | None = None,
) -> list[Trained | Failed]:
    """Trains all runs at once, each as `run` would alone, and scores them; `draw_runs` makes their pictures. Returns what each
    left, in the order of `runs`.

    score_test: as for `run`. resume: runs that have ended are returned as they are, others go on, and those that have not begun
    begin. prune: see `training.member.Prune`; a run that it ends has its best weights. A run that cannot start or go on is Failed,
    and the others are trained. ConfigError where the runs are none, share a name or folder, or not the backbone;
    KeyboardInterrupt after Ctrl-C, when all have been saved.
    """
    _check(runs)
    backbone = backbone or load_backbone(runs[0])
    load = _loader()
    ready: dict[str, Prepared] = {}
    found: dict[str, Trained | Failed] = {}
    for settings in runs:
        try:
            ready[name_of(settings)] = prepare(
                settings, resume=resume, score_test=score_test, backbone=backbone, load=load
            )
        except MAYBE_OWN as error:
            own = own_error(error, "before its first step")
            found[name_of(settings)] = Failed(name=name_of(settings), error=own)
    if not ready:
        return [found[name_of(settings)] for settings in runs]
    with resident(backbone, [one.task for one in ready.values()]) as bank, ExitStack() as loggers:
        reporters = {name: SilentReporter() if report is None else report.member(name) for name in ready}
        if report is not None:
            for note in _notes(ready):
                report.say(note)
        entries = []

        def close(name: str, opened: ExitStack) -> None:
            try:
                opened.close()
            except IntarsiaError as error:
                if not isinstance(found.get(name), Failed):
                    found[name] = Failed(name=name, error=error)

        for name, one in ready.items():
            try:
                logger = (opened := ExitStack()).enter_context(logging(one.settings))
            except IntarsiaError as error:  # its package is not installed, or its disk is full
                found[name] = Failed(name=name, error=error)
                continue
            loggers.callback(close, name, opened)
            entries.append(one.entry(reporters[name], logger))

        def score(name: str, result: FitResult | Failed) -> None:
            try:
                found[name] = result if isinstance(result, Failed) else ready[name].trained(bank, result)
            except MAYBE_OWN as error:
                own = own_error(error, "while its test rows were scored; the task is saved")
                found[name] = Failed(name=name, error=own)

        def ended(member: Member, result: FitResult | Failed) -> None:
            score(member.name, result)

        for name, result in fit_pack(bank, entries, resume=resume, prune=prune, ended=ended).items():
            if name not in found:  # It had ended before.
                score(name, result)
    return [found[name_of(settings)] for settings in runs]


def draw_runs(results: Sequence[Trained | Failed]) -> list[Trained | Failed]:
    """The picture of each run. Returns the results, with Failed for a run whose picture could not be written: an error would hide
    how the others ended."""
    return [_drawn(result) if isinstance(result, Trained) else result for result in results]


def _drawn(result: Trained) -> Trained | Failed:
    try:
        draw_run(result.folder)
    except IntarsiaError as error:
        return Failed(name=result.task.name, error=error)
    return result


def name_of(settings: RunSettings) -> str:
    """Of the task that a run trains."""
    return settings.name or settings.out.resolve().name


def _loader() -> Callable[[DataSpec], Splits]:
    """Loads the same data once."""
    loaded: dict[str, Splits] = {}

    def load(spec: DataSpec) -> Splits:
        if (key := repr(spec)) not in loaded:
            loaded[key] = load_data(spec)
        return loaded[key]

    return load


def _check(runs: Sequence[RunSettings]) -> None:
    if not runs:
        raise ConfigError("a pack needs at least one run, got none")
    for what, values in (
        ("the name", [name_of(settings) for settings in runs]),
        ("the folder", [str(settings.out.resolve()) for settings in runs]),
    ):
        if twice := next((value for value in values if values.count(value) > 1), None):
            raise ConfigError(f"two runs of the pack have {what} {twice!r}; give each its own `out`, or its own `name`")
    for field in SHARED:
        values = {str(getattr(settings, field)) for settings in runs}
        if len(values) > 1:
            raise ConfigError(
                f"the runs of a pack share one {field}, and these have {', '.join(sorted(values))}; make a pack of each"
            )


def _notes(ready: dict[str, Prepared]) -> list[str]:
    """What is to be said of the runs; once where they share it."""
    said: dict[str, list[str]] = {}
    for name, one in ready.items():
        for note in one.notes:
            said.setdefault(note, []).append(name)
    return [note if len(names) == len(ready) else f"{', '.join(names)}: {note}" for note, names in said.items()]
