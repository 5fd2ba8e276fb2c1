"""A file of rows through the engine: each row asked of the task that it names, or of all tasks; answers as they come, in order.

The output is one JSON line for each row and task. A run that was stopped goes on behind its last whole line.
"""

from __future__ import annotations

import dataclasses
import json
import os
import queue
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from intarsia.backbone import Backbone
from intarsia.data.files import Table, read_table
from intarsia.errors import ConfigError, DataError, TaskError, nearest
from intarsia.heads import Decoding
from intarsia.serving.cards import Card
from intarsia.serving.engine import Engine
from intarsia.serving.limits import Limits
from intarsia.serving.requests import (
    Answer,
    BadRequest,
    Classify,
    Event,
    Failed,
    Finished,
    Generate,
    Piece,
    Request,
    RequestError,
    Tag,
)
from intarsia.serving.sampling import Sampling
from intarsia.taskfile import read_description
from intarsia.training.progress import ticking

COLUMN = "task"
AHEAD = 256
"""Requests that are under way at once: enough to fill the engine's batches."""
HOURS = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Counted:
    """How a run ended."""

    answered: int
    failed: int
    before: int
    """Lines that an earlier run had written."""
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)
    """Tasks of the folder that no row names and that cannot answer them, each with the reason."""


def predict_folder(
    tasks: Path,
    data: Path,
    out: Path | None,
    *,
    backbone: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    batch_size: int | None = None,
) -> Counted:
    """Answers every row of `data` with the task named in its column `task`, or with all tasks of the folder where there is no
    such column. out: a .jsonl file that grows, and is gone on with where it exists; None: standard output.

    backbone: None: the one that the tasks name. Where the rows name no tasks, those are left out that are of another backbone, or
    read a column that is not there. batch_size: most rows of a pass, and texts that are written at once; None: what fits.
    DataError, TaskError and ConfigError for what cannot be answered at all; a row that fails has its error in its line.
    """
    folders = _folders(tasks)
    table = read_table(data)
    named = COLUMN in table.columns
    wanted = sorted(_named(table, folders)) if named else sorted(folders)
    asked = {one: read_description(folders[one]) for one in wanted}  # others may be of another backbone
    prints = {one: description["backbone"].get("fingerprint") for one, description in asked.items()}
    if len(set(prints.values())) > 1 and (named or backbone is None):
        raise ConfigError(_several(asked, named))
    name = backbone or str(asked[wanted[0]]["backbone"].get("name"))
    likely = [one for one in asked.values() if one["backbone"].get("name") == name] or asked.values()
    words = any(description["head"].get("verbaliser") for description in likely)
    loaded = Backbone.load(name, dtype=dtype, device=device, language_model=words)
    left_out: dict[str, str] = {}
    if loaded.fingerprint in prints.values():  # else the first task says what it was trained on
        left_out = {one: "of another backbone" for one in wanted if prints[one] != loaded.fingerprint}
    most = {} if batch_size is None else {"batch_rows": batch_size, "decode_rows": batch_size}
    engine = Engine(loaded, limits=Limits(seconds=HOURS, wait_ms=0.5, **most))
    engine.start()
    try:
        cards = {one: engine.put(one, folders[one]) for one in wanted if one not in left_out}
        lacking = {one: word for one, card in cards.items() if (word := _lacks(table, card)) is not None}
        if not named and len(lacking) < len(cards):
            left_out |= {one: f"reads a column {word!r}, which is not there" for one, word in lacking.items()}
            cards = {one: card for one, card in cards.items() if one not in lacking}
        settings = {one: _sampling(folders[one]) for one, card in cards.items() if card.kind == "generation"}
        rows = list(_rows(table, cards))
        done = 0 if out is None else _resumed(out, table, rows, cards)
        with ticking("predicting", len(rows) - done) as tick, _appending(out) as file:
            failed = 0
            for line in _answers(engine, table, rows[done:], cards, settings):
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                file.flush()
                failed += "error" in line
                tick()
        return Counted(len(rows) - done - failed, failed, done, left_out)
    finally:
        engine.drain(0)


def _folders(tasks: Path) -> dict[str, Path]:
    if not tasks.is_dir():
        raise ConfigError(f"--tasks must be a folder of task folders, got {tasks}")
    found = {path.name: path for path in sorted(tasks.iterdir()) if path.is_dir() and (path / "task.json").is_file()}
    if not found:
        raise TaskError(f"{tasks} holds no task folder; expected folders written by `intarsia train`")
    return found


def _several(asked: dict[str, dict[str, Any]], named: bool) -> str:
    """What to do with tasks of several backbones, of which a run has one."""
    tasks: dict[str, list[str]] = {}
    for one, description in asked.items():
        info = description["backbone"]
        tasks.setdefault(f"{info.get('name')} (fingerprint {info.get('fingerprint')})", []).append(one)
    found = "; ".join(f"{', '.join(of[:4])}{', ...' * (len(of) > 4)} on {backbone}" for backbone, of in tasks.items())
    advice = "give a file of rows for each backbone" if named else "give --backbone B to ask those of one"
    return f"these tasks are of several backbones, and one is asked at a time: {found}; {advice}"


def _named(table: Table, folders: dict[str, Path]) -> set[str]:
    """The tasks that the rows name; DataError for one that is not there."""
    for row, name in enumerate(table.columns[COLUMN]):
        if not isinstance(name, str) or name not in folders:
            known = sorted(folders)
            raise table.bad_rows(
                [row], f"no task {name!r}; there are {', '.join(known[:8])}{nearest(str(name), known)}"
            )
    return set(table.columns[COLUMN])


