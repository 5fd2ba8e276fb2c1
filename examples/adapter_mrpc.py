"""Adapter tuning step by step: a frozen BERT, one small adapter, MRPC, a plain PyTorch loop.

MRPC asks whether two sentences say the same. Only the adapter, the LayerNorms and the head are trained.

    python examples/adapter_mrpc.py --out runs/mrpc                                        # MRPC from the hub
    python examples/adapter_mrpc.py --out runs/mrpc --train train.tsv --validation dev.tsv # or from tab-separated files
    python examples/adapter_mrpc.py --predict runs/mrpc "He left in May." "In May he went away."
    (add --backbone embedded:minilm to each for a small BERT that comes as a package and needs no hub)
"""

import argparse
from pathlib import Path

import torch
from torch.optim import AdamW
from torch.utils.data import DataLoader

from intarsia import Backbone, BottleneckAdapter, Head, IntarsiaError, Task, TaskBank
from intarsia.data import DataSpec, load_data

NAME = "text_classification_adapter"
LABELS = ("not_equivalent", "equivalent")
Row = tuple[tuple[str, str], int]


def main() -> None:
    args = parse_arguments()

    # 1. BERT and its tokenizer. A backbone is frozen when it is loaded: none of its parameters will get a gradient.
    backbone = Backbone.load(args.backbone)
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    if args.predict:
        predict(backbone, *args.predict)
        return

    # 2. A bottleneck adapter after each sublayer, and a head for two classes. `task` holds all that is trained and
    #    nothing else, so it is an ordinary nn.Module for an optimizer. The bank is what puts a task to work.
    torch.manual_seed(args.seed)
    method = BottleneckAdapter(reduction_factor=16, non_linearity="relu")
    task = Task.new(NAME, backbone, method, Head(labels=LABELS), seed=args.seed)
    bank = TaskBank(backbone, [task])
    share = task.trained_parameters() / backbone.parameter_count()
    print(f"{NAME}: {task.trained_parameters():,} trained parameters, {share:.1%} of {args.backbone}")

    # 3. One forward pass: a score for each class and row.
    batch = backbone.tokenizer(["One sentence.", "And another."], padding=True, return_tensors="pt")
    print(f"scores of one forward pass: {tuple(bank(batch, tasks=NAME).shape)}")

    # 4. The data, in batches of 16 that are padded to their longest pair.
    def collate(rows: list[Row]) -> tuple[dict, torch.Tensor]:
        first, second = [pair[0] for pair, _ in rows], [pair[1] for pair, _ in rows]
        batch = backbone.tokenizer(first, second, padding=True, truncation=True, max_length=128, return_tensors="pt")
        return batch, torch.tensor([label for _, label in rows])

    data = load_mrpc(args)
    train = DataLoader(data["train"], batch_size=16, shuffle=True, collate_fn=collate)
    validation = DataLoader(data["validation"], batch_size=16, collate_fn=collate)
    print(f"{len(data['train']):,} training pairs, {len(data['validation']):,} validation pairs")

    # 5. The loop.
    optimizer = AdamW(task.parameters(), lr=args.lr)
    for epoch in range(args.epochs):
        task.train()
        backbone.train_mode(True)  # dropout inside the frozen BERT, as when it was pretrained
        total = 0.0
        for batch, labels in train:
            loss = task.loss(bank(batch, tasks=NAME), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item() * len(labels)
        print(f"epoch {epoch + 1}: loss {total / len(data['train']):.4f}", flush=True)

    # 6. Validation accuracy.
    task.eval()
    backbone.train_mode(False)
    with torch.no_grad():
        right = sum(int((bank(b, tasks=NAME).argmax(-1).cpu() == labels).sum()) for b, labels in validation)
    accuracy = right / len(data["validation"])
    print(f"validation accuracy: {accuracy:.4f}")

    # 7. The adapter in a folder of its own: some megabytes, without the backbone. `data` is how `intarsia predict`,
    #    `evaluate` and the server read rows for it: as pairs, cut as in training.
    task.metrics = {"accuracy": accuracy}
    task.data = {"text_columns": ["sentence1", "sentence2"], "label_column": "label", "max_length": 128}
    task.save(args.out)
    size = sum(file.stat().st_size for file in args.out.iterdir())
    print(f"saved {NAME} in {args.out}: {size / 1e6:.2f} MB")


def predict(backbone: Backbone, folder: str, first: str, second: str) -> None:
    """Loads the adapter onto its backbone and classifies one pair."""
    bank = TaskBank(backbone)
    task = bank.load(folder)
    with torch.no_grad():
        scores = bank(backbone.tokenizer([first], [second], return_tensors="pt"), tasks=task.name)
    shares = scores.softmax(-1)[0]
    best = int(shares.argmax())
    print(f"{task.head.labels[best]} ({shares[best]:.3f})")


def load_mrpc(args: argparse.Namespace) -> dict[str, list[Row]]:
    """Splits `train` and `validation`: rows of a pair and its class."""
    columns = {"text_columns": ("sentence1", "sentence2"), "label_column": "label", "kind": "classification"}
    if args.train:  # quotation marks in MRPC are part of the text, as in any .tsv file
        spec = DataSpec(train=args.train, validation=args.validation, labels=("0", "1"), **columns)
    else:
        spec = DataSpec(data="hub:glue/mrpc", labels=LABELS, **columns)
    splits = load_data(spec)
    parts = {"train": splits.train, "validation": splits.validation}
    return {name: list(zip(part.texts, part.labels, strict=True))[: args.rows] for name, part in parts.items()}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="bert-base-uncased", help="hub name, folder or embedded:minilm")
    parser.add_argument(
        "--train",
        type=Path,
        help="TSV with the columns sentence1, sentence2 and label; without it, MRPC comes from the hub",
    )
    parser.add_argument("--validation", type=Path, help="TSV that goes with --train")
    parser.add_argument("--out", type=Path, default=Path("runs/mrpc"), help="where the adapter is saved")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument(
        "--lr", type=float, default=5e-5, help="adapters like ten times more; 5e-5 is the classic value"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, help="use only so many rows of each split")
    parser.add_argument("--predict", nargs=3, metavar=("FOLDER", "FIRST", "SECOND"), help="classify one pair")
    args = parser.parse_args()
    if (args.train is None) != (args.validation is None):
        parser.error("--train and --validation go together")
    return args


if __name__ == "__main__":
    try:
        main()
    except (IntarsiaError, OSError) as error:  # a file, or a model that is not here; each says what
        raise SystemExit(f"{error}") from None
