"""What studies.prompts_classification tries: data, epochs, and methods with their learning rates."""

from dataclasses import dataclass

from intarsia.methods import Method, PrefixTuning, PromptTuning, PTuning, PTuningV2

FILES = {
    "mrpc": {"train": "mrpc/train.tsv", "validation": "mrpc/dev.tsv", "test": "mrpc/test.tsv"},
    "sst2": {"train": "sst2/train_sentences.tsv", "validation": "sst2/dev.tsv", "test": "sst2/test.tsv"},
    "trec": {"train": "trec/train.tsv", "test": "trec/test.tsv"},
}


TEXT = {"mrpc": ("sentence1", "sentence2"), "sst2": ("sentence",), "trec": ("question",)}


EPOCHS = {"mrpc": 10, "sst2": 4, "trec": 8}


"""Those of the figures of peft and of results/adapters_classification.md."""


TEXT_EPOCHS = {"sst2": 2, "trec": 2}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A method with a recipe, and the learning rates to choose from."""

    family: str
    method: Method
    rates: tuple[float, ...]
    pooling: str = "mean"
    quiet: bool = False
    """No dropout inside the frozen trunk."""
    slow_head: bool = False
    """The head's learning rate is at most 5e-3, as is the library's default; else the others' own, as peft's was."""
    passes: int = 1
    """How many times the epochs of the other variants."""
    data: tuple[str, ...] = tuple(FILES)


WORDS = "decide to which class this text belongs by looking at what it means and how it is said in every word"


FLAT, MLP = (1e-2, 3e-2, 1e-1), (1e-3, 3e-3)


PROMPT, ENCODED = (2e-2, 5e-2, 2e-1), (2e-3, 5e-3, 1e-2)


ENCODER: dict[str, Variant] = {
    "prefix 20": Variant(family="prefix", method=PrefixTuning(length=20, mid=None), rates=FLAT),
    "prefix 20, quiet trunk": Variant(family="prefix", method=PrefixTuning(length=20, mid=None), rates=FLAT, quiet=True),
    "prefix 20, reparameterised, quiet trunk": Variant(family="prefix", method=PrefixTuning(length=20), rates=MLP, quiet=True),
    "ptuning-v2 20": Variant(family="P-tuning v2", method=PTuningV2(), rates=FLAT),
    "prompt 20, quiet trunk": Variant(family="prompt", method=PromptTuning(), rates=PROMPT, quiet=True),
    "ptuning 20, mlp, quiet trunk": Variant(family="P-tuning", method=PTuning(), rates=ENCODED, quiet=True),
    "prompt 20, pooler, quiet trunk": Variant(
        family="prompt", method=PromptTuning(), rates=PROMPT, pooling="pooler", quiet=True, data=("mrpc",)
    ),
    "ptuning 20, mlp, pooler, quiet trunk": Variant(
        family="P-tuning", method=PTuning(), rates=ENCODED, pooling="pooler", quiet=True, data=("mrpc",)
    ),
    "prompt 20": Variant(family="prompt", method=PromptTuning(), rates=(5e-2,)),
    "ptuning 20, lstm, quiet trunk": Variant(family="P-tuning", method=PTuning(encoder="lstm"), rates=(5e-3,), quiet=True),
    "prompt 20, text, quiet trunk": Variant(
        family="prompt", method=PromptTuning(init="text", init_text=WORDS), rates=(5e-2,), quiet=True
    ),
    # What follows was added after the runs of what stands above had been seen.
    "prefix 20, text, quiet trunk, slow head": Variant(
        family="prefix",
        method=PrefixTuning(length=20, mid=None, init="text", init_text=WORDS),
        rates=(2e-2,),
        quiet=True,
        slow_head=True,
    ),
    "prefix 20, std 1, slow head": Variant(
        family="prefix", method=PrefixTuning(length=20, mid=None, init_std=1.0), rates=(2e-2,), slow_head=True
    ),
    "prompt 20, embedding output, quiet trunk, slow head": Variant(
        family="prompt", method=PromptTuning(insert_at="embedding_output"), rates=(5e-2,), quiet=True, slow_head=True
    ),
    "prompt 20, quiet trunk, slow head, 2 x epochs": Variant(
        family="prompt", method=PromptTuning(), rates=(2e-2,), quiet=True, slow_head=True, passes=2
    ),
    "ptuning 20, mlp, quiet trunk, slow head, 2 x epochs": Variant(
        family="P-tuning", method=PTuning(), rates=(4e-3,), quiet=True, slow_head=True, passes=2
    ),
    # And these after the runs of all that stands above.
    "prefix 20, std 1, slow head, 2 x epochs": Variant(
        family="prefix",
        method=PrefixTuning(length=20, mid=None, init_std=1.0),
        rates=(2e-2,),
        slow_head=True,
        passes=2,
    ),
    "prefix 20, text, offset, quiet trunk, slow head, 2 x epochs": Variant(
        family="prefix",
        method=PrefixTuning(length=20, mid=None, init="text", init_text=WORDS, position_offset=True),
        rates=(1e-2,),
        quiet=True,
        slow_head=True,
        passes=2,
    ),
}  # fmt: skip


"""Most telling first: that is the order in which they run."""


TEXT_RATES, TEXT_SEEDS = (1e-2, 5e-2), (0, 1, 2)


TASK_WORDS = {"sst2": "Is the sentiment of this movie review positive or negative?",
              "trec": "What does this question ask for: abbreviation, description, entity, human, location or number?"}  # fmt: skip


TEXT_VARIANTS: dict[str, tuple[int, str]] = {
    "prompt 20, vocabulary": (20, "vocabulary"),
    "prompt 20, labels": (20, "labels"),
    "prompt 1, vocabulary": (1, "vocabulary"),
    "prompt 100, vocabulary": (100, "vocabulary"),
    "prompt 20, uniform": (20, "uniform"),
    "prompt 20, text": (20, "text"),
    "prompt 5, vocabulary": (5, "vocabulary"),
}


"""Length and initialisation."""


TEMPLATE = {"sst2": "Review: {sentence}\nSentiment: ", "trec": "Question: {question}\nType: "}


OUTPUTS = {
    "sst2": {"0": "negative", "1": "positive"},
    "trec": {"ABBR": "abbreviation", "DESC": "description", "ENTY": "entity", "HUM": "human", "LOC": "location",
             "NUM": "number"},
}  # fmt: skip