def _lacks(table: Table, card: Card) -> str | None:
    """A column that the task reads and the file has not."""
    return next((column for column in card.columns if column not in table.columns), None)


def _rows(table: Table, cards: dict[str, Card]) -> Iterator[tuple[int, str]]:
    """(row, task) in the order of the output. DataError where a task's text column is missing."""
    for card in cards.values():
        if (missing := _lacks(table, card)) is not None:
            known = list(table.columns)
            raise DataError(
                f"{table.source} has no column {missing!r}, which task {card.name!r} reads; it has {', '.join(known)}"
                + nearest(missing, known)
            )
    named = table.columns.get(COLUMN)
    for row in range(len(table)):
        for name in [named[row]] if named is not None else cards:
            yield row, name


def _sampling(folder: Path) -> Sampling:
    given = read_description(folder)["data"].get("generation", {})
    known = {field.name for field in dataclasses.fields(Decoding)}
    decoding = Decoding(**{key: value for key, value in given.items() if key in known})
    if decoding.beams > 1:
        raise ConfigError(
            f"{folder} writes with {decoding.beams} beams, which is not done for many tasks at once; ask it alone: "
            f"intarsia predict {folder} --data FILE"
        )
    return Sampling(
        max_tokens=decoding.max_new_tokens,
        temperature=decoding.temperature if decoding.sample else 0.0,
        top_k=decoding.top_k if decoding.sample else 0,
        top_p=decoding.top_p,
        seed=decoding.seed,
    )


def _resumed(out: Path, table: Table, rows: Sequence[tuple[int, str]], cards: dict[str, Card]) -> int:
    """How many lines stand already; a last half line is cut off. ConfigError, and the file as it was, where they are of other rows
    or versions."""
    if not out.exists():
        return 0
    whole = out.read_bytes()
    *lines, half = whole.split(b"\n")
    for number, line in enumerate([*lines, half] if half else lines):
        try:
            asked = _asked(table, *rows[number], cards)
            if number < len(lines):
                found = json.loads(line)
                same = {key: found[key] for key in asked} == asked
            else:
                begun = json.dumps(asked, ensure_ascii=False)[:-1].encode()
                same = half[: len(begun)] == begun[: len(half)]
        except (ValueError, KeyError, TypeError, IndexError):
            same = False
        if not same:
            raise ConfigError(
                f"{out}, line {number + 1} is not of this file and these tasks, so there is nothing to go on with; remove it or "
                "give another --out"
            )
    if half:
        os.truncate(out, len(whole) - len(half))
    return len(lines)


class _appending:  # noqa: N801 - used like a function
    """The file, opened to append; standard output for None."""

    def __init__(self, out: Path | None) -> None:
        self.out = out

    def __enter__(self) -> TextIO:
        import sys

        self.file: TextIO = sys.stdout if self.out is None else self.out.open("a", encoding="utf-8")
        return self.file

    def __exit__(self, *_: Any) -> None:
        if self.out is not None:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()


def _answers(
    engine: Engine, table: Table, rows: Sequence[tuple[int, str]], cards: dict[str, Card], settings: dict[str, Sampling]
) -> Iterator[dict[str, Any]]:
    """A line for each row, in order; so many requests are under way that batches are full."""
    waiting: list[tuple[int, str, queue.SimpleQueue[Event]]] = []
    for row, name in rows:
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        try:
            engine.submit(_request(_texts(table, row, cards[name]), cards[name], settings), events.put)
        except RequestError as error:
            events.put(Failed(error))
        waiting.append((row, name, events))
        if len(waiting) == AHEAD:
            yield _line(table, *waiting.pop(0), cards)
    for one in waiting:
        yield _line(table, *one, cards)


def _texts(table: Table, row: int, card: Card) -> list[Any]:
    """What a task reads of a row: its texts, or its words."""
    values = [table.columns[column][row] for column in card.columns]
    if card.kind == "token-classification":
        values = (
            values[0].split() if isinstance(values[0], str) else values[0] if isinstance(values[0], list) else values
        )
    return ["" if value is None else value for value in values]


def _request(texts: list[Any], card: Card, settings: dict[str, Sampling]) -> Request:
    if wrong := [value for value in texts if not isinstance(value, str)]:
        raise BadRequest(f"{' '.join(str(wrong[0]).split())[:60]!r} is no text, but of type {type(wrong[0]).__name__}")
    if card.kind == "token-classification":
        return Tag(task=card.name, words=tuple(texts))
    if card.kind != "generation":
        return Classify(task=card.name, texts=tuple(texts))
    prompt = texts[0] if len(texts) == 1 else json.dumps(dict(zip(card.columns, texts, strict=True)))
    return Generate(task=card.name, prompt=prompt, sampling=settings[card.name])


def _asked(table: Table, row: int, name: str, cards: dict[str, Card]) -> dict[str, Any]:
    """How the row's line begins: what was asked, so that a run which goes on can tell whether it still is."""
    text = [str(value) for value in _texts(table, row, cards[name])]
    return {"row": row, "task": name, "version": cards[name].version, "text": text}


def _line(
    table: Table, row: int, name: str, events: queue.SimpleQueue[Event], cards: dict[str, Card]
) -> dict[str, Any]:
    line = _asked(table, row, name, cards)
    while isinstance(event := events.get(), Piece):
        pass
    if isinstance(event, Answer):
        found = event.prediction
        return {**line, "prediction": found.prediction, "label": found.label, "scores": found.scores}
    if isinstance(event, Finished):
        text = event.text.strip()
        label = text if text in cards[name].labels else None
        return {**line, "prediction": text, "label": label, "scores": None}
    return {**line, "error": str(event.error)}
