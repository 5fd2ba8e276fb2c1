"""A bank with a task of every method, and batches of unequal rows for it."""

import tiny
from intarsia.bank import TaskBank
from intarsia.heads import Head
from intarsia.task import Task
from methods.every import HEAD, METHODS, PROMPTED, new_task, stir, usable, wrap

TEXT = tuple(f for f in tiny.FAMILIES if f != "vit")


CLOSE = {"rtol": 0, "atol": 1e-5}


def mixed_bank(family, **changes):
    """A bank with a task of every method (heads of different sizes, one without a head)."""
    backbone = wrap(family, **changes)
    names = usable(backbone)
    tasks = [
        new_task(backbone, m, head=Head(labels=tuple("abcde"[: 2 + i % 3])) if i % 4 else None)
        for i, m in enumerate(names)
    ]
    return TaskBank(backbone, tasks), names


def padded(family, side, rows, tokens=9):
    """Rows of unequal length, padded on one side."""
    batch = tiny.inputs(family, rows=rows, tokens=tokens)
    if family == "vit":
        return batch
    pad = tiny.config(family).pad_token_id or 0
    for index in range(rows):
        cut = index % 4
        where = slice(0, cut) if side == "left" else slice(tokens - cut, tokens)
        batch["input_ids"][index, where] = pad
        batch["attention_mask"][index, where] = 0
    return batch


def real(tensor, batch, index):
    """The states of a row's real tokens: what attention makes of padding is nobody's."""
    mask = batch.get("attention_mask")
    if mask is None or tensor.dim() != 2 or "decoder_input_ids" in batch or tensor.shape[0] != mask.shape[1]:
        return tensor
    return tensor[mask[index].bool()]


def held(*methods, family="bert"):
    """A bank with a task of each method."""
    backbone = wrap(family)
    return TaskBank(backbone, [stir(Task.new(m, backbone, {**METHODS, **PROMPTED}[m], HEAD)).eval() for m in methods])
