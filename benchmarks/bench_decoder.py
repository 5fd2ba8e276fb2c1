"""Writing many texts at once: our decoder beside transformers' continuous batching and beside padded batches of `generate`.

    python -m benchmarks.bench_decoder
    python -m benchmarks.bench_decoder --device cuda --rows 64 --requests 256 --checked 24

SmolLM2 135M (fp32 on a CPU, bf16 on a GPU, for all), the plain backbone, greedy, all requests there at the start; prompts
are random tokens, so no two share a beginning. Every contender may write so many rows at once; they take turns, round by
round, in one process, each on a model of its own. Tokens are those that a request asked for: padding, and a batch that waits
for its longest text, count for nothing. Our decoder also turns tokens into text as they come, the others do not.
transformers' manager is told how large its cache must be (left to itself it takes most of the memory) and stays up between
rounds, as ours does; its start is not timed. `same texts`: of so many requests, those whose tokens are the ones that
`generate` gives the request alone. Writes results/decoder_{cpu,cuda}.{json,md}.
"""

from __future__ import annotations

import argparse
import inspect
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from benchmarks.results import write_results
from intarsia.backbone import Backbone
from intarsia.backbone.embedded import embedded_folder
from intarsia.backbone.language import end_tokens
from intarsia.bank import TaskBank
from intarsia.methods import LoRA
from intarsia.serving.decoder import Decoder, Writing
from intarsia.serving.sampling import Sampling
from intarsia.task import Task

MODEL = "embedded:smollm2"
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}
PAGE = 32
TASKS = 8


@dataclass(frozen=True)
class Request:
    """A prompt, and how many tokens are wanted."""

    prompt: list[int]
    most: int


Contender = Callable[[Sequence[Request]], list[list[int]]]
"""The new tokens of each request."""


def asked(traffic: str, count: int) -> list[Request]:
    """`equal`: the best case of a padded batch. `mixed`: texts of all lengths."""
    shuffle = random.Random(0)

    def one() -> Request:
        length, most = (32, 32) if traffic == "equal" else (shuffle.randint(8, 64), shuffle.randint(4, 64))
        return Request([shuffle.randrange(100, 40000) for _ in range(length)], most)

    return [one() for _ in range(count)]


class Ours:
    """Our decoder, on the plain backbone or with a LoRA of its own for every row in turn."""

    def __init__(self, device: str, rows: int, tasks: int = 0) -> None:
        backbone = Backbone.load(MODEL, dtype=DTYPES[device], device=device)
        self.bank = TaskBank(backbone)
        self.ends = end_tokens(backbone)
        for number in range(tasks):
            task = Task.new(f"task {number}", backbone, LoRA(rank=8)).eval().requires_grad_(False)
            for parameter in task.parameters():
                parameter.normal_(0, 0.02)
            self.bank.add(task)
        self.decoder = Decoder(self.bank, max_rows=rows)

    def __call__(self, requests: Sequence[Request]) -> list[list[int]]:
        decoder, names = self.decoder, list(self.bank.tasks) or [None]
        texts = [
            Writing(request.prompt, names[place % len(names)], Sampling(max_tokens=request.most))
            for place, request in enumerate(requests)
        ]
        for text in texts:
            decoder.add(text)
        while decoder.running or decoder.waiting:
            for one in decoder.step():
                if one.error is not None:
                    raise one.error
        return [text.new for text in texts]


def model_on(device: str) -> Any:
    """The same weights as ours, untouched."""
    model = transformers.AutoModelForCausalLM.from_pretrained(embedded_folder("smollm2"), dtype=DTYPES[device])
    return model.to(device).eval()


class Static:
    """Padded batches of `generate`, in the order of arrival; a batch ends with its longest text."""

    def __init__(self, device: str, rows: int, ends: list[int]) -> None:
        self.model, self.rows, self.ends = model_on(device), rows, ends

    @torch.inference_mode()
    def __call__(self, requests: Sequence[Request]) -> list[list[int]]:
        found = []
        for start in range(0, len(requests), self.rows):
            batch = requests[start : start + self.rows]
            longest = max(len(request.prompt) for request in batch)
            gaps = [longest - len(request.prompt) for request in batch]
            rows = [[0] * gap + request.prompt for gap, request in zip(gaps, batch, strict=True)]
            mask = [[0] * gap + [1] * (longest - gap) for gap in gaps]
            new = self.model.generate(
                input_ids=torch.tensor(rows, device=self.model.device),
                attention_mask=torch.tensor(mask, device=self.model.device),
                generation_config=settings(max(request.most for request in batch), self.ends),
            )[:, longest:]
            found += [ended(row[: one.most], self.ends) for row, one in zip(new.tolist(), batch, strict=True)]
        return found


