"""The runs of bench_compare_h100, which both sides do, and the file that they write to."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RATES = {
    "lora": (1e-3, 2e-3, 4e-3, 5e-4),
    "prefix": (3e-2, 1e-2, 3e-3, 1e-1),
    "prompt": (2e-2, 5e-2, 1e-2, 2e-1),
    "ptuning": (4e-3, 2e-3, 1e-3, 1e-2),
    "adapter": (1e-3, 5e-4, 2e-3, 4e-3),
}
SIZES = {"lora": 8, "prefix": 20, "prompt": 20, "ptuning": 20, "adapter": 48}
SEEDS = (1, 2)
PACKS = {
    "peft's methods": ("lora", "prefix", "prompt", "ptuning"),
    "with adapters": ("lora", "prefix", "prompt", "adapter"),
}
BATCH, HEAD_RATE, WARMUP = 32, 5e-3, 0.1


def runs_of(
    data: Path, methods: Sequence[str], out: Path, epochs: int = 1, device: str = "auto", steps: int | None = None
) -> list[tuple[dict[str, Any], Any]]:
    """What each run is, and its settings, as a comparison makes them from its candidates. steps: of each; None: whole runs."""
    from intarsia.data import load_data
    from intarsia.workflow.compare import resolve
    from intarsia.workflow.compare.expansion import expand, member, slug

    flags = {
        "backbone": "embedded:minilm",
        "data.train": data / "train.tsv",
        "data.validation": data / "dev.tsv",
        "data.test": data / "test.tsv",
        "data.text_columns": "sentence1,sentence2",
        "data.label_column": "label",
        "head.pooling": "pooler",
        "methods": {name: {"sizes": [SIZES[name]], "learning_rates": RATES[name]} for name in methods},
        "train.batch_size": BATCH,
        "train.epochs": epochs,
        "dtype": "bfloat16",
        "device": device,
        "out": out,
    }
    settings, found = resolve(None, flags), []
    rows = len(load_data(settings.base.data.spec()).split("train"))
    for one in expand(settings, "classification", rows):
        for seed in SEEDS:
            facts = {"method": one.family, "rate": one.learning_rate, "seed": seed}
            folder = out / slug(f"{one.name} seed {seed}")
            run = member(settings, one, folder=folder, seed=seed, steps=steps or one.steps, evaluations=epochs)
            found.append((facts, run))
    return found


def read(files: Sequence[Path]) -> list[dict[str, Any]]:
    """The lines of all that are there."""
    return [json.loads(line) for path in files if path.exists() for line in path.read_text().splitlines()]


def write(out: Path, line: dict[str, Any]) -> None:
    """One more line of the file, and to be seen."""
    print(json.dumps(line), flush=True)
    with out.open("a") as file:
        file.write(json.dumps(line) + "\n")
