"""Banks of decoders, texts that are asked of them, and what each text is when it is written alone."""

import torch

from intarsia.bank import TaskBank
from intarsia.heads import Decoding
from intarsia.methods import PrefixTuning, PromptTuning
from intarsia.serving.decoder import Writing
from intarsia.serving.sampling import Sampling
from intarsia.task import Task
from methods.every import METHODS, PROMPTED, stir, wrap

KINDS: dict[str, object] = {
    "serial": METHODS["serial"],
    "lora": METHODS["lora of q and v"],
    "prefix": PROMPTED["prefix flat"],
    "counted prefix": PrefixTuning(length=3, mid=None, init_std=0.5, position_offset=True),
    "prompt": PromptTuning(length=3, init="uniform"),
    "p-tuning": PROMPTED["ptuning mlp"],
    "second prompt": PromptTuning(length=5, init="uniform", place="after-first"),
    "full": METHODS["top-layers"],
}


class Letters:
    """A tokenizer of one letter a token, as far as decoding goes."""

    eos_token_id = 2

    def decode(self, ids, skip_special_tokens=True):
        return "".join(chr(0x100 + token) for token in ids if token > 2)


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def bank_of(family, kinds=KINDS, **more):
    backbone = wrap(family)
    backbone._tokenizer = Letters()
    tasks = [
        stir(Task.new(name, backbone, method).eval(), 0.4, number).fold().requires_grad_(False)
        for number, (name, method) in enumerate(kinds.items())
        if name != "counted prefix" or backbone.shifts_positions
    ]
    backbone.model.to(DEVICE)
    bank = TaskBank(backbone, tasks, **more)
    bank.graphs = None  # who wants them says so
    return bank


def alone(bank, writing):
    ids = torch.tensor([writing.prompt])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return bank.generate(batch, [writing.task], Decoding(max_new_tokens=writing.sampling.max_tokens))[0].tolist()


def asked(bank, shuffle, number):
    names = [*bank.tasks, None]
    return [
        Writing(
            [shuffle.randrange(3, 97) for _ in range(shuffle.randint(1, 12))],
            shuffle.choice(names),
            Sampling(max_tokens=shuffle.randint(1, 12)),
        )
        for _ in range(number)
    ]


def run(decoder, arriving, shuffle, cancel=()):
    """Lets the texts come a few at a time; returns each one's whole text and reason."""
    pieces, ends = dict.fromkeys(arriving, ""), {}
    arriving = list(arriving)
    for _ in range(400):
        for _ in range(shuffle.randint(0, 3)):
            if arriving:
                decoder.add(arriving.pop(0))
        for writing in cancel:
            if len(writing.new) >= 2 and writing not in ends:
                decoder.cancel(writing)
                ends[writing] = "cancelled"
        for one in decoder.step():
            if one.error is not None:
                raise one.error
            pieces[one.writing] += one.text
            if one.finish:
                assert one.writing not in ends
                ends[one.writing] = one.finish
        if not arriving and not decoder.running and not decoder.waiting:
            return pieces, ends
    raise AssertionError("texts are never finished")
