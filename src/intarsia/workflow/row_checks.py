"""Checks of what a row may depend on: padding and its side, its neighbours, the cache, gradient checkpointing, its prompt."""

import warnings

import torch
from torch import Tensor

from intarsia.heads import Decoding, Head
from intarsia.task import Task
from intarsia.workflow.patient import TOLERANCE, Outcome, Patient, difference

NEW_TOKENS = 5


def prompt_works(patient: Patient) -> Outcome | None:
    """The virtual tokens change the states of every row, also of those with padding. None: the method has none."""
    if not patient.extends:
        return None
    if patient.in_template:
        return "not supported", "its slots stand in the text, which no plain backbone reads"
    backbone, mask = patient.backbone, patient.batch["attention_mask"].bool()
    task = Task.new("new", backbone, patient.method).eval()
    with torch.no_grad():
        with patient.bank(task) as bank:
            new = bank(patient.batch, tasks="new")
        moved = (new.float() - backbone.features(patient.batch).float()).abs().amax(-1)
    # The very first tokens of an encoder-decoder's or decoder's row may see the text alone; the last sees all.
    weakest = min(float(row[own].max()) for row, own in zip(moved, mask, strict=True))
    if weakest <= 1e-6:
        return "fail", "the states of some row are those of the plain backbone"
    return "pass", f"states of every row move, by {weakest:.0e} at least"


def padding(patient: Patient) -> Outcome:
    """A row alone and without padding, against the same row in a padded batch."""
    with torch.no_grad():
        together = patient.scores(patient.task)
        alone = [patient.scores(patient.task, patient.row(row)) for row in range(len(together))]
    moved = difference(together, torch.cat(alone))
    if moved <= TOLERANCE:
        return "pass", f"alone and in a padded batch: equal to {moved:.0e}"
    return "fail", f"scores of a row alone and in a padded batch differ by {moved:.0e} of the largest"


def padding_side(patient: Patient) -> Outcome:
    """The same rows with padding on the other side."""
    backbone = patient.backbone
    if backbone.kind == "encoder-decoder":
        return "not supported", "the decoder's start token stands first, so padding goes to the right"
    if not backbone.shifts_positions:
        return "not supported", f"{backbone.config.model_type} takes no positions, so its first column is position 0"
    with torch.no_grad():
        moved = difference(patient.scores(patient.task, _other_side(patient.batch)), patient.scores(patient.task))
    if moved <= TOLERANCE:
        return "pass", f"left and right: equal to {moved:.0e}"
    return "fail", f"scores with padding on the left and on the right differ by {moved:.0e} of the largest"


def neighbours(patient: Patient) -> Outcome:
    """Rows of this task and of another (the plain backbone) in one batch, against each of them alone."""
    task = patient.task
    other = patient.new(Head(labels=("no", "yes"), dropout=0.0), "other") if patient.in_template else None
    names = [task.name, None if other is None else other.name, task.name]
    with torch.no_grad(), patient.bank(task, *(() if other is None else (other,))) as bank:
        together = bank(patient.batch, tasks=names)
        worst = 0.0
        for row, name in enumerate(names):
            one = {key: value[row : row + 1] for key, value in patient.batch.items()}
            worst = max(worst, difference(together[row], bank(one, tasks=[name])[0]))
    if worst <= TOLERANCE:
        return "pass", f"beside rows of another task: equal to {worst:.0e}"
    return "fail", f"a row alone and beside rows of another task differs by {worst:.0e} of the largest"


