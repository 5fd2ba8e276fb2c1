"""A tiny BERT with its tokenizer in a folder, tiny data files, and a way to call the command line: no hub, no packages."""

import csv
import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

WORDS = ("good", "fine", "great", "bad", "poor", "awful", "the", "film", "was", "plot", "a", "very", "book", "and")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def make_tokenizer(folder: Path, single: str, pair: str | None = None, *, eos: bool = False, length: int = 32) -> None:
    """A tokenizer that knows WORDS, as save_pretrained writes it. single, pair: where the special tokens go."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate((*SPECIAL, *WORDS))}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single=single, pair=pair or f"{single} $B", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_input_names=["input_ids", *(["token_type_ids"] if pair else []), "attention_mask"],
        model_max_length=length,
        pad_token="[PAD]",
        unk_token="[UNK]",
        **({"eos_token": "[SEP]"} if eos else {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}),
    ).save_pretrained(folder)


def make_backbone(folder: Path, *, seed: int = 0, language_model: bool = False, positions: int = 32) -> Path:
    """A random two-layer BERT and its tokenizer, as save_pretrained writes them."""
    from transformers import BertConfig, BertForMaskedLM, BertModel

    make_tokenizer(folder, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", length=positions)
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=positions,
    )
    with _seeded(seed):
        model = BertForMaskedLM(config) if language_model else BertModel(config, add_pooling_layer=False)
        model.save_pretrained(folder)
    return folder


def make_decoder(folder: Path) -> Path:
    """A random two-layer GPT-2, whose positions end at 32."""
    from transformers import GPT2Config, GPT2LMHeadModel

    make_tokenizer(folder, "$A", eos=True)
    size: dict[str, Any] = {
        "vocab_size": len(SPECIAL) + len(WORDS),
        "n_positions": 32,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
    }
    with _seeded(0):
        GPT2LMHeadModel(GPT2Config(**size, bos_token_id=None, eos_token_id=3, pad_token_id=0)).save_pretrained(folder)
    return folder


def make_encoder_decoder(folder: Path) -> Path:
    """A random T5 of two and two layers."""
    from transformers import T5Config, T5ForConditionalGeneration

    make_tokenizer(folder, "$A [SEP]", eos=True)
    size: dict[str, Any] = {
        "vocab_size": len(SPECIAL) + len(WORDS),
        "d_model": 32,
        "d_kv": 6,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
    }
    config = T5Config(**{**size, "pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 0})
    with _seeded(0):
        T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def sentences(count: int, *, seed: int = 0) -> list[tuple[str, str]]:
    """(text, pos or neg), no text twice; which of the two is one word's doing."""
    rng, seen, rows = random.Random(seed), set(), []
    while len(rows) < count:
        label = ("pos", "neg")[len(rows) % 2]
        mood = rng.choice(WORDS[:3] if label == "pos" else WORDS[3:6])
        text = " ".join([*rng.choices(WORDS[6:], k=rng.randint(2, 9)), mood])
        if text not in seen:
            seen.add(text)
            rows.append((text, label))
    return rows


def write_csv(path: Path, rows: Sequence[Sequence[str]], header: Sequence[str] = ("text", "label")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


class Result(NamedTuple):
    status: int
    out: str
    err: str

    def lines(self) -> list[Any]:
        """Standard output as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture(scope="session")
def backbone(tmp_path_factory) -> Path:
    return make_backbone(tmp_path_factory.mktemp("backbone") / "tiny-bert")


@pytest.fixture(scope="session")
def decoder(tmp_path_factory) -> Path:
    return make_decoder(tmp_path_factory.mktemp("backbone") / "tiny-gpt2")


@pytest.fixture(scope="session")
def encoder_decoder(tmp_path_factory) -> Path:
    return make_encoder_decoder(tmp_path_factory.mktemp("backbone") / "tiny-t5")


@pytest.fixture(scope="session")
def masked(tmp_path_factory) -> Path:
    """The tiny BERT with its masked-language-model head."""
    return make_backbone(tmp_path_factory.mktemp("backbone") / "tiny-mlm", language_model=True)


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> dict[str, Path]:
    """train, validation and test CSV files, with no text in common."""
    folder, rows = tmp_path_factory.mktemp("data"), sentences(160)
    parts = {"train": rows[:96], "validation": rows[96:128], "test": rows[128:]}
    return {name: write_csv(folder / f"{name}.csv", part) for name, part in parts.items()}


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """cli("train", "--epochs", 1) -> Result; in this process, with the token cache in the test's folder."""
    from transformers.utils import logging

    from intarsia.cli.__main__ import main

    monkeypatch.setenv("INTARSIA_CACHE", str(tmp_path / "cache"))
    # What the environment variables that `main` sets do in a process of its own.
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    def run(*argv: object) -> Result:
        capsys.readouterr()
        status = main([str(part) for part in argv])
        return Result(status, *capsys.readouterr())

    yield run
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


@pytest.fixture(scope="session")
def trained(backbone, files, tmp_path_factory) -> Path:
    """A task folder of two epochs, made once; tests that change it copy it first."""
    from intarsia.cli.__main__ import main

    out = tmp_path_factory.mktemp("runs") / "mood"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTARSIA_CACHE", str(tmp_path_factory.mktemp("cache")))
        assert main([*train_arguments(backbone, files), "--epochs", "2", "--out", str(out)]) == 0
    return out


def train_arguments(backbone: Path, files: dict[str, Path]) -> list[str]:
    """`train` on the tiny files with a narrow adapter; --out is the caller's."""
    given = ["train", "--backbone", backbone, "--train", files["train"], "--validation", files["validation"]]
    return [*map(str, given), "--method", "adapter", "--set", "method.width=4", "--device", "cpu", "--dtype", "float32"]
