"""Prompt tuning: its initialisations, its places, its errors."""

import json

import pytest
import torch

from intarsia.errors import ConfigError, UnsupportedError
from intarsia.methods import PromptTuning, method_from_dict, method_to_dict
from methods.fakes import BLOCK, ENCODER, VOCABULARY, WORDS, FakePretrained, built

BOTH = [*ENCODER, WORDS, BLOCK]


def prompt(method, available=BOTH, **more):
    (delta,) = built(method, available, **more).values()
    return delta


def rows_of(vectors):
    """Which rows of the vocabulary these vectors are."""
    return [VOCABULARY.tolist().index(vector) for vector in vectors.tolist()]


def test_the_prompt_is_all_that_is_trained():
    delta = prompt(PromptTuning(length=4, place="after-first"))
    assert {name: tuple(p.shape) for name, p in delta.named_parameters()} == {"prompt": (1, 4, 6)}
    assert torch.equal(delta(), delta.prompt)
    assert (delta.length, delta.place) == (4, "after-first")
    assert delta.fold() is delta
    assert delta.decay_free() == {"prompt"}


def test_uniform_values_fill_the_range():
    values = prompt(PromptTuning(length=300, init="uniform"))().detach()
    assert -0.5 <= values.min() < -0.45
    assert 0.45 < values.max() <= 0.5
    wide = prompt(PromptTuning(length=300, init="uniform", init_range=2.0))().detach()
    assert 1.9 < wide.max() <= 2.0


def test_vocabulary_rows_are_drawn_without_replacement():
    drawn = rows_of(prompt(PromptTuning(length=30, init="vocabulary"))()[0])
    assert len(set(drawn)) == 30
    assert drawn != sorted(drawn)
    # A prompt longer than the vocabulary takes every word before it takes one twice.
    again = rows_of(prompt(PromptTuning(length=50, init="vocabulary"))()[0])
    assert set(again[:40]) == set(range(40))


def test_only_the_commonest_words_are_drawn():
    asked = []

    class Counting(FakePretrained):
        def common_embeddings(self, count):
            asked.append(count)
            return VOCABULARY[:5]

    drawn = rows_of(prompt(PromptTuning(length=5, init="vocabulary"), pretrained=Counting())()[0])
    assert asked == [5000]
    assert sorted(drawn) == [0, 1, 2, 3, 4]


def test_text_gives_the_words_embeddings_and_the_vocabulary_the_rest():
    assert rows_of(prompt(PromptTuning(length=2, init="text", init_text="a bb ccc"))()[0]) == [1, 2]
    assert rows_of(prompt(PromptTuning(length=3, init="text", init_text="a bb ccc"))()[0]) == [1, 2, 3]
    assert rows_of(prompt(PromptTuning(length=9, init="text", init_text="a bb ccc"))()[0])[:3] == [1, 2, 3]


def test_labels_give_the_means_of_their_word_pieces_and_the_vocabulary_the_rest():
    values = prompt(PromptTuning(length=4, init="labels"), labels=("a ccc", "bb"))()[0]
    assert torch.equal(values[0], (VOCABULARY[1] + VOCABULARY[3]) / 2)
    assert torch.equal(values[1], VOCABULARY[2])
    assert len(set(rows_of(values[2:]))) == 2
    assert torch.equal(prompt(PromptTuning(length=1, init="labels"), labels=("bb", "a"))()[0, 0], VOCABULARY[2])


@pytest.mark.parametrize("init", ["uniform", "vocabulary"])
def test_the_same_seed_gives_the_same_prompt_and_another_seed_another(init):
    one, again, other = (prompt(PromptTuning(init=init), seed=seed)() for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_words_are_the_place_where_there_are_words():
    assert PromptTuning().sites(BOTH) == [WORDS]
    assert PromptTuning().sites([BLOCK]) == [BLOCK]
    assert PromptTuning(insert_at="embedding_output").sites(BOTH) == [BLOCK]


def test_at_the_embedding_output_the_prompt_is_uniform_and_as_wide():
    for method in (
        PromptTuning(insert_at="embedding_output"),
        PromptTuning(insert_at="embedding_output", init="uniform"),
    ):
        values = prompt(method)()
        assert values.shape == (1, 20, 8)
        assert values.abs().max() <= 0.5
    with pytest.raises(ConfigError, match="this backbone has no words; give 'uniform'"):
        prompt(PromptTuning(init="vocabulary"), [BLOCK])


def test_dropout_acts_on_the_prompt_in_training_only():
    delta = prompt(PromptTuning(length=100, init="uniform", dropout=0.5)).train()
    assert 0.3 < (delta() == 0).float().mean() < 0.7
    assert torch.equal(delta.eval()(), delta.prompt)


@pytest.mark.parametrize(
    ("insert_at", "available"), [("word_embeddings", [BLOCK]), ("embedding_output", [WORDS]), ("auto", [])]
)
def test_a_backbone_without_the_place_is_named(insert_at, available):
    with pytest.raises(UnsupportedError) as error:
        PromptTuning(insert_at=insert_at).sites(available)
    assert "which this backbone does not have" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"place": "middle"}, "place must be 'start', 'after-first', 'end', 'template'; got 'middle'"),
        (
            {"insert_at": "attention"},
            "insert_at must be 'auto', 'word_embeddings', 'embedding_output'; got 'attention'",
        ),
        ({"place": "template", "insert_at": "embedding_output"}, "slots are words; give insert_at 'word_embeddings'"),
        ({"init": "zero"}, "init must be 'auto', 'uniform', 'vocabulary', 'text', 'labels'; got 'zero'"),
        ({"init": "text"}, "init_text must hold words; got None"),
        ({"init_text": "hello"}, "init_text is given, but init is 'auto'"),
        ({"init": "labels", "insert_at": "embedding_output"}, "words have no embeddings at the embedding output"),
        ({"init_range": -1.0}, "init_range must be 0 or more, got -1.0"),
        ({"dropout": -0.1}, "dropout must be in [0, 1), got -0.1"),
    ],
)
def test_a_bad_setting_is_named_at_birth(settings, says):
    with pytest.raises(ConfigError) as error:
        PromptTuning(**settings)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_labels_are_needed_where_they_are_asked_for():
    with pytest.raises(ConfigError, match="init is 'labels', but the task has none"):
        prompt(PromptTuning(init="labels"))


def test_a_vocabulary_without_words_is_named():
    class Wordless(FakePretrained):
        def common_embeddings(self, count):
            return VOCABULARY[:0]

    with pytest.raises(ConfigError, match="no whole words to start a prompt from; give init 'uniform'"):
        prompt(PromptTuning(), pretrained=Wordless())


def test_the_folded_method_needs_neither_words_nor_labels():
    method = PromptTuning(length=7, init="labels", place="end", insert_at="word_embeddings", dropout=0.3)
    folded = method.folded()
    assert folded == PromptTuning(length=7, init="uniform", place="end", insert_at="word_embeddings", dropout=0.3)
    assert PromptTuning(init="text", init_text="words").folded() == PromptTuning(init="uniform")


@pytest.mark.parametrize(
    "method",
    [PromptTuning(), PromptTuning(init="text", init_text="good or bad", place="template", length=3, dropout=0.5)],
)
def test_a_prompt_comes_back_from_json_as_it_was(method):
    assert method_from_dict(json.loads(json.dumps(method_to_dict(method)))) == method
