"""Prompt tuning and P-tuning of one frozen encoder, and both answering in one batch.

python examples/prompt_classification.py --out runs/prompts                       # sentiment of film reviews, MiniLM
python examples/prompt_classification.py --out runs/prompts --train train.tsv     # columns sentence and label
"""

import argparse
from pathlib import Path
from typing import Any

import intarsia

TEXTS = ("a quiet, funny and moving film", "two hours that I want back")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="embedded:minilm", help="hub name, folder or embedded:minilm")
    parser.add_argument("--train", type=Path, help="CSV, TSV or JSONL; without it, the packaged film reviews")
    parser.add_argument("--out", type=Path, default=Path("runs/prompts"))
    parser.add_argument("--max-steps", type=int, default=400)
    args = parser.parse_args()

    # One backbone, loaded once; each run adds a task of some kilobytes.
    backbone = intarsia.Backbone.load(args.backbone)
    data: dict[str, Any] = {"train": args.train} if args.train else {"data": "embedded:movies"}
    methods = {
        # Twenty vectors before the input, starting as embeddings of common words (Lester et al. 2021).
        "prompt": intarsia.PromptTuning(length=20),
        # The same, made by a small MLP while training and folded afterwards (Liu et al. 2021).
        "ptuning": intarsia.PTuning(length=20),
    }
    bank = intarsia.TaskBank(backbone)
    for name, method in methods.items():
        trained = intarsia.train(
            backbone=backbone, method=method, out=args.out / name, max_steps=args.max_steps, name=name, **data
        )
        accuracy = trained.metrics["validation"]["accuracy"]
        print(f"{name}: accuracy {accuracy:.4f}, {trained.parameters:,} trained, {trained.size / 1e3:.0f} kB kept")
        bank.load(args.out / name)

    # Rows of both tasks, and one of the plain model, in one forward pass.
    texts = [*TEXTS, *TEXTS, "no task at all"]
    tasks = ["prompt", "prompt", "ptuning", "ptuning", None]
    batch = backbone.tokenizer(texts, padding=True, return_tensors="pt")
    for text, name, result in zip(texts, tasks, bank(batch, tasks=tasks), strict=True):
        if name is not None:
            label = bank.tasks[name].head.labels[int(result.argmax())]
            print(f"{name}: {text!r} -> {label} ({result.softmax(-1).max():.3f})")


if __name__ == "__main__":
    try:
        main()
    except (intarsia.IntarsiaError, OSError) as error:  # a file, or a model that is not here; each says what
        raise SystemExit(f"{error}") from None
