"""The report of studies.prompts_classification: results/prompts_classification.{json,md,png}."""

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS, table, write_results

from studies.pool import Run, keep, mean_std, read, runs_of
from studies.prompts_classification import chosen, text_chosen
from studies.prompts_classification_variants import ENCODER, FILES, TEXT_EPOCHS, TEXT_VARIANTS

PEFT = {"prefix": (76.1, 87.2, 94.8), "prompt": (70.6, 84.3, 93.9), "P-tuning": (70.8, 83.2, 93.8)}
"""Test accuracy of peft on MRPC, SST-2, TREC over the same backbone with 20 virtual tokens; two seeds."""
BESIDE = ("full", "adapter houlsby 48", "adapter pfeiffer 48", "lora r8", "head")
"""Rows of results/adapters_classification.json: same backbone, data, epochs and batch."""
Row = dict[str, Any]


def report(paths: list[Path]) -> None:
    """Writes the results; what is not finished is left out, and said."""
    done = read(*paths)
    if not done:
        raise SystemExit(f"no runs in {', '.join(map(str, paths))}; call `run` first")
    encoder, missing = encoder_rows(done)
    text, more = text_rows(done)
    shown = [{name: value for name, value in row.items() if name not in ("family", "edge")} for row in encoder]
    rows = shown + beside() + text
    summary = "\n".join([*intro(), *goals(encoder), *text_summary(text), *left_out(missing + more)])
    if text:
        draw(text)
    keep(done, RESULTS / "prompts_classification.runs.jsonl")
    write_results("prompts_classification", "Prefixes and prompts for classification", rows, text=summary,
                  about=done[-1]["about"])  # fmt: skip


def encoder_rows(done: list[Run]) -> tuple[list[Row], list[str]]:
    """A row for each variant and data set on MiniLM, and the names of those without enough runs."""
    rows, missing = [], []
    for name, variant in ENCODER.items():
        for data in variant.data:
            rate = chosen(done, data, name)
            runs = [] if rate is None else runs_of(done, ("encoder", data, name), rate)
            if rate is None:
                missing.append(f"{name} on {data}")
                continue
            row = row_of("MiniLM", data, name, rate, runs)
            edge = len(variant.rates) > 2 and rate in (variant.rates[0], variant.rates[-1])
            rows.append({**row, "family": variant.family, "edge": edge})
    return rows, missing


def text_rows(done: list[Run]) -> tuple[list[Row], list[str]]:
    """Likewise for the text-to-text tasks on SmolLM2."""
    rows, missing = [], []
    for name in TEXT_VARIANTS:
        for data in TEXT_EPOCHS:
            rate = text_chosen(done, data, name)
            runs = [] if rate is None else runs_of(done, ("text", data, name), rate)
            if rate is None or not runs:
                missing.append(f"{name} on {data} as text")
                continue
            row = row_of("SmolLM2", data, name, rate, runs)
            row["illegal %"] = round(100 * statistics.mean(run["illegal"] for run in runs), 2)
            rows.append(row)
    return rows, missing


def row_of(backbone: str, data: str, name: str, rate: float, runs: list[Run]) -> Row:
    """Means over the seeds of the chosen learning rate."""
    runs = [run for run in runs if not run.get("diverged")] or [{**runs[0], "test": 0.0, "trained": 0, "minutes": 0.0}]
    mean, std = mean_std([100 * run["test"] for run in runs])
    f1 = [100 * run["test_f1"] for run in runs if "test_f1" in run and data == "mrpc"]
    return {
        "backbone": backbone,
        "data": data,
        "method": name,
        "test accuracy": round(mean, 2),
        "std": None if std is None else round(std, 2),
        "test F1": round(statistics.mean(f1), 2) if f1 else None,
        "validation": round(100 * statistics.mean(run["validation"] for run in runs), 2),
        "learning rate": rate,
        "trained": runs[0]["trained"],
        "stored": runs[0].get("stored", runs[0]["trained"]),
        "minutes": round(statistics.mean(run["minutes"] for run in runs), 2),
        "seeds": len(runs),
    }


def beside() -> list[Row]:
    """Adapters and full fine-tuning on MiniLM, from the adapter study."""
    path = RESULTS / "adapters_classification.json"
    names = ("data", "method", "test accuracy", "std", "test F1", "validation", "learning rate")
    return [
        {"backbone": "MiniLM", **{name: row[name] for name in names}, "trained": row["trained parameters"],
         "stored": row["trained parameters"], "minutes": row["minutes"], "seeds": row["seeds"]}
        for row in json.loads(path.read_text())["rows"] if row["method"] in BESIDE
    ]  # fmt: skip


