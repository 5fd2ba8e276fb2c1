"""What to start from: for each method sizes, learning rates and length of training, with the figures that speak for them.

The figures are this project's own: evidence.json holds those rows of results/ that the recipes name (written by
studies/recipe_evidence.py, and compared with results/ by a test). There are two sorts of recipes: `labels` for tasks that a head
answers (MRPC, SST-2 and TREC over MiniLM), `text` for generation (E2E over SmolLM2). All learning rates are AdamW's at 32 rows a
step, with 10 % warm-up and a linear decay.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from intarsia.errors import ConfigError, nearest

Answers = Literal["labels", "text"]
BATCH = 32
"""Rows a step: that of every figure here."""
MOST_EPOCHS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Where a search begins. Of sizes and learning rates the first is the best guess, the last is given up first."""

    method: str
    learning_rates: tuple[float, ...]
    size: str | None = None
    """The field of the method that says how large it is."""
    sizes: tuple[int, ...] = ()
    init: str | None = None
    """The field that says how it starts."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the method."""
    examples: int = 35_000
    """Training rows that are seen in all, repeats counted; a small data set is repeated 20 times at most."""
    why: str = ""
    evidence: tuple[tuple[str, str], ...] = ()
    """(study, method) of rows in results/STUDY.json."""

    def epochs(self, rows: int) -> int:
        """Passes over so many training rows."""
        return max(1, min(MOST_EPOCHS, round(self.examples / max(1, rows))))

    def figures(self) -> list[str]:
        """What was measured, a line for each method of a study; validation chose the learning rates."""
        return [line for study, method in self.evidence if (line := _figures(study, method))]


def _figures(study: str, method: str) -> str:
    found = evidence().get(study, {}).get(method)
    if found is None:
        return ""
    scores = ", ".join(f"{data} {score:.2f} (lr {rate:g})" for data, (score, rate, _) in found["scores"].items())
    seeds = sorted({count for _, _, count in found["scores"].values()})
    many = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return f"{method}: {found['metric']} {scores}; {many} seed{'s' * (seeds[-1] > 1)} [results/{study}.md]"


def evidence() -> dict[str, Any]:
    """study -> method -> {metric, scores: data set -> [score, learning rate, seeds]}."""
    return json.loads(Path(__file__).with_name("evidence.json").read_text("utf-8"))


