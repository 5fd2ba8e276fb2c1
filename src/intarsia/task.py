"""Task: what is trained, saved and shipped. Its `.parameters()` is the trainable set; nothing is found by a substring of a name."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from intarsia import taskfile
from intarsia.backbone import Backbone
from intarsia.errors import ConfigError, TaskError, UnsupportedError
from intarsia.heads import Head, HeadModule
from intarsia.losses import loss as head_loss
from intarsia.methods import (
    Delta,
    EmbeddingDelta,
    KeyValueDelta,
    Method,
    WeightDelta,
    method_from_dict,
    method_to_dict,
)
from intarsia.modes import own_modes
from intarsia.sites import Role, Site


class Task(nn.Module):
    """A name, a method, its deltas at their sites, and a head. Make it with `Task.new` or `Task.load`."""

    def __init__(self, name: str, backbone: Backbone, method: Method, head: Head | None) -> None:
        super().__init__()
        _checked(name, backbone, method, head)
        if not name or name != name.strip() or not name.isprintable() or "/" in name or "\\" in name:
            raise ConfigError(f"a task's name must be a word without slashes or surrounding blanks, got {name!r}")
        self.name = name
        self.method = method
        self.head = None if head is None else _settle(head, backbone)
        self.sites: dict[str, Site] = {s.key: s for s in method.sites(backbone.sites) if self._reaches(s)}
        self.deltas = nn.ModuleDict()
        labels = () if self.head is None else self.head.labels
        # ModuleDict refuses dots, which module paths in keys have.
        for key, delta in method.build(list(self.sites.values()), backbone.pretrained, labels).items():
            self.deltas[key.replace(".", ":")] = delta
        prefixes = [delta for delta in self.deltas.values() if isinstance(delta, KeyValueDelta)]
        self.offset = max((delta.length for delta in prefixes if delta.offset), default=0)
        """Positions by which its rows' tokens are moved: the length of a prefix that counts as tokens."""
        if self.offset and not backbone.shifts_positions:
            raise UnsupportedError(
                f"position_offset moves the tokens behind the prefix, and {backbone.config.model_type!r} takes no positions; "
                "leave position_offset out"
            )
        if self.offset and backbone.kind != "encoder-decoder":
            entrance = next(site for site in backbone.sites if site.role is Role.EMBED)
            self.sites.setdefault(entrance.key, entrance)
        self.alone = any(isinstance(delta, WeightDelta) for delta in self.deltas.values())
        """Whether it replaces weights of the backbone, so that its rows need a pass of their own."""
        self.head_module = None if not (self.head and self.head.trained) else HeadModule(self.head, backbone.hidden)
        self.words = () if self.head is None else _words(self.head, backbone)
        """The token of each label, with a verbaliser."""
        self.backbone_info = {
            "name": backbone.name,
            "fingerprint": backbone.fingerprint,
            "model_type": backbone.config.model_type,
        }
        self.metrics: dict[str, float] = {}
        """Scores that go with the task, by name."""
        self.data: dict[str, Any] = {}
        """How its data looked, as far as prediction needs it: text columns, longest input."""
        self.version = ""
        """Content hash of the folder that it was saved to or loaded from."""

    @classmethod
    @own_modes()
    def new(cls, name: str, backbone: Backbone, method: Method, head: Head | None = None, *, seed: int = 0) -> Task:
        """A task with fresh modules. Without a head it only changes the backbone, whose own head goes on working.

        The same seed gives the same initial values, and the caller's random numbers are left as they were. Its tensors are fp32,
        also where the caller's default is another dtype.
        """
        with torch.random.fork_rng(devices=[]), _fp32():
            torch.manual_seed(seed)
            return cls(name, backbone, method, head).to(backbone.device)

    @property
    def prompt(self) -> EmbeddingDelta | None:
        """Its prompt, if it has one."""
        return next((delta for delta in self.deltas.values() if isinstance(delta, EmbeddingDelta)), None)

    def delta(self, key: str) -> Delta | None:
        """The delta at the site with this key; None where only its positions are moved."""
        name = key.replace(".", ":")
        return self.deltas[name] if name in self.deltas else None  # type: ignore[return-value]  # noqa: SIM401 - no .get

    def fold(self) -> Task:
        """Replaces reparameterisations by what they put out, in place; the answers stay. Returns itself."""
        for name, delta in self.deltas.items():
            self.deltas[name] = delta.fold()  # type: ignore[operator]
        return self.eval() if not self.training else self

    def _reaches(self, site: Site) -> bool:
        """Whether a site lies on the way to the head: the pretrained pooler, T5's own lm_head and ESM's contact head do not, unless
        asked for.
        A parameter that gets no gradient would be counted and shipped for nothing."""
        if self.head is None:
            return True
        top = site.module.partition(".")[0]
        return top not in ("lm_head", "contact_head") and (top != "pooler" or self.head.pooling == "pooler")

    def trained_parameters(self) -> int:
        """How many numbers are trained, the head's included."""
        return sum(p.numel() for p in self.parameters())

    def decay_free(self) -> set[str]:
        """Names (as in `named_parameters`) that take no weight decay: biases, gains, norms."""
        names = {f"deltas.{key}.{n}" for key, delta in self.deltas.items() for n in delta.decay_free()}  # type: ignore[union-attr, operator]
        return names | ({"head_module.bias"} if self.head_module is not None else set())

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The mean loss; see losses.loss for the shapes."""
        if self.head is None:
            raise ConfigError(f"task {self.name!r} has no head; make it with Task.new(..., head=Head(...)).")
        return head_loss(self.head, scores, labels)

    def tensors(self) -> dict[str, Tensor]:
        """Every trained tensor by its name in the file: the site's key, then the delta's own name. In the form that the task
        is in: in training with its reparameterisation, as checkpoints need it."""
        return {_file_name(name): tensor for name, tensor in self.state_dict().items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Sets every trained tensor; TaskError when one is missing, too many, or of another shape."""
        mine = {_file_name(name): tensor for name, tensor in self.state_dict().items()}
        if missing := sorted(mine.keys() - tensors.keys()):
            raise TaskError(f"task {self.name!r} lacks {len(missing)} tensor(s), the first is {missing[0]!r}.")
        if surplus := sorted(tensors.keys() - mine.keys()):
            raise TaskError(f"task {self.name!r} has {len(surplus)} tensor(s) too many, the first is {surplus[0]!r}.")
        for name, tensor in mine.items():
            if tensor.shape != tensors[name].shape:
                shapes = f"{list(tensor.shape)}, got {list(tensors[name].shape)}"
                raise TaskError(f"task {self.name!r}: tensor {name!r} should have shape {shapes}.")
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(tensors[name])

    def save(self, folder: str | Path) -> None:
        """Writes task.safetensors and task.json into the folder, atomically; sets `version`. What is written is the folded form."""
        description = {
            "name": self.name,
            "backbone": self.backbone_info,
            "method": method_to_dict(self.method),
            "head": {} if self.head is None else _plain(self.head),
            "metrics": self.metrics,
            "data": self.data,
        }
        tensors = {name: tensor for name, tensor in self.tensors().items() if name.startswith("head")}
        for key, delta in self.deltas.items():
            tensors |= {_file_name(f"deltas.{key}.{name}"): x for name, x in delta.fold().state_dict().items()}  # type: ignore[operator, union-attr]
        self.version = taskfile.write(Path(folder).expanduser(), description, tensors)

    @classmethod
    @own_modes()
    def load(cls, folder: str | Path, backbone: Backbone | None = None) -> Task:
        """The task in the folder, in its folded form, on this backbone (None: the one that it names is loaded).

        TaskError when the folder is damaged or the backbone is another than the one it was trained on.
        """
        if not isinstance(backbone, Backbone | None):
            raise ConfigError(
                f"a task is loaded onto a Backbone, got {type(backbone).__name__}; make one with Backbone.load(name) or "
                "Backbone.wrap(model)"
            )
        description, tensors = taskfile.read(Path(folder).expanduser())
        info = description["backbone"]
        backbone = backbone if backbone is not None else Backbone.load(str(info.get("name")))
        if info.get("fingerprint") != backbone.fingerprint:
            raise TaskError(
                f"{folder} was trained on backbone {info.get('name')!r} (fingerprint {info.get('fingerprint')}), this one is "
                f"{backbone.name!r} (fingerprint {backbone.fingerprint}); load it with the backbone that it names."
            )
        try:
            head = _head(description["head"]) if description["head"] else None
            method = method_from_dict(description["method"])
            task = cls.new(description["name"], backbone, method.folded(), head)
            task.method = method
        except (TypeError, KeyError, ValueError, RuntimeError, MemoryError, ConfigError, UnsupportedError) as error:
            raise TaskError(
                f"{folder}: its method or head cannot be built: {' '.join(str(error).split())[:200]}"
            ) from None
        task.load_tensors(tensors)
        task.metrics, task.data = (_known_words(description[part]) for part in ("metrics", "data"))
        task.version = description["content"]
        return task.eval()


