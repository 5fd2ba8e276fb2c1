"""Scores of generated text. BLEU and chrF from sacrebleu (0 to 100), ROUGE from rouge_score (0 to 1)."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from intarsia.errors import ConfigError, nearest

GENERATED = ("bleu", "chrf", "rouge_l", "rouge_1", "rouge_2", "exact_match")
LEGAL = ("exact_match", "macro_f1", "illegal")
TOKENIZERS = ("13a", "none", "intl", "char")


@dataclass(frozen=True, kw_only=True, slots=True)
class TextMetrics:
    """How generated text is compared. The E2E scorer's BLEU is `lowercase=True, tokenize="13a"`."""

    lowercase: bool = False
    """Ignore case in BLEU, chrF and exact match. ROUGE always does."""
    tokenize: str = "13a"
    """BLEU's words: 13a (mteval v13a, the usual one), none (at blanks), intl (Unicode punctuation), char."""

    def __post_init__(self) -> None:
        if self.tokenize not in TOKENIZERS:
            near = nearest(self.tokenize, TOKENIZERS)
            raise ConfigError(f"tokenize must be one of {', '.join(TOKENIZERS)}, got {self.tokenize!r}{near}")

    def scores(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        """bleu, chrf: 0 to 100, over the corpus, each row against all its references, of which rows may have

        different numbers. rouge_l, rouge_1, rouge_2: F measure without stemming, 0 to 1, of the best reference, mean
        over the rows; words are runs of letters and digits of any script. exact_match: 0 to 1, share of outputs that
        equal one of their references, spacing around aside.
        """
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF

        # sacrebleu takes one stream per reference number, None where a row has no such reference.
        most = max(map(len, references))
        streams: Any = [[row[i] if i < len(row) else None for row in references] for i in range(most)]
        # force: it would warn of text that looks tokenised already.
        bleu = BLEU(lowercase=self.lowercase, tokenize=self.tokenize, force=True).corpus_score(predictions, streams)
        chrf = CHRF(lowercase=self.lowercase).corpus_score(predictions, streams)
        equal = exact_matches(predictions, references, self.lowercase)
        return {"bleu": bleu.score, "chrf": chrf.score, **_rouge(predictions, references), "exact_match": equal}


def exact_matches(predictions: Sequence[str], references: Sequence[Sequence[str]], lowercase: bool = False) -> float:
    """Share of outputs that equal one of their references, spacing around them aside."""

    def plain(text: str) -> str:
        return text.strip().lower() if lowercase else text.strip()

    hits = [plain(p) in map(plain, r) for p, r in zip(predictions, references, strict=True)]
    return sum(hits) / len(hits)


def legal_scores(
    predictions: Sequence[str], references: Sequence[Sequence[str]], labels: Sequence[str]
) -> dict[str, float]:
    """Of a text-to-text task, each 0 to 1. exact_match: the accuracy. illegal: share of outputs that are no label.

    macro_f1: mean of the labels' F1; an illegal output is wrong for its row's label, and counts for no other.
    """
    from sklearn.metrics import f1_score

    index = {label.strip(): i for i, label in enumerate(labels)}
    found = [index.get(text.strip(), -1) for text in predictions]
    right = [index[row[0].strip()] for row in references]
    f1 = f1_score(right, found, labels=range(len(labels)), average="macro", zero_division=0.0)  # type: ignore[arg-type]
    return {
        "exact_match": exact_matches(predictions, references),
        "macro_f1": float(f1),
        "illegal": found.count(-1) / len(found),
    }


class _Words:
    """ROUGE's words: rouge_score's own in ASCII text. It takes a-z and 0-9 alone for letters, so that an output in Greek or Hindi
    would score 0 also where it is the reference, and "café" would be "caf"."""

    def tokenize(self, text: str) -> list[str]:
        """Lower-case runs of letters, their marks and digits."""
        return "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text.lower()).split()


def _rouge(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    from rouge_score.rouge_scorer import RougeScorer

    names = {"rouge_l": "rougeL", "rouge_1": "rouge1", "rouge_2": "rouge2"}
    scorer = RougeScorer(list(names.values()), tokenizer=_Words())
    total = dict.fromkeys(names, 0.0)
    for text, row in zip(predictions, references, strict=True):
        against = [scorer.score(reference, text) for reference in row]
        for name, key in names.items():
            total[name] += max(scores[key].fmeasure for scores in against)
    return {name: value / len(predictions) for name, value in total.items()}
