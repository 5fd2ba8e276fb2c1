"""results/speed_cpu.{json,md}, or those of another machine, from what bench_speed_cpu measured."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import write_results

TEXT = """\
MRPC's training pairs over MiniLM (22.7M parameters), 16 rows a step, at most 128 tokens; {how}.
Each measurement is a process of its own; medians over rounds, the second in reverse order. Tokens are real ones. `others`: the
largest share of the machine that other processes used meanwhile. Ours: the defaults (bf16 here, rows of like length, no dropout in
the frozen trunk); `first-token`: with a head that reads the first token's state, as the peers' do, and not the mean of all.

The peers under Hugging Face Trainer: `defaults` are Trainer's own (fp32, shuffled); `best` is bf16 autocast with rows of like
length; `by-length` the latter alone; `quiet` is `best` without dropout in the backbone, which is no setting of Trainer's but two
fields of the model's config. adapters 1.3.0 runs with transformers 4.57.6, in an environment of its own. `x defaults`, `x best`:
against the fastest peer of any method with its defaults, and with any other settings.

`dev`, `test`: accuracy of the last weights after three epochs, mean (standard deviation) over the seeds; {quality}. The peers'
`best` has a learning rate that suits the method and a warm-up, too; `defaults` has Trainer's 5e-5. 68.4 on dev is what a constant
answer gets.

{turns}`floor`: the products with the trunk's matrices alone, forward and backward to the input, at 848 tokens, as nn.Linear has
them. `pack`: so many adapters of one task at once, beside one alone. `reuse`: adapters in these layers only (head: none), the
second epoch over the same 640 rows.

{notes}
"""
NOTES = {
    "speed_cpu": """\
The goals, 4.5 x the peers' defaults and 2.5 x their best, are missed. On this processor the first would take nearly all of the
floor, and the second more than all of it: it has AVX512-BF16 but no AMX, so products in bf16 run at 2.2 times the speed of
fp32, and not at seven times it as on the machine for which the goals were set (for one with AMX see
[speed_cpu_amx.md](speed_cpu_amx.md)). In turn ours have 1.2 to 1.5 times the fastest peer's best and 2.2 to 2.9 times its defaults;
by their middles 1.5 (prefix, adapters) to 1.6 times (LoRA, prompt) the same method's best, LoRA 3.1 and adapters 2.7 times its
defaults: much of that is batches by length and bf16, which the peers can have too. All other rows are of older code.
Where a step of LoRA went (torch.profiler, one thread, a busy machine, before attention by products): about 64 % the frozen
products, 15 % attention, 6 % GELU, 5 % its own products, the rest norms, sums, copies. Handing out small operations takes
roughly 10 ms of a step, 20 for adapters with their 74 small tensors (steps of one short row, less their products). Packed
weights for oneDNN made the products alone 5 % faster, and would hold the trunk three times: not done.

Packs reach their goal (0.95 x) in this table; batches differ in length and steps are few, so a ratio is good to about a tenth.
Reuse meets its goals (1.35 x, 1.6 x). Memory, in turn: LoRA, prefix and prompt take 0.64 to 0.72 of peft's best settings,
adapters 0.93 of adapters' own. The two rounds of LoRA differ by a fifth, of a kind that processes of all contenders show here now
and then.
""",
    "speed_cpu_amx": """\
The goals were set on two processors with AMX: 4.5 x the peers' defaults and 2.5 x their best settings. These are two of a host's,
and each gives either the whole of a core's AMX or half of it, or less, since neighbours (other machines of the same host) share the
cores.

On host 8 both goals are met by all six: 2.56 to 3.29 times the fastest peer's best, 4.58 to 5.43 times its defaults. Hosts 6 and 7
are of the code before it, where LoRA and adapters met both (2.65 to 3.14, 5.1 to 6.3), prefixes the second on one of them (2.31,
2.77) and prompts (2.48, 2.59), whose virtual tokens do not count here. Since then attention's kernel takes a prefix where it lies,
where keys and values were copied behind it.

