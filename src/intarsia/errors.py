"""What can go wrong for a user, as a tree. Every message says what was expected, what came, and what to do next.

IntarsiaError                 caught once, by the command line: one line on stderr, exit status 2
├── ConfigError               a setting is out of range, misspelt or contradicts another
├── DataError                 a data file, column, label or text cannot be used
├── BackboneError             a backbone cannot be loaded, or its sites cannot be found
│   └── UnsupportedError      the method or option does not work on this backbone; names those that do
├── TaskError                 a task folder cannot be read, or belongs to another backbone
└── TrainingError             training stopped (a loss that is NaN); the last good checkpoint is intact
    └── DiskError             a file cannot be written (disk full): no fault of the run, which goes on once there is room
"""


class IntarsiaError(Exception):
    """Base class; `str(error)` is one clear line."""


class ConfigError(IntarsiaError):
    """A setting is out of range, misspelt or contradicts another."""


class DataError(IntarsiaError):
    """A data file, column, label or text cannot be used."""


class BackboneError(IntarsiaError):
    """A backbone cannot be loaded, or its sites cannot be found."""


class UnsupportedError(BackboneError):
    """The method or option does not work on this backbone."""


class TaskError(IntarsiaError):
    """A task folder cannot be read, or belongs to another backbone."""


class TrainingError(IntarsiaError):
    """Training stopped; the last good checkpoint is intact."""


class DiskError(TrainingError):
    """A file cannot be written, as on a full disk; the run itself is not at fault, and goes on once it can be."""


def is_out_of_memory(error: Exception) -> bool:
    """torch says it in the words of a RuntimeError, other ones for a CPU (on Linux and macOS, on Windows) than for a GPU."""
    said = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(one in str(error) for one in said)
    )


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """`; did you mean 'x'?` for a misspelt name, else an empty string."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
