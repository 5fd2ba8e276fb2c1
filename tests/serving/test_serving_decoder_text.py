"""Tokens to text as they come, and the next token: no half characters, no beginning of a stop text, draws by one's own seed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from intarsia.errors import ConfigError
from intarsia.serving.sampling import Chooser, Sampling, choose
from intarsia.serving.text import TextStream

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())


def bytes_tokenizer():
    """One token a byte, as far as a byte-level vocabulary can be cut up."""
    tokenizer = Tokenizer(models.BPE({letter: place for place, letter in enumerate(LETTERS)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


BYTES = bytes_tokenizer()


def streamed(text, stop=(), prompt="Say: "):
    """The pieces in which a text comes, byte by byte, until it stops."""
    stream = TextStream(BYTES, BYTES.encode(prompt), stop)
    pieces = []
    for token in BYTES.encode(text):
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    pieces.append(stream.finish())
    assert stream.text == "".join(pieces)
    return pieces, stream.stopped


def test_a_character_of_several_tokens_comes_when_it_is_whole():
    assert len(BYTES.encode("é🙂")) == 6
    assert streamed("aé🙂b")[0] == ["a", "", "é", "", "", "", "🙂", "b", ""]


def test_a_stop_text_across_tokens_is_held_back_and_never_shown():
    assert streamed("one END two", ["END"]) == (["o", "n", "e", " ", "", "", "", ""], True)


def test_what_only_looked_like_a_stop_text_comes_after_all():
    pieces, stopped = streamed("EN EN", ["END"])
    assert pieces == ["", "", "EN ", "", "", "EN"]
    assert not stopped


def test_the_stop_text_that_is_complete_first_ends_the_output():
    assert "".join(streamed("a bcd", ["bcd", "cd", " b"])[0]) == "a"


def test_a_text_that_ends_within_a_character_says_so_at_its_end():
    stream = TextStream(BYTES, [], ())
    for token in BYTES.encode("aé")[:-1]:
        stream.push(token)
    assert stream.text == "a"
    assert stream.finish() == "\ufffd"


@given(
    st.text(st.sampled_from("aab é🙂\n"), max_size=20),
    st.lists(st.text(st.sampled_from("ab é🙂"), min_size=1, max_size=3), max_size=3),
)
def test_pieces_are_whole_characters_and_end_before_the_first_stop_text(text, stop):
    pieces, stopped = streamed(text, stop)
    assert all("\ufffd" not in piece for piece in pieces)
    whole = "".join(pieces)
    assert text.startswith(whole)
    assert stopped == any(one in text for one in stop)
    assert not any(one in whole for one in stop)
    # The first text that is complete ends it; of several at one byte, the one that begins first.
    ends = [text.index(one) + len(one) for one in stop if one in text]
    if ends:
        assert whole == text[: min(text.index(one) for one in stop if one in text[: min(ends)])]
    else:
        assert whole == text


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"seed": 1 << 63},
        {"stop": ("",)},
        {"stop": ("x",) * 17},
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_draws_stay_among_the_likeliest():
    scores = torch.tensor([[3.0, 2.9, 0.0, -1.0, 2.8]])

    def drawn(**more):
        choosers = [Chooser(Sampling(temperature=1.0, seed=seed, **more)) for seed in range(200)]
        return set(choose(scores.expand(200, -1), choosers))

    assert drawn(top_k=2) == {0, 1}
    assert drawn(top_p=0.5) == {0, 1}
    assert drawn(top_p=1e-6) == {0}
    assert drawn() > {0, 1, 4}


def test_draws_follow_the_scores_at_their_temperature():
    scores = torch.tensor([0.0, 1.0])
    chooser = Chooser(Sampling(temperature=0.5))
    share = sum(chooser.draw(scores) for _ in range(4000)) / 4000
    assert abs(share - float(torch.sigmoid(torch.tensor(2.0)))) < 0.02


@pytest.mark.parametrize("temperature", [1e-9, 1e-40, 5e-324])
def test_the_smallest_temperatures_take_the_likeliest(temperature):
    scores = torch.tensor([[-30.0, 31.0, 30.5]])
    assert choose(scores, [Chooser(Sampling(temperature=temperature))]) == [1]


def test_greedy_rows_and_drawing_rows_share_a_step():
    scores = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    settings = [Sampling(), Sampling(temperature=1.0, seed=4), Sampling()]
    found = choose(scores, [Chooser(one) for one in settings])
    assert found[::2] == scores[::2].argmax(-1).tolist()
    assert found[1] == Chooser(settings[1]).draw(scores[1])
