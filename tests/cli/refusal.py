"""What every refusal must be: exit status 2, one line on stderr, and nothing lost or written."""

from pathlib import Path


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below, with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def refused(cli, place: Path, argv, fragment: str) -> None:
    """Runs a command that must fail as the first line says, and leave `place` as it was."""
    before = tree(place)
    done = cli(*argv)
    assert done.status == 2, done
    assert done.out == ""
    assert done.err.startswith("intarsia: "), done.err
    assert done.err.count("\n") == 1, done.err
    assert len(done.err) < 700, done.err
    assert "Traceback" not in done.err
    assert fragment in done.err
    after = {name: content for name, content in tree(place).items() if not name.startswith("cache")}
    assert after == before, "something was written, or lost"
