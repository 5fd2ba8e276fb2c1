"""Prefix tuning step by step: a frozen causal model learns to write a sentence for a table, as in Li and Liang (2021).

python examples/prefix_table_to_text.py --train train.csv --out runs/e2e                     # columns mr and ref, as E2E's
python examples/prefix_table_to_text.py --write runs/e2e "name[Alimentum], area[city centre]"
(add --backbone embedded:smollm2 to each for a small Llama that comes as a package and needs no hub)
"""

import argparse
import random
from pathlib import Path

import torch
from torch.optim import AdamW

from intarsia import Backbone, Decoding, Head, IntarsiaError, PrefixTuning, Task, TaskBank
from intarsia.data import DataSpec, load_data

NAME = "table_to_text"


def main() -> None:
    args = parse_arguments()

    # 1. A causal model with its language-model head, frozen.
    backbone = Backbone.load(args.backbone)
    if args.write:
        write(backbone, *args.write)
        return

    # 2. Keys and values of ten virtual positions before the input, at every layer. An MLP makes them while training
    #    (mid 512); `save` keeps only what it makes.
    task = Task.new(NAME, backbone, PrefixTuning(length=10, mid=512), Head(kind="generation"), seed=args.seed)
    bank = TaskBank(backbone, [task])
    print(f"{task.trained_parameters():,} trained parameters, {len(task.sites)} attentions")

    # 3. The data: `name : Alimentum | area : city centre`, a line break, the sentence, the end of the text.
    #    The same file stands for validation, which this script does without: a tenth would be set aside.
    columns = {"text_columns": ("mr",), "label_column": "ref", "kind": "generation"}
    read = load_data(DataSpec(train=args.train, validation=args.train, **columns)).train
    rows = [(table(mr), ref) for (mr,), [ref] in zip(read.texts, read.labels, strict=True)][: args.rows]
    print(f"{len(rows):,} rows, the first: {rows[0]}")

    # 4. The loop. `bank.loss` counts the sentence alone: what is -100 in the labels is read, but not learnt.
    optimizer = AdamW(task.parameters(), lr=args.lr, weight_decay=0.0)
    shuffled = random.Random(args.seed)
    for epoch in range(args.epochs):
        task.train()
        shuffled.shuffle(rows)
        total = 0.0
        for at in range(0, len(rows), args.batch_size):
            batch, labels = collate(backbone, rows[at : at + args.batch_size])
            loss = bank.loss(batch, labels, task=NAME)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item() * len(labels)
        print(f"epoch {epoch + 1}: loss {total / len(rows):.4f}", flush=True)

    # 5. A folder of its own, without the backbone and without the MLP.
    task.save(args.out)
    size = sum(file.stat().st_size for file in args.out.iterdir())
    print(f"saved {NAME} in {args.out}: {size / 1e6:.2f} MB")


def collate(backbone: Backbone, rows: list[tuple[str, str]]) -> tuple[dict, torch.Tensor]:
    """Input and target in one line of tokens, padded on the right; labels of everything but the target are -100."""
    tokenizer, ids, labels = backbone.tokenizer, [], []
    for text, target in rows:
        given = tokenizer(text + "\n")["input_ids"]
        wanted = [*tokenizer(target, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        ids.append(torch.tensor(given + wanted))
        labels.append(torch.tensor([-100] * len(given) + wanted))
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad([torch.ones_like(row) for row in ids], batch_first=True)
    padded = pad(ids, batch_first=True, padding_value=tokenizer.pad_token_id)
    return {"input_ids": padded, "attention_mask": mask}, pad(labels, batch_first=True, padding_value=-100)


def write(backbone: Backbone, folder: str, mr: str) -> None:
    """Loads the prefix onto its backbone and writes about one table, by beam search."""
    bank = TaskBank(backbone)
    task = bank.load(folder)
    batch = backbone.tokenizer([table(mr) + "\n"], return_tensors="pt")
    [ids] = bank.generate(batch, task.name, Decoding(beams=5, max_new_tokens=60))
    print(backbone.tokenizer.decode(ids, skip_special_tokens=True).strip())


def table(mr: str) -> str:
    """`name[Alimentum], familyFriendly[no]` -> `name : Alimentum | family friendly : no`."""
    fields = [field.split("[", 1) for field in mr.rstrip("]").split("], ")]
    if any(len(field) != 2 for field in fields):
        raise SystemExit(f"expected a table such as 'name[Alimentum], area[city centre]', got {mr!r}")
    words = ["".join(f" {c.lower()}" if c.isupper() else c for c in name) for name, _ in fields]
    return " | ".join(f"{name} : {value}" for name, (_, value) in zip(words, fields, strict=True))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="gpt2-medium", help="hub name, folder or embedded:smollm2")
    parser.add_argument("--train", type=Path, help="CSV (also .gz) with the columns mr and ref")
    parser.add_argument("--out", type=Path, default=Path("runs/e2e"), help="where the prefix is saved")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, help="use only so many rows")
    parser.add_argument("--write", nargs=2, metavar=("FOLDER", "MR"), help="write about one table")
    args = parser.parse_args()
    if (args.train is None) == (args.write is None):
        parser.error("give --train, or --write")
    return args


if __name__ == "__main__":
    try:
        main()
    except (IntarsiaError, OSError) as error:  # a file, or a model that is not here; each says what
        raise SystemExit(f"{error}") from None
