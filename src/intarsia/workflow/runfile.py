"""Reading a run file: strict YAML in, a plain mapping out. No object of any class is ever built from the file."""

import re
from pathlib import Path
from typing import Any

import yaml

from intarsia.errors import ConfigError

MAX_BYTES = 1 << 20
MAX_DEPTH = 16


class _StrictLoader(yaml.SafeLoader):
    """safe_load's loader, less what a run file never needs: repeated keys, aliases (bombs), and deep nesting."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        if self.check_event(yaml.AliasEvent):
            raise ConfigError(
                f"line {event.start_mark.line + 1}: aliases (*{event.anchor}) are not allowed, write it out"
            )
        if self.depth >= MAX_DEPTH:
            raise ConfigError(f"line {event.start_mark.line + 1}: nested deeper than {MAX_DEPTH} levels")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"line {key.start_mark.line + 1}: a key must be one word")
            if key.value in seen:
                raise ConfigError(f"line {key.start_mark.line + 1}: key {key.value!r} is given twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads `1e-3` as text because it has no dot; everybody who writes it means the number.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_run_file(path: Path) -> dict[str, Any]:
    """The mapping in a run file. ConfigError, in one line, for everything that is not one."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read run file {path}: {error.strerror or error}") from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(
            f"run file {path} is larger than {MAX_BYTES >> 20} MB; is it a data file? (that is --train FILE)"
        )
    try:
        content = parse_yaml(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"run file {path} is not UTF-8 text (byte {error.start})") from error
    except ConfigError as error:
        raise ConfigError(f"run file {path}: {error}") from error
    if content is None:
        raise ConfigError(f"run file {path} is empty; expected keys such as backbone, data, method")
    if not isinstance(content, dict):
        raise ConfigError(f"run file {path}: expected `key: value` lines, got {_kind(content)}")
    return content


def parse_yaml(text: str) -> Any:
    """The value of a YAML text: scalars, lists, mappings with distinct text keys. ConfigError with the line otherwise."""
    try:
        # A subclass of SafeLoader: builds plain values only.
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(
            f"{where}not valid YAML: {one_line(error.problem or error.context or 'unreadable')}"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {one_line(str(error))}") from error
    except (ValueError, OverflowError) as error:  # 2024-99-99 looks like a date to YAML
        raise ConfigError(f"not valid YAML: {one_line(str(error))}") from error


def given_path(value: Any) -> Any:
    """A path as a person wrote it, with `~` for the home folder; ValueError for an empty one, which would be the current folder.
    What is no path is left to whoever checks types."""
    if not isinstance(value, str | Path):
        return value
    if not str(value).strip():
        raise ValueError("expected a path, got an empty one")
    if "\0" in str(value):
        raise ValueError("expected a path, got one with a NUL character")
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError(f"there is no home folder for {str(value)!r}; write the path out") from error


def one_line(text: str, limit: int = 200) -> str:
    """`text` with every run of white space as one blank, cut at `limit` characters."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _kind(value: Any) -> str:
    return {list: "a list", str: "text", int: "a number", float: "a number"}.get(type(value), type(value).__name__)
