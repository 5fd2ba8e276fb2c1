"""Data sets that the claims need, made from E2E: slots to tag in a sentence, and restaurants of kinds that were never seen.

E2E: fields of a restaurant, and sentences that people wrote of it. `linear` inputs ("name : Aromi | food : Chinese") as in
studies.table_to_text_runs.

Tagging: given a sentence alone, which words are the restaurant's name, what it is near to, its food, area, price range and rating.
The tags come from the fields' values where they stand word for word in the sentence. Every third name is kept out of training, and
the other splits have only such names, so that a name has to be known by the words around it.

Unseen kinds: training rows without Italian and Japanese food and without the riverside; the test inputs are those that have one of
these (unseen), and the others.
"""

import re
from collections.abc import Iterable, Sequence

SLOTS = {
    "name": "NAME",
    "near": "NEAR",
    "food": "FOOD",
    "area": "AREA",
    "price range": "PRICE",
    "customer rating": "RATING",
}
TAGS = ("O", *(f"{begin}-{slot}" for slot in SLOTS.values() for begin in "BI"))
NUMERIC = ("price range", "customer rating")
"""Tagged only with a number in them: "high" may be a price or a rating."""
HELD_OUT = {"food": ("Italian", "Japanese"), "area": ("riverside",)}
Tagged = tuple[list[str], list[int]]
"""Words, and the place of each one's tag in TAGS."""
Span = tuple[int, int, str]
"""First word, the one behind the last, slot."""


def fields(text: str) -> dict[str, str]:
    """Of a linear input."""
    return dict(part.split(" : ", 1) for part in text.split(" | "))  # type: ignore[misc]


def words_of(text: str) -> list[str]:
    """Words and single signs."""
    return re.findall(r"\w+(?:['’]\w+)*|[^\w\s]", text)


def tag(text: str, sentence: str) -> Tagged | None:
    """The sentence with its tags; None where a name does not stand in it word for word, so that a tag would be missing."""
    values, words = fields(text), words_of(sentence)
    found = [word.lower() for word in words]
    tags = [0] * len(words)
    missing = {"name", "near"} & values.keys()
    # The longest first: "Raja Indian Cuisine" is no Indian food.
    for slot in sorted(SLOTS.keys() & values.keys(), key=lambda slot: (-len(values[slot]), slot)):
        value = [word.lower() for word in words_of(values[slot])]
        if slot in NUMERIC and not any(word.isdigit() for word in value):
            continue
        for at in range(len(words) - len(value) + 1):
            part = slice(at, at + len(value))
            if found[part] == value and not any(tags[part]):
                begin = TAGS.index(f"B-{SLOTS[slot]}")
                tags[part] = [begin] + [begin + 1] * (len(value) - 1)
                missing.discard(slot)
    return None if missing else (words, tags)


def held_out_names(texts: Iterable[str]) -> set[str]:
    """Every third of the restaurants' names."""
    return set(sorted({fields(text)["name"] for text in texts})[::3])


def spans(tags: Sequence[str]) -> set[Span]:
    """What B- and I- tags mark; an I- that continues nothing begins something, as in CoNLL's scorer."""
    found, slot, start = set(), "", 0
    for at, one in enumerate([*tags, "O"]):
        begins = one[:1] == "B" or (one[:1] == "I" and one[2:] != slot)
        if slot and (begins or one == "O"):
            found.add((start, at, slot))
            slot = ""
        if begins:
            slot, start = one[2:], at
    return found


def span_f1(predicted: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> float:
    """F1 over whole spans of all rows."""
    ours, theirs = (
        {(row, *span) for row, tags in enumerate(rows) for span in spans(tags)} for rows in (predicted, wanted)
    )
    return 2 * len(ours & theirs) / max(1, len(ours) + len(theirs))


def is_unseen(text: str) -> bool:
    """Whether a restaurant is of a kind that is held out."""
    values = fields(text)
    return any(values.get(slot) in some for slot, some in HELD_OUT.items())


def seen_rows(texts: Sequence[str], sentences: Sequence[str]) -> list[int]:
    """Rows to train on: neither the fields nor the sentence (people wrote more than they were asked to) say what is held out."""
    words = [value.lower() for some in HELD_OUT.values() for value in some]
    return [
        row
        for row, (text, sentence) in enumerate(zip(texts, sentences, strict=True))
        if not is_unseen(text) and not any(word in sentence.lower() for word in words)
    ]
