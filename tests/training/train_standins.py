"""A task, a bank and a source of a few hundred numbers, with the interfaces that training relies on."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from intarsia.training import TrainSettings

VOCABULARY, WIDTH = 23, 8


class TinyMethod:
    default_lr: ClassVar[float] = 1e-2


class TinyTask(nn.Module):
    """logits = W dropout(mean over tokens of E[id]) + b"""

    def __init__(self, kind: str = "classification", labels: tuple[str, ...] = ("no", "yes"), seed: int = 0) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.name = "tiny"
        self.alone, self.words, self.sites = False, (), {}
        self.head = SimpleNamespace(kind=kind, labels=labels, loss="token")
        self.method = TinyMethod()
        self.metrics: dict[str, float] = {}
        self.table = nn.Parameter(torch.randn(1, VOCABULARY, WIDTH, generator=g))
        self.weight = nn.Parameter(torch.randn(1, max(1, len(labels)), WIDTH, generator=g) * 0.1)
        self.bias = nn.Parameter(torch.zeros(1, max(1, len(labels))))
        self.dropout = 0.2

    def decay_free(self) -> set[str]:
        return {"bias"}

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        words = self.table[0][batch["input_ids"]]
        if self.head.kind != "token-classification":
            mask = batch["attention_mask"][..., None].to(words.dtype)
            words = (words * mask).sum(1) / mask.sum(1)
        logits = F.linear(F.dropout(words, self.dropout, self.training), self.weight[0], self.bias[0])
        return logits[:, 0] if self.head.kind == "regression" else logits

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.head.kind == "regression":
            return F.mse_loss(logits, labels)
        if self.head.kind == "multi-label":
            return F.binary_cross_entropy_with_logits(logits, labels)
        return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=-100)

    def fold(self) -> "TinyTask":
        return self

    def tensors(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.named_parameters()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.load_state_dict(tensors)

    def save(self, folder: Path) -> None:
        save_file(self.tensors(), folder / "task.safetensors")
        (folder / "task.json").write_text(json.dumps({"metrics": self.metrics}))

    @classmethod
    def load(cls, folder: Path, backbone: Any) -> "TinyTask":
        task = cls()
        task.load_tensors(load_file(folder / "task.safetensors"))
        task.metrics = json.loads((folder / "task.json").read_text())["metrics"]
        return task


class TinyBank:
    def __init__(self, task: TinyTask) -> None:
        self.task = task
        self.modes: list[bool] = []
        self.backbone = SimpleNamespace(
            device=torch.device("cpu"), train_mode=self.modes.append, family=SimpleNamespace(stacks=())
        )

    def __call__(self, batch: dict[str, Tensor], tasks: str) -> Tensor:
        assert tasks == self.task.name
        return self.task(batch)

    def loss(self, batch: dict[str, Tensor], labels: Tensor, task: str) -> Tensor:
        return self.task.loss(self(batch, tasks=task), labels)

    def evict(self, name: str) -> None:
        assert name == self.task.name

    def add(self, task: TinyTask) -> None:
        assert task is self.task


class TinySource:
    """Rows of 5 token ids; the label says whether the row holds more low ids than high ones."""

    def __init__(self, rows: int = 40, batch_size: int = 8, seed: int = 0, shuffle: bool = True) -> None:
        r = np.random.default_rng(seed)
        self.ids = torch.from_numpy(r.integers(0, VOCABULARY, (rows, 5)))
        self.labels: Tensor = ((self.ids < VOCABULARY // 2).sum(1) > 2).long()
        self.batch_size, self.shuffle = batch_size, shuffle

    def plan(self, epoch: int) -> list[np.ndarray]:
        rows = np.arange(len(self.ids))
        if self.shuffle:
            rows = np.random.default_rng([7, epoch]).permutation(rows)
        return [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]

    def load(self, key: np.ndarray) -> tuple[dict[str, Tensor], Tensor | None]:
        ids = self.ids[key]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, self.labels[key]

    def tokens(self, key: np.ndarray) -> int:
        return 5 * len(key)


def settings(**changes: Any) -> TrainSettings:
    return TrainSettings(**{"epochs": 3, "learning_rate": 0.02, "batch_size": 8, **changes})


def validation(**changes: Any) -> TinySource:
    return TinySource(**{"rows": 24, "seed": 1, "shuffle": False, **changes})


def new(seed: int = 0, **changes: Any) -> tuple[TinyBank, TinyTask]:
    task = TinyTask(seed=seed, **changes)
    return TinyBank(task), task


def lines(out: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without its times."""
    times = {"seconds", "tokens_per_second"}
    parsed = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in times} for line in parsed]


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
