"""A tiny BERT, GPT-2 and T5 with tasks in folders, and an engine over them, for the tests of serving."""

import queue
from contextlib import contextmanager

import torch

from intarsia.backbone import Backbone
from intarsia.heads import Head
from intarsia.methods import BottleneckAdapter, LoRA, PrefixTuning, PromptTuning
from intarsia.serving.engine import Engine
from intarsia.serving.requests import Failed, Finished, Piece
from intarsia.task import Task
from methods.every import stir

METHODS = (
    BottleneckAdapter(width=5),
    LoRA(rank=3),
    PrefixTuning(length=4, mid=None, init_std=0.5),
    PromptTuning(length=3, init="uniform"),
)
LABELS = ("no", "yes", "perhaps")


def make(backbone, name, number=0, seed=0, **head):
    """A task; number chooses the method."""
    head = head or {"labels": LABELS[: 2 + seed % 2]}
    task = Task.new(name, backbone, METHODS[number % len(METHODS)], Head(**head)).eval()
    stir(task, 0.5, seed + 1)
    task.data = {"text_columns": ["text"]}
    return task.requires_grad_(False)


def save(backbone, folder, name, number=0, seed=0, **head):
    """A task folder; returns its version."""
    task = make(backbone, name, number, seed, **head)
    if head.get("kind") == "generation":
        task.data["target_length"] = 12
    task.save(folder / name)
    return task.version


@contextmanager
def engine_over(folder, **more):
    """A started engine on the backbone in the folder."""
    backbone = folder if isinstance(folder, Backbone) else Backbone.load(str(folder), dtype="float32")
    engine = Engine(backbone, **more)
    engine.start()
    try:
        yield engine
    finally:
        engine.drain(10)


class Asked:
    """A request's events."""

    def __init__(self, engine, request):
        self.events = queue.Queue()
        self.ticket = engine.submit(request, self.events.put)

    def all(self, timeout=30):
        found = []
        while not found or isinstance(found[-1], Piece):
            found.append(self.events.get(timeout=timeout))
        return found

    def end(self, timeout=30):
        """The last event; raises a failure's error."""
        last = self.all(timeout)[-1]
        if isinstance(last, Failed):
            raise last.error
        return last if isinstance(last, Finished) else last.prediction


def solo(backbone, task, texts):
    """Answers of `intarsia`'s own bank, one text at a time."""
    from intarsia.bank import TaskBank

    bank = TaskBank(backbone, [task])
    try:
        with torch.no_grad():
            return [bank.predict([text], task.name)[0] for text in texts]
    finally:
        bank.detach()