@contextmanager
def _fp32() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _checked(name: object, backbone: object, method: object, head: object) -> None:
    """ConfigError for what is of another type than `Task.new` takes."""
    wanted = (
        ("name", name, str, "a str"),
        ("backbone", backbone, Backbone, "a Backbone, as Backbone.load(name) or Backbone.wrap(model) gives it"),
        ("method", method, Method, "an object such as LoRA(rank=8)"),
        ("head", head, Head | None, 'a Head, such as Head(labels=("no", "yes")), or None'),
    )
    for what, given, kind, text in wanted:
        if not isinstance(given, kind):
            got = f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__
            raise ConfigError(f"a task's {what} must be {text}; got {got}")


def _file_name(name: str) -> str:
    return (
        name.removeprefix("deltas.").replace(":", ".")
        if name.startswith("deltas.")
        else name.replace("head_module", "head")
    )


def _known_words(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same, with keys that many tasks have there once: they count beside the numbers of a prompt."""
    return {sys.intern(key): value for key, value in values.items()}


def _plain(head: Head) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(head).items()}


def _head(values: Mapping[str, Any]) -> Head:
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Head(**fields)


def _words(head: Head, backbone: Backbone) -> tuple[int, ...]:
    """The first token of each label's word, as it stands after a blank where the tokenizer marks blanks."""
    if not head.verbaliser:
        return ()
    _ = backbone.language_head
    tokenizer = backbone.tokenizer
    before = " " if len(tokenizer(" a", add_special_tokens=False)["input_ids"]) == 1 else ""  # type: ignore[arg-type]
    words = []
    for word in head.verbaliser:
        ids = tokenizer(before + word.strip(), add_special_tokens=False)["input_ids"]
        if not ids:
            raise ConfigError(f"the tokenizer makes no token of the verbaliser's word {word!r}; choose another")
        words.append(ids[0])  # type: ignore[index]
    if len(set(words)) < len(words):
        raise ConfigError(
            f"two words of the verbaliser {list(head.verbaliser)} begin with the same token; choose others"
        )
    return tuple(words)


def _settle(head: Head, backbone: Backbone) -> Head:
    """The head with `auto` decided, checked against what the backbone has."""
    if head.pooling == "auto":
        return dataclasses.replace(head, pooling="mean" if backbone.kind == "encoder" else "last")
    if head.pooling == "pooler" and getattr(backbone.base, "pooler", None) is None:
        raise ConfigError(f"Head.pooling is 'pooler', but backbone {backbone.name!r} has none; give cls, mean or last.")
    return head
