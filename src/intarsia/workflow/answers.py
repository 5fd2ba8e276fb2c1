"""What a task answers for each row, with the labels' names."""

from collections.abc import Iterator

import numpy as np

from intarsia.data import EncodedSource, Rows
from intarsia.heads import Head
from intarsia.rows import Prediction, answer
from intarsia.training import Scores
from intarsia.workflow.reading import Source


def named(rows: Rows, head: Head, source: Source, answers: Scores) -> list[Prediction]:
    """Answers in the order of the rows (the source's plan is in order of length), with the labels' names."""
    found: list[Prediction | None] = [None] * len(rows)
    for at, (batch, place, row) in enumerate(_places(source)):
        text = list(rows.texts[row])
        if head.kind == "generation":
            written = answers.predictions[at]
            label = written if written in head.labels else None
            found[row] = Prediction(text=text, prediction=written, label=label, scores=None)
            continue
        assert isinstance(source, EncodedSource)
        spots = _word_spots(source, batch, place, len(text))
        found[row] = answer(text, head, answers.scores[at], answers.predictions[at], spots)
    return [one for one in found if one is not None]


def _places(source: Source) -> Iterator[tuple[np.ndarray, int, int]]:
    """Batch, place in the batch and row, in the order of the source's plan."""
    for batch in source.plan(0):
        for place, row in enumerate(batch):
            yield batch, place, int(row)


def _word_spots(source: EncodedSource, batch: np.ndarray, place: int, words: int) -> list[int | None]:
    """Token-classification: at which position of its padded batch row each word begins; None for a word without a token."""
    encoded = source.encoded
    if encoded.words is None:
        return []
    row = batch[place]
    own = encoded.words[encoded.offsets[row] : encoded.offsets[row + 1]]
    shift = int(encoded.lengths[batch].max()) - len(own) if source.padding_side == "left" else 0
    spots: list[int | None] = [None] * words
    for position, word in enumerate(own):
        if word >= 0:
            spots[word] = position + shift
    return spots