More processors (a host's 16 are two threads each of eight cores; 16 on another host than 2 to 8): LoRA has 3.29 times the fastest
peer's best on 4, 3.95 on 8, 5.33 on 16; adapters 2.98, 3.62, 4.81. From 2 to 16 LoRA becomes 3.4 times as fast, the peers 1.8.

`quality`: trained on such processors by their own kernels, five seeds; the same within its spread as on GPUs. `pack`: the middle of
five runs on three hosts, `reuse` likewise, all of older code, as are the floors; one run differs from another by more than what
packs do. Where a step's time goes: [kernels_cpu.md](kernels_cpu.md).

What came for AMX: kernels in C (`ops/native`) for attention, frozen products with the activations behind them, adapters and LoRA,
and norms behind residual sums. Each core begins with the same rows in all of them, and whoever is done helps the others, since
neighbours slow down one core and not the other. Memory: two more copies of the linear layers' weights, 42 MB here, one where nobody
trains through them; a trunk for which two were over a tenth of the machine's memory has none. `floor` has plain products.

With first-token heads adapters and LoRA are as good as with means; prefixes answer the same for all, which is what three epochs of
peft's prefixes at their defaults do, too, so choose means for these.
""",
}
"""What is said of a page's measurements."""
TURNS = """\
`in turn`: all are there at once on the same processors, the least disturbed of a host's, and each takes four steps after the
other, in cycles: what neighbours disturb they disturb for all. `x best`, `x defaults`: the middle over the cycles, and the
quarters, of its rate beside the fastest peer's in the same cycle.

"""
HOW = {
    "speed_cpu": "48 steps in turn after 24, one after the other 24 after 6",
    "speed_cpu_amx": (
        "48 steps in turn after 24, on more processors than two 24 after 8; of the floor 40 after 10, of packs 48 or 96 after 16"
    ),
}
METHODS = {"adapter": "adapter", "lora": "LoRA", "prefix": "prefix", "prompt": "prompt"}
"""How the table names them."""


def read(paths: Sequence[Path]) -> tuple[dict[str, list[dict[str, Any]]], list[dict[str, Any]]]:
    """Measurements by their job, and the facts of the machines, of each invocation that came to its end."""
    jobs: dict[str, list[dict[str, Any]]] = {}
    facts = []
    for line in (line for path in paths for line in path.read_text().splitlines()):
        row = json.loads(line)
        if "about" in row:
            facts.append(row["about"])
        elif "turns" in row or "here" in row:
            continue  # of `turned`, of `quality_here`
        elif "failed" not in row:
            jobs.setdefault(row["job"], []).append(row)
    return jobs, facts


def speed_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of one job's measurements."""
    each = [row["tokens_per_second"] for row in rows]
    spells = [row["fastest_spell"] for row in rows if "fastest_spell" in row]  # runs of before have not told them
    return {
        "tokens/s": round(statistics.median(each)),
        "slowest": round(min(each)),
        "fastest": round(max(each)),
        **({"fastest 20 steps": round(max(spells))} if spells else {}),
        "ms a step": round(statistics.median(row["ms_per_step"] for row in rows), 1),
        "peak MiB": round(statistics.median(row["peak_mib"] for row in rows)),
        "others": max(row["others"] for row in rows),
    }


def quality_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of one contender's runs."""
    found: dict[str, Any] = {"seeds": len(rows) or None}
    for split in ("dev", "test"):
        each = [row[f"{split}_accuracy"] for row in rows]
        spread = f" ({statistics.stdev(each):.1f})" if len(each) > 1 else ""
        found[split] = f"{statistics.mean(each):.1f}{spread}" if each else None
    return found


def scores(jobs: dict[str, list[dict[str, Any]]], job: str) -> list[dict[str, Any]]:
    """The runs that tell how good a contender is."""
    who, method, settings = job.split(":")
    own = {"default": f"quality:ours:{method}", "first-token": f"quality:ours:{method}:first-token"}
    if who == "ours":
        return jobs.get(own.get(settings, ""), [])
    return [row for name, rows in jobs.items() if name.startswith(f"quality:{job}:") for row in rows]


def contenders(jobs: dict[str, list[dict[str, Any]]], more: dict[str, Any]) -> list[dict[str, Any]]:
    """Ours and the peers, one task each. more: what every row says."""

    def fastest(wanted: bool, column: str) -> float | None:
        each = [
            speed_of(rows).get(column)
            for job, rows in jobs.items()
            if job.split(":")[0] in ("peft", "adapters") and job.endswith(":defaults") == wanted
        ]
        return max((speed for speed in each if speed), default=None)

    found = []
    floor = speed_of(jobs["floor:bfloat16"])["tokens/s"] if "floor:bfloat16" in jobs else None
    for job in [job for job in jobs if job.split(":")[0] in ("ours", "peft", "adapters")]:
        who, method, settings = job.split(":")
        ours, speed = who == "ours", speed_of(jobs[job])
        ratios = {"x defaults": fastest(True, "tokens/s"), "x best": fastest(False, "tokens/s"), "of the floor": floor}
        least = speed.get("fastest 20 steps")
        undisturbed = {
            f"{key}, 20 steps": fastest(wanted, "fastest 20 steps")
            for key, wanted in (("x defaults", True), ("x best", False))
        }
        found.append(
            {
                "job": "one task",
                **more,
                "who": "intarsia" if ours else who,
                "method": METHODS.get(method, method),
                "settings": settings,
                **speed,
                **{key: round(speed["tokens/s"] / of, 2) if ours and of else None for key, of in ratios.items()},
                **{key: round(least / of, 2) if ours else None for key, of in undisturbed.items() if of and least},
                **quality_of(scores(jobs, job)),
            }
        )
    return found


def against_first(jobs: dict[str, list[dict[str, Any]]], kind: str, column: str, base: str) -> list[dict[str, Any]]:
    """The jobs of one kind, beside one of them."""
    speeds = {job.split(":")[1]: speed_of(rows) for job, rows in jobs.items() if job.split(":")[0] == kind}
    return [
        {"job": kind, column: name, **speed}
        | ({f"x {base}": round(speed["tokens/s"] / speeds[base]["tokens/s"], 2)} if base in speeds else {})
        for name, speed in speeds.items()
    ]


def quality_here(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Of runs on these processors, with their kernels."""
    rows = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    jobs: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if "here" in row:
            jobs.setdefault(row["job"], []).append(row)
    return [
        {
            "job": "quality",
            "who": "intarsia",
            "method": METHODS[job.split(":")[2]],
            "settings": job.split(":")[3],
            **quality_of(own),
        }
        for job, own in jobs.items()
    ]


def turned(paths: Sequence[Path], jobs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Contenders that took turns on the same processors of a host, and the quality of each."""
    rows = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    rows = [row for row in rows if "turns" in row]
    places = sorted({(row["cores"], row["host"]) for row in rows})
    return [
        one | quality_of(scores(jobs, job))
        for place in places
        for job, one in _turned([row for row in rows if (row["cores"], row["host"]) == place])
    ]


def _turned(rows: Sequence[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Of each turn its rate beside the fastest peer's in the same cycle. That is the peer whose turns are the fastest in their
    middle."""
    peers = [row for row in rows if not row["job"].startswith("ours:")]
    found = []
    for row in rows:
        who, method, settings = row["job"].split(":")
        of: dict[str, Any] = {}
        for key, wanted in (("x best", False), ("x defaults", True)):
            others = [peer for peer in peers if peer["job"].endswith(":defaults") == wanted]
            if who != "ours" or not others:
                continue
            fastest = max(others, key=lambda peer: statistics.median(peer["turns"]))
            each = sorted(own / its for own, its in zip(row["turns"], fastest["turns"], strict=True))
            low, middle, high = statistics.quantiles(each, n=4)
            of |= {key: round(middle, 2), f"{key}, quarters": f"{low:.2f} to {high:.2f}"}
        one = {
            "job": "in turn",
            "processors": row["cores"],
            "host": row["host"],
            "measured at": row["commit"][:7] + ("-dirty" if row["commit"].endswith("-dirty") else ""),
            "who": "intarsia" if who == "ours" else who,
            "method": METHODS.get(method, method),
            "settings": settings,
            "tokens/s": round(statistics.median(row["turns"])),
            "slowest": round(min(row["turns"])),
            "fastest": round(max(row["turns"])),
            "ms a step": row["ms_per_step"],
            "peak MiB": row["peak_mib"],
            "cycles": len(row["turns"]),
            **of,
        }
        found.append((row["job"], one))
    return found


def _hosts(jobs: dict[str, list[dict[str, Any]]]) -> list[tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]]:
    """The jobs of each host, whose contenders are compared with each other only; and what its rows say of it. Runs of one host
    do not say which."""
    hosts = sorted({row["host"] for rows in jobs.values() for row in rows if "host" in row})
    if not hosts:
        return [(jobs, {})]
    found = []
    for host in hosts:
        own = {job: [row for row in rows if row.get("host", host) == host] for job, rows in jobs.items()}
        found.append(({job: rows for job, rows in own.items() if rows}, {"host": host}))
    return found


def report(paths: Sequence[Path], name: str) -> None:
    """Writes the page of this name."""
    jobs, facts = read(paths)
    here = [about for about in facts if "--device cuda" not in about["command"]]
    commands = " && ".join(dict.fromkeys(about["command"] for about in here))
    gpus = sorted({gpu for about in facts if about not in here for gpu in about["hardware"]["gpus"]})
    rows = [
        *turned(paths, jobs),
        *quality_here(paths),
        *(row for own, more in _hosts(jobs) for row in contenders(own, more)),
        *(row | more for own, more in _hosts(jobs) for row in against_first(own, "floor", "dtype", "float32")),
        *against_first(jobs, "pack", "members", "1"),
        *against_first(jobs, "reuse", "modules in", "all"),
    ]
    measured = f"measured on {', '.join(gpus)}, since they do not depend on the device" if gpus else "not measured yet"
    text = TEXT.format(how=HOW[name], quality=measured, turns=TURNS, notes=NOTES[name])
    write_results(
        name,
        "Training speed on a CPU",
        rows,
        text=text,
        about=here[-1] | {"command": commands} if here else None,
    )