def cached_decoding(patient: Patient) -> Outcome | None:
    """Greedy generation with its cache, against full passes over the text that came out. None: the backbone writes no text."""
    backbone = patient.backbone
    if backbone.kind == "encoder" or backbone.model.get_output_embeddings() is None:
        return None
    task = patient.new(Head(kind="generation"), "words")
    if backbone.kind == "decoder" and task.prompt is not None and task.prompt.place == "end":
        return "not supported", "a prompt behind the text would stand behind what is generated"
    # Left padding for a decoder, right for an encoder-decoder's encoder.
    left = not bool(patient.batch["attention_mask"][:, 0].all())
    batch = patient.batch if left is (backbone.kind == "decoder") else _other_side(patient.batch)
    worst, count = 0.0, 0
    with torch.no_grad(), patient.bank(task) as bank:
        new = bank.generate(batch, "words", decoding=Decoding(max_new_tokens=NEW_TOKENS))
        bank.activate("words")
        for row, ids in enumerate(new):
            if not len(ids):
                continue
            scores = _full_pass(patient, row, ids)
            chosen = scores.gather(1, ids[:, None].to(scores.device))[:, 0]
            worst = max(worst, ((scores.amax(1) - chosen) / scores.abs().amax(1)).max().item())
            count += len(ids)
    if count == 0:
        return "not supported", "with random values in the task the model ends every text at once: nothing to compare"
    if worst <= TOLERANCE:
        return "pass", f"{count} tokens, each the likeliest of a full pass"
    return "fail", f"a token that was generated is {worst:.0e} of the largest score less likely in a full pass"


def checkpointing(patient: Patient) -> Outcome:
    """Gradients with the trunk computed twice, against those without."""
    model = patient.backbone.model
    if not getattr(model, "supports_gradient_checkpointing", False):
        return "not supported", "transformers has no gradient checkpointing for this model"
    plain = _gradients(patient)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers 5.20 renamed it; 5.17 has only this name
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        try:
            twice = _gradients(patient)
        finally:
            model.gradient_checkpointing_disable()
            model.disable_input_require_grads()
    largest = max(g.abs().max().item() for g in plain)
    moved = max((a - b).abs().max().item() for a, b in zip(plain, twice, strict=True)) / max(largest, 1e-12)
    if moved <= TOLERANCE:
        return "pass", "to the bit" if moved == 0 else f"to {moved:.0e}, rounding"
    return "fail", f"gradients differ by {moved:.0e} of the largest"


def _gradients(patient: Patient) -> list[Tensor]:
    """Of every trained tensor, with the trunk's dropout on: checkpointing works in training mode alone."""
    task, backbone = patient.task, patient.backbone
    devices = [backbone.device] if backbone.device.type == "cuda" else []
    backbone.train_mode(True)
    try:
        with patient.bank(task) as bank, torch.random.fork_rng(devices=devices):
            torch.manual_seed(0)
            scores = bank(patient.batch, tasks=task.name)
            # Before the hooks go: the second computation needs them.
            task.loss(scores, torch.tensor([0, 1, 0], device=scores.device)).backward()
        return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in task.parameters()]
    finally:
        backbone.train_mode(False)
        task.zero_grad(set_to_none=True)


def _other_side(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each row's padding moved to its other end."""
    mask = batch["attention_mask"]
    shifts = [int((1 - row).sum()) * (1 if row[0] else -1) for row in mask]
    return {
        key: torch.stack([row.roll(shift) for row, shift in zip(value, shifts, strict=True)])
        for key, value in batch.items()
    }


def _full_pass(patient: Patient, row: int, new: Tensor) -> Tensor:
    """(n, V): scores of the places before each of the n new tokens, of one row without padding and without a cache."""
    backbone, given = patient.backbone, patient.row(row)
    new = new[None].to(backbone.device)
    if backbone.kind == "decoder":
        ids = torch.cat([given["input_ids"], new], dim=1)
        read = torch.arange(ids.shape[1], device=ids.device)[None] >= given["input_ids"].shape[1] - 1
        read[:, -1] = False
        return backbone.token_scores({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, read)
    start = torch.full_like(new[:, :1], backbone.start_id)
    before = torch.cat([start, new[:, :-1]], dim=1)
    batch = {name: given[name] for name in ("input_ids", "attention_mask")} | {"decoder_input_ids": before}
    return backbone.token_scores(batch, torch.ones_like(before, dtype=torch.bool))