_ADAPTERS, _PROMPTS, _TABLES = "adapters_classification", "prompts_classification", "table_to_text"
_EPOCH = 42_000
"""Of E2E; the study trained for one."""
_LABELS = (
    Recipe(
        method="adapter",
        size="width",
        sizes=(48, 8),
        init="init_std",
        learning_rates=(1e-3, 5e-4, 2e-3),
        why="the rate hardly matters from 5e-4 to 2e-3; one adapter a layer (after: [ffn_out]) does as well with half the size",
        evidence=((_ADAPTERS, "adapter houlsby 48, quiet trunk"), (_ADAPTERS, "adapter pfeiffer 48")),
    ),
    Recipe(
        method="lora",
        size="rank",
        sizes=(8, 32),
        learning_rates=(2e-3, 1e-3, 4e-3),
        why="4e-3 lost five points on MRPC",
        evidence=((_ADAPTERS, "lora r8, quiet trunk"), (_ADAPTERS, "lora r8")),
    ),
    Recipe(
        method="prefix",
        size="length",
        sizes=(20, 5),
        init="init",
        settings={"mid": None},
        learning_rates=(3e-2, 1e-2, 1e-1),
        why="flat: through an MLP it trains 28 times as many numbers, and was better on one set of three",
        evidence=((_PROMPTS, "prefix 20, quiet trunk"), (_PROMPTS, "prefix 20, reparameterised, quiet trunk")),
    ),
    Recipe(
        method="ptuning-v2",
        size="length",
        sizes=(20, 5),
        init="init",
        learning_rates=(3e-2, 1e-2, 1e-1),
        why="a flat prefix with dropout; 100 positions are the paper's choice for tagging",
        evidence=((_PROMPTS, "ptuning-v2 20"),),
    ),
    Recipe(
        method="prompt",
        size="length",
        sizes=(20, 100),
        init="init",
        examples=70_000,
        learning_rates=(2e-2, 5e-2, 2e-1),
        why="twice the rows and a slow head (the default) bring 0.4 to 1.7 points",
        evidence=((_PROMPTS, "prompt 20, quiet trunk, slow head, 2 x epochs"), (_PROMPTS, "prompt 20, quiet trunk")),
    ),
    Recipe(
        method="ptuning",
        size="length",
        sizes=(20,),
        examples=70_000,
        learning_rates=(4e-3, 1e-2, 2e-3),
        why="the MLP does as well as the LSTM, and is three times as fast",
        evidence=(
            (_PROMPTS, "ptuning 20, mlp, quiet trunk, slow head, 2 x epochs"),
            (_PROMPTS, "ptuning 20, lstm, quiet trunk"),
        ),
    ),
    Recipe(method="full", learning_rates=(1e-4, 3e-5, 2e-4), evidence=((_ADAPTERS, "full"),)),
    Recipe(
        method="top-layers",
        size="k",
        sizes=(3, 1),
        learning_rates=(2e-4, 1e-4, 5e-4),
        evidence=((_ADAPTERS, "top-3"), (_ADAPTERS, "top-1")),
    ),
    Recipe(method="layer-norm", learning_rates=(5e-3, 1e-2, 2e-3), evidence=((_ADAPTERS, "layer-norm"),)),
    Recipe(method="bitfit", learning_rates=(5e-3, 2e-3, 1e-2), evidence=((_ADAPTERS, "bitfit"),)),
    Recipe(method="head", learning_rates=(5e-3, 2e-2, 5e-2), evidence=((_ADAPTERS, "head"),)),
)
_TEXT = (
    Recipe(
        method="adapter",
        size="width",
        sizes=(57, 3),
        init="init_std",
        learning_rates=(6e-3, 3e-3, 1e-3),
        examples=_EPOCH,
        why="width 57 is 3 % of SmolLM2; 0.1 % is width 3 with after: [ffn_out] and no trained norms",
        evidence=((_TABLES, "adapters 3 %"), (_TABLES, "adapters 0.1 %")),
    ),
    Recipe(
        method="lora",
        size="rank",
        sizes=(8, 32),
        learning_rates=(1e-2, 3e-3, 2e-2),
        examples=_EPOCH,
        why="2e-2 was 0.2 BLEU better on the dev split, and then one of its three full runs fell to 41",
        evidence=((_TABLES, "LoRA r8"),),
    ),
    Recipe(
        method="prefix",
        size="length",
        sizes=(12, 5),
        init="init",
        learning_rates=(5e-4, 1e-3, 2e-4),
        examples=_EPOCH,
        why="through the MLP, as in the paper; better still from a sentence: inits: [{init: text, init_text: ...}]",
        evidence=((_TABLES, "prefix 0.1 %"),),
    ),
    Recipe(
        method="ptuning-v2",
        size="length",
        sizes=(12, 5),
        init="init",
        learning_rates=(2e-2, 1e-2, 5e-3),
        examples=_EPOCH,
        why="not measured here",
    ),
    Recipe(
        method="prompt",
        size="length",
        sizes=(20, 100),
        init="init",
        learning_rates=(2e-1, 6e-2, 2e-2),
        examples=_EPOCH,
        why="2e-1 is the edge of what was tried",
        evidence=((_TABLES, "prompt 20"), (_TABLES, "prompt 100")),
    ),
    Recipe(
        method="ptuning",
        size="length",
        sizes=(20,),
        learning_rates=(1.5e-2, 6e-3, 2e-3),
        examples=_EPOCH,
        evidence=((_TABLES, "P-tuning 20"),),
    ),
    Recipe(
        method="full",
        learning_rates=(3e-4, 1e-4, 6e-4),
        examples=_EPOCH,
        evidence=((_TABLES, "full fine-tuning"),),
    ),
    Recipe(
        method="top-layers",
        size="k",
        sizes=(2,),
        learning_rates=(4e-3, 2e-3, 1e-3),
        examples=_EPOCH,
        evidence=((_TABLES, "top 2 layers"),),
    ),
    Recipe(method="layer-norm", learning_rates=(5e-3, 1e-2, 2e-3), examples=_EPOCH, why="not measured here"),
    Recipe(method="bitfit", learning_rates=(5e-3, 2e-3, 1e-2), examples=_EPOCH, why="not measured here"),
)
RECIPES: dict[Answers, dict[str, Recipe]] = {
    "labels": {recipe.method: recipe for recipe in _LABELS},
    "text": {recipe.method: recipe for recipe in _TEXT},
}


def answers_of(kind: str) -> Answers:
    """Which recipes a kind of task takes."""
    return "text" if kind == "generation" else "labels"


def recipe_of(method: str, kind: str) -> Recipe:
    """The recipe of a method for a kind of task. ConfigError where there is none."""
    known = RECIPES[answers_of(kind)]
    if method not in known:
        near = nearest(method, list(known))
        raise ConfigError(f"no recipe for method {method!r} and a {kind} task; there are {', '.join(known)}{near}")
    return known[method]