def intro() -> list[str]:
    return [
        "MiniLM-L6 (22.7M parameters), fp32 with TF32 products: MRPC (10 epochs), SST-2 sentences (4), TREC coarse (8); batch 32,",
        "AdamW, weight decay 0.01 (none on prompts and prefixes), warm-up 10 %, linear decay, one linear head on the mean over the",
        "text's tokens. Every learning rate is tried with one seed, each variant's best by validation with a second, and the best",
        "variant of a family and data set runs with further seeds. The epoch, too, is chosen on the validation split. `full`,",
        "adapters, LoRA and `head` are those of [adapters_classification](adapters_classification.md).",
        "",
        "`quiet trunk`: no dropout inside the frozen layers. `pooler`: the pretrained pooler's output instead of the mean.",
        "`slow head`: the head learns at 5e-3 at most, else as fast as the prompt. `2 x epochs`: so much more training.",
        "`trained` counts what the optimizer moves, the head included; `stored` what the task folder holds (an MLP or LSTM that",
        "only makes the prompt is folded away).",
        "",
        "Not planned, but added after the runs of the others had been seen: all variants with a slow head; after those too, the",
        "two prefixes with 2 x epochs. Read their leads as questions for a fresh study.",
        "",
    ]


def goals(rows: list[Row]) -> list[str]:
    """Each family's variant with the best validation score, against peft: at the same epochs, and of all."""
    lines = ["## Against peft", "",
             "The variant of each family is the one with the best validation score on that data set: among those with peft's own",
             "number of epochs, and, where that is another one, among all. Goal: one point above peft.",
             "", "| family | data | chosen by validation | seeds | test | peft | difference | goal |",
             "| --- | --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for family, figures in PEFT.items():
        for data, theirs in zip(FILES, figures, strict=True):
            mine = [row for row in rows if (row["family"], row["data"]) == (family, data)]
            equal = [row for row in mine if ENCODER[row["method"]].passes == 1]
            best = [max(some, key=lambda row: row["validation"]) for some in (equal, mine) if some]
            lines += [against(family, row, theirs) for row in {row["method"]: row for row in best}.values()]
    edges = sorted({f"{row['method']} ({row['data']})" for row in rows if row["edge"]})
    return [*lines, "", "± is the standard error over seeds; that of the test sets alone is about 1.",
            *([f"Their best learning rate is the edge of three or more: {', '.join(edges)}."] if edges else []), ""]  # fmt: skip


def against(family: str, row: Row, theirs: float) -> str:
    """One line of the goals' table."""
    gain = row["test accuracy"] - theirs
    error = "" if row["std"] is None else f" ± {row['std'] / row['seeds'] ** 0.5:.2f}"
    cells = (
        family,
        row["data"],
        row["method"],
        row["seeds"],
        f"{row['test accuracy']:.2f}{error}",
        theirs,
        f"{gain:+.2f}",
    )
    return f"| {' | '.join(map(str, cells))} | {'met' if gain >= 1 else 'missed'} |"


def text_summary(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    best = [max((r for r in rows if r["data"] == data), key=lambda r: r["validation"], default=None)
            for data in TEXT_EPOCHS]  # fmt: skip
    lines = ["## Text to text", "",
             "SmolLM2-135M in bf16, frozen; a prompt before the input is all that is trained, and the label is generated as a",
             "word. Exact match on the test split; 2 epochs, batch 32, AdamW, last weights. Two learning rates (three had been",
             "tried once before) with one seed each; that with the better score on the validation split has two further seeds.",
             "`illegal`: outputs that are none of the labels.", ""]  # fmt: skip
    shown = [{k: r.get(k) for k in ("data", "method", "test accuracy", "std", "illegal %", "learning rate", "trained",
                                    "seeds")} for r in rows]  # fmt: skip
    said = [f"{row['data']}: {row['method']} is best by validation, test {row['test accuracy']:.2f}."
            for row in best if row]  # fmt: skip
    return [*lines, table(shown), "", *said, "", "![Length and initialisation](prompts_classification.png)", ""]


def left_out(missing: list[str]) -> list[str]:
    return [f"Not finished, and left out: {', '.join(missing)}.", ""] if missing else []


def draw(rows: list[Row]) -> None:
    """Exact match by length, and by initialisation."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (lengths, inits) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for at, data in enumerate(TEXT_EPOCHS):
        mine = {TEXT_VARIANTS[row["method"]]: row for row in rows if row["data"] == data}
        by_length = sorted((length, row) for (length, init), row in mine.items() if init == "vocabulary")
        lengths.errorbar([n for n, _ in by_length], [r["test accuracy"] for _, r in by_length],
                         yerr=[r["std"] or 0 for _, r in by_length], marker="o", capsize=3, label=data)  # fmt: skip
        by_init = [(init, row) for (length, init), row in mine.items() if length == 20]
        inits.bar([i + 0.35 * at for i in range(len(by_init))], [r["test accuracy"] for _, r in by_init], width=0.33,
                  yerr=[r["std"] or 0 for _, r in by_init], capsize=3, label=data)  # fmt: skip
        inits.set_xticks([i + 0.17 for i in range(len(by_init))], [init for init, _ in by_init])
    lengths.set(xscale="log", xlabel="virtual tokens", ylabel="exact match on test, %", title="length (vocabulary)")
    inits.set(title="initialisation (20 virtual tokens)", ylabel="exact match on test, %")
    for panel in (lengths, inits):
        panel.grid(alpha=0.25)
        panel.legend(frameon=False)
    figure.savefig(RESULTS / "prompts_classification.png", dpi=130)
