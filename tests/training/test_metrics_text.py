"""Scores of generated text, against numbers worked out by hand."""

import math

import pytest

from intarsia.errors import ConfigError
from intarsia.training import compute_metrics, default_metric, higher_is_better, metric_names
from intarsia.training.metrics import TextMetrics, resolve_metric


def test_an_output_that_equals_one_of_its_references_is_perfect():
    references = [["the cat sat on the mat", "a cat sat there"], ["dogs bark at the moon"]]
    scores = compute_metrics("generation", ["the cat sat on the mat", " dogs bark at the moon\n"], references, ())
    perfect = {"bleu": 100, "chrf": 100, "rouge_l": 1, "rouge_1": 1, "rouge_2": 1, "exact_match": 1}
    assert scores == pytest.approx(perfect)
    assert set(scores) | {"loss"} == set(metric_names("generation", ()))


def test_bleu_takes_rows_with_unequal_numbers_of_references():
    predictions = ["a b c d e", "f g h i j"]
    references = [["a b c d e"], ["x f g y z", "f g q h i"]]
    scores = compute_metrics("generation", predictions, references, (), TextMetrics(tokenize="none"))
    # Row 1 matches whole: 5, 4, 3, 2 n-grams. Row 2, over both references: f g h i of 5; "f g" and "h i" of 4; none of 3;
    # none of 2. Lengths are equal, so there is no brevity penalty.
    expected = 100 * math.exp(sum(map(math.log, (9 / 10, 6 / 8, 3 / 6, 2 / 4))) / 4)
    assert scores["bleu"] == pytest.approx(expected)


def test_more_references_never_lower_a_score():
    one = compute_metrics("generation", ["a cat sat on a mat"], [["the cat sat"]], ())
    two = compute_metrics("generation", ["a cat sat on a mat"], [["the cat sat", "a cat sat on the mat"]], ())
    assert all(two[name] >= one[name] for name in ("chrf", "rouge_l", "rouge_1", "rouge_2"))
    assert two["rouge_1"] == pytest.approx(5 / 6)


def test_rouge_is_the_f_measure_of_the_best_reference():
    scores = compute_metrics("generation", ["a b c d"], [["a c", "x y"]], ())
    # against "a c": precision 2/4, recall 2/2; the bigram "a c" is not there
    assert (scores["rouge_1"], scores["rouge_l"], scores["rouge_2"]) == pytest.approx((2 / 3, 2 / 3, 0.0))


@pytest.mark.parametrize("text", ["μια γάτα κάθεται εκεί", "кошка сидит здесь", "बिल्ली यहाँ बैठी है", "pâté et thé"])
def test_rouge_knows_words_of_any_script(text):
    first, _, rest = text.partition(" ")
    assert first not in rest
    same, other = (
        compute_metrics("generation", [written], [[text]], ()) for written in (text.upper(), f"{first[:2]} {rest}")
    )
    assert (same["rouge_1"], same["rouge_2"], same["rouge_l"]) == pytest.approx((1, 1, 1))
    words = len(text.split())
    assert (other["rouge_1"], other["rouge_l"]) == pytest.approx(((words - 1) / words,) * 2)


def test_rouge_of_ascii_text_is_that_of_rouge_score():
    from rouge_score.rouge_scorer import RougeScorer

    text, reference = (
        "It's a 5-star pub_cafe (cheap), isn't it? Yes: #1!",
        "A 5 star Cafe: cheap -- it's no. 1; isn't\tit",
    )
    scores = compute_metrics("generation", [text], [[reference]], ())
    theirs = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(reference, text)
    assert 0 < scores["rouge_2"] < 1
    for ours, name in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
        assert scores[ours] == pytest.approx(theirs[name].fmeasure)


def test_case_counts_unless_told_otherwise():
    predictions, references = ["The Cat Sat There"], [["the cat sat there"]]
    strict = compute_metrics("generation", predictions, references, ())
    loose = compute_metrics("generation", predictions, references, (), TextMetrics(lowercase=True))
    assert (strict["exact_match"], strict["bleu"]) == (0.0, 0.0)
    assert (loose["exact_match"], loose["bleu"], loose["chrf"]) == pytest.approx((1.0, 100.0, 100.0))


def test_the_tokenizer_decides_what_a_word_is():
    predictions, references = ["one, two, three four."], [["one , two , three four ."]]
    scores = {
        name: compute_metrics("generation", predictions, references, (), TextMetrics(tokenize=name))["bleu"]
        for name in ("13a", "none")
    }
    assert scores["13a"] == pytest.approx(100)
    assert scores["none"] < 10
    with pytest.raises(
        ConfigError, match="tokenize must be one of 13a, none, intl, char, got '13b'; did you mean '13a'"
    ):
        TextMetrics(tokenize="13b")


@pytest.mark.parametrize("predictions", [["", ""], ["...", "."], ["语言", "词"]])
def test_outputs_without_a_word_give_finite_numbers(predictions):
    scores = compute_metrics("generation", predictions, [["a b"], ["c", "d e f"]], ())
    assert all(math.isfinite(value) for value in scores.values())
    assert scores["exact_match"] == 0


def test_text_to_text_counts_illegal_outputs_and_holds_them_for_wrong():
    predictions, references = ["good", " bad\n", "goods", "bad"], [["good"], ["bad"], ["good"], ["good"]]
    scores = compute_metrics("generation", predictions, references, ("bad", "good"))
    # bad: tp 1, fp 1, fn 0, f1 2/3; good: tp 1, fp 0, fn 2, f1 1/2
    assert scores == pytest.approx({"exact_match": 1 / 2, "illegal": 1 / 4, "macro_f1": (2 / 3 + 1 / 2) / 2})
    assert set(scores) | {"loss"} == set(metric_names("generation", ("bad", "good")))


def test_the_default_metric_of_generation_is_the_loss_which_needs_no_generating():
    assert default_metric("generation", ()) == default_metric("generation", ("a", "b")) == "loss"
    assert not higher_is_better("illegal")
    assert higher_is_better("bleu")
    with pytest.raises(ConfigError, match="metric of a generation task must be one of loss, exact_match"):
        resolve_metric("bleu", "generation", ("a", "b"))
