"""Optional experiment loggers. None of them is needed to train; `metrics.jsonl` always holds everything."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from intarsia.errors import ConfigError, DiskError, nearest


class Logger(Protocol):
    def log(self, step: int, values: dict[str, float]) -> None: ...
    def close(self) -> None: ...


def open_logger(name: str, out: Path, config: dict[str, Any]) -> Logger:
    """The logger by name. config: what the run is, shown beside its curves.

    ConfigError for an unknown name, or one whose package is not installed; DiskError where it cannot begin.
    """
    if name not in _BY_NAME:
        raise ConfigError(f"log must be one of {', '.join(LOGGERS)}, got {name!r}{nearest(name, LOGGERS)}")
    try:
        with logger_errors(out):
            return _BY_NAME[name](out, config)
    except ImportError as error:
        raise ConfigError(
            f"--log {name} needs the package {name}, which is not installed: pip install {name}"
        ) from error


@contextmanager
def logger_errors(out: Path) -> Iterator[None]:
    """What the disk or the network under a logger does, as one line."""
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"the logger of {out} cannot write: {error.strerror or error}; what was kept of the run is intact; "
            "go on with --resume, and without --log if it cannot be mended"
        ) from error


class TensorBoard:
    """Event files under OUT/tensorboard."""

    def __init__(self, out: Path, config: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(log_dir=str(out / "tensorboard"))
        self._writer.add_text("config", "\n".join(f"    {name}: {value}" for name, value in config.items()))

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Hosted:
    """wandb, and trackio, which has the same interface. Where they send things is for their own settings to say.

    Told to the run itself: what the module is told goes to its latest run, and the runs of a pack are open at once.
    """

    def __init__(self, module: Any, out: Path, config: dict[str, Any], **options: Any) -> None:
        self._run = module.init(project="intarsia", name=out.resolve().name, config=config, **options)

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


def _wandb(out: Path, config: dict[str, Any]) -> Logger:
    import wandb  # pyright: ignore[reportMissingImports]

    # By default a second run ends the first, or is the first.
    return _Hosted(wandb, out, config, dir=str(out), reinit="create_new")


def _trackio(out: Path, config: dict[str, Any]) -> Logger:
    import trackio  # pyright: ignore[reportMissingImports]

    return _Hosted(trackio, out, config)


_BY_NAME: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": _wandb, "trackio": _trackio}
LOGGERS = tuple(_BY_NAME)
