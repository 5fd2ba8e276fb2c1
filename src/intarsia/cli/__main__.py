"""`intarsia`: the one place where errors become one line on stderr and an exit status."""

import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from intarsia.cli.stopping import INTERRUPTED, end_at_once, end_cleanly_in_imports
from intarsia.errors import IntarsiaError, is_out_of_memory

if TYPE_CHECKING:
    from typer.exceptions import TyperException


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0, 1 (a check failed), 2 (an error, said in one line on stderr), 130 (Ctrl-C) or 141 (`| head`)."""
    if argv is not None:
        return _run(argv)
    end_cleanly_in_imports()
    try:
        _quiet_libraries()
        status = _run(None)
    except KeyboardInterrupt:  # the second Ctrl-C, while the first was being said
        status = INTERRUPTED
    end_at_once(status)
    return status


def _run(argv: Sequence[str] | None) -> int:
    # Imported here, where Ctrl-C is looked after.
    import typer
    from typer.exceptions import TyperException

    from intarsia.cli.app import app
    from intarsia.cli.output import Interrupted, escape_what_stdout_lacks

    if argv is None:
        escape_what_stdout_lacks()
    try:
        status = app(args=argv, prog_name="intarsia", standalone_mode=False)
        sys.stdout.flush()
    except IntarsiaError as error:
        return _fail(str(error))
    except (Interrupted, KeyboardInterrupt) as error:
        return _fail(str(error) or "interrupted", INTERRUPTED)
    except typer.Abort:
        return _fail("interrupted", INTERRUPTED)
    except TyperException as error:
        return _fail(_usage(error))
    except BrokenPipeError:
        return _unread()
    except SystemExit as stop:  # typer's way to say the same, with the status of a check that failed
        if isinstance(stop.__context__, BrokenPipeError):
            return _unread()
        raise
    except OSError as error:
        return _fail(_system(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _fail(_memory(error))
    if status == INTERRUPTED:  # typer turns Ctrl-C into this status without a word
        return _fail("interrupted", INTERRUPTED)
    return status if isinstance(status, int) else 0


def _unread() -> int:
    """Whoever read our output has left (`| head`). Python would complain again when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


def _fail(message: str, status: int = 2) -> int:
    line = " ".join(message.splitlines())
    if len(line) > 1000:  # it quotes what it was given; what to do stands at the end
        line = f"{line[:400]} [...] {line[-180:]}"
    print(f"intarsia: {line}", file=sys.stderr)
    return status


def _usage(error: "TyperException") -> str:
    """What is wrong with the arguments, and where to read how they go."""
    format_message = getattr(error, "format_message", None)
    message = (format_message() if format_message else str(error)).rstrip(".")
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "intarsia"
    return f"{message}; see `{command} --help`"


def _system(error: OSError) -> str:
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror or error}"


def _memory(error: Exception) -> str:
    """What was asked for, as far as torch or numpy say it, and what to make smaller."""
    asked = re.search(r"allocate ([\d.]+) ?(bytes|[KMGT]iB)", str(error))
    amount = "" if asked is None else f"{int(asked[1]):,}" if asked[2] == "bytes" else asked[1]
    what = f": {amount} {asked[2]} more were asked for" if asked else ""
    return (
        f"out of memory{what}; try a smaller --batch-size, shorter texts, or a smaller module (method.width, method.rank, "
        "method.length)"
    )


def _quiet_libraries() -> None:
    """Progress bars and advice of the libraries below us say nothing that a user of ours could act upon."""
    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "DATASETS_VERBOSITY": "error",
        "HF_HUB_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        import warnings

        warnings.simplefilter("ignore")


if __name__ == "__main__":
    sys.exit(main())