class Stock:
    """transformers' continuous batching."""

    def __init__(self, device: str, rows: int, ends: list[int], longest: int) -> None:
        self.ends, self.model = ends, model_on(device)
        blocks = 2 * rows * (longest // PAGE + 2)
        known = inspect.signature(transformers.ContinuousBatchingConfig).parameters
        options = {
            "page_size" if "page_size" in known else "block_size": PAGE,
            "num_blocks": blocks,
            "max_batch_tokens": max(512, 64 * rows),
            "max_requests_per_batch": rows,
        }
        self.manager = self.model.init_continuous_batching(
            generation_config=settings(longest, ends),
            continuous_batching_config=transformers.ContinuousBatchingConfig(
                **{name: value for name, value in options.items() if name in known}
            ),
        )
        self.manager.warmup()
        self.manager.start()

    @property
    def attention(self) -> str:
        """What it attends with."""
        return self.model.config._attn_implementation

    def __call__(self, requests: Sequence[Request]) -> list[list[int]]:
        names = [
            self.manager.add_request(request.prompt, max_new_tokens=request.most, eos_token_id=self.ends)
            for request in requests
        ]
        done: dict[str, list[int]] = {}
        while len(done) < len(names):
            one = self.manager.get_result(timeout=1)
            if one is None and not self.manager.is_running():
                raise RuntimeError("transformers' generation thread has ended")
            if one is not None and one.error is not None:
                raise RuntimeError(one.error)
            if one is not None and one.is_finished():
                done[one.request_id] = ended(one.generated_tokens, self.ends)
        return [done[name] for name in names]

    def close(self) -> None:
        """Ends its thread."""
        self.manager.stop()
        self.manager.destroy()


def settings(most: int, ends: list[int]) -> transformers.GenerationConfig:
    """Greedy, so many tokens."""
    return transformers.GenerationConfig(
        max_new_tokens=most, do_sample=False, eos_token_id=ends, pad_token_id=ends[0], use_cache=True
    )


def ended(tokens: list[int], ends: list[int]) -> list[int]:
    """Up to the end token."""
    return tokens[: next((place for place, token in enumerate(tokens) if token in ends), len(tokens))]


def measure(contenders: dict[str, Contender], alone: Contender, traffic: str, given: argparse.Namespace) -> list[dict]:
    """A row for each contender."""
    requests = asked(traffic, given.requests)
    want = alone(requests[: given.checked])
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    same: dict[str, int | None] = {}
    for call in contenders.values():
        call(requests[: given.rows])
    for number in range(given.rounds):
        # The order turns round, so that a machine that gets busy favours none.
        for name in list(contenders)[:: -1 if number % 2 else 1]:
            start = time.perf_counter()
            found = contenders[name](requests)
            if given.device == "cuda":
                torch.cuda.synchronize()
            speeds[name].append(sum(map(len, found)) / (time.perf_counter() - start))
            same[name] = None if "LoRA" in name else sum(own == other for own, other in zip(found, want, strict=False))
            print(traffic, name, round(speeds[name][-1], 1), same[name], flush=True)
    middle = {name: statistics.median(own) for name, own in speeds.items()}
    return [
        {
            "traffic": traffic,
            "system": name,
            "rows at once": given.rows,
            "requests": len(requests),
            "tokens/s": round(middle[name], 1),
            "slowest": round(min(own), 1),
            "fastest": round(max(own), 1),
            "ratio to transformers' continuous batching": round(middle[name] / middle["transformers, continuous"], 3),
            "same texts": same[name],
            "of": len(want) if same[name] is not None else None,
        }
        for name, own in speeds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rows", type=int, default=8, help="written at once")
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--checked", type=int, help="of the requests are written alone, too; all, if not given")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--traffic", nargs="+", default=["mixed", "equal"])
    given = parser.parse_args()
    ours = Ours(given.device, given.rows)
    stock, static = (
        Stock(given.device, given.rows, ours.ends, 64 + 64),
        Static(given.device, given.rows, ours.ends),
    )
    alone = Static(given.device, 1, ours.ends)
    contenders: dict[str, Contender] = {
        "intarsia": ours,
        f"intarsia, {TASKS} LoRA tasks mixed": Ours(given.device, given.rows, TASKS),
        "transformers, continuous": stock,
        "transformers, padded batches": static,
    }
    text = __doc__.split("\n\n")[2].replace("\n", " ").strip()
    text += f" transformers' manager attended with `{stock.attention}`, pages of {PAGE} tokens."
    rows: list[dict] = []
    try:
        for traffic in given.traffic:  # the page after each: a run that is cut off leaves what it has
            rows += measure(contenders, alone, traffic, given)
            write_results(f"decoder_{given.device}", f"Continuous batching, {given.device}", rows, text=text)
    finally:
        stock.close()


if __name__ == "__main__":
    main()
