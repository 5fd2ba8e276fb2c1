"""The report of studies.table_to_text: results/table_to_text.{json,md} and the plot of the runs on few rows."""

import importlib.util
import random
import statistics
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS, table, write_results

from intarsia.training.textmetrics import TextMetrics
from studies.pool import Run, mean_std, ranked, read, runs_of
from studies.table_to_text import DEV_SHARE, FEW, SIZES, VARIANTS, rows_of

PAPER = {
    "full fine-tuning": 68.8,
    "top 2 layers": 68.1,
    "adapters 3 %": 68.9,
    "adapters 0.1 %": 66.3,
    "prefix 0.1 %": 70.3,
    "prompt 10": 62.2,
    "prompt 20": 61.9,
}
"""Test BLEU with GPT-2 medium, Li and Liang 2021, tables 1 and 4 (the ACL version; prompt: embedding-only)."""
SAMPLES = 10
Row = dict[str, Any]


def report(path: Path, data: Path) -> None:
    """Scores the texts and writes the results; what is not finished is left out, and said."""
    done = read(path)
    inputs, references = rows_of(data, "test")
    finals, missing = final_rows(done, references)
    few = few_rows(done)
    if not finals:
        raise SystemExit(f"{path}: no final run yet; call `run` again")
    parts = [*intro(), *goals(finals), *few_summary(few), *choices(done), *samples(done, inputs, references)]
    if missing:
        parts += [f"Not finished, and left out: {', '.join(missing)}.", ""]
    if few:
        draw(few)
    rows = finals + [{**row, "method": f"{row['method']}, {row['rows']} rows"} for row in few]
    write_results("table_to_text", "Table to text with few trained parameters", rows, text="\n".join(parts),
                  about=done[-1]["about"])  # fmt: skip


def final_rows(done: list[Run], references: list[list[str]]) -> tuple[list[Row], list[str]]:
    """A row for each method, and the names of those without a final run."""
    rows, missing = [], []
    for name, variant in VARIANTS.items():
        if not variant.final:
            continue
        rate = next(iter(ranked(done, ("tune", name), variant.rates, (0,))), None)
        runs = [] if rate is None else [r for r in runs_of(done, ("final", name), rate) if "texts" in r]
        if not runs:
            missing.append(name)
            continue
        scores = [scored(run["texts"], references) for run in runs]
        mean, std = mean_std([score["bleu"] for score in scores])
        memory = [run["gigabytes"] for run in runs if run["gigabytes"] is not None]
        rows.append({
            "method": name,
            "test BLEU": round(mean, 2),
            "std": None if std is None else round(std, 2),
            **{shown: round(statistics.mean(score[key] for score in scores), digits)
               for shown, key, digits in (("chrF", "chrf", 2), ("ROUGE-L", "rouge_l", 4), ("NIST", "nist", 3))
               if key in scores[0]},
            "trained": runs[0]["trained"],
            "stored": runs[0]["stored"],
            "stored %": round(100 * runs[0]["stored"] / runs[0]["of"], 4),
            "steps": runs[0]["steps"],
            "minutes": round(statistics.mean(run["minutes"] for run in runs), 2),
            "GB": round(max(memory), 1) if memory else None,
            "learning rate": rate,
            "edge of grid": "yes" if rate in (variant.rates[0], variant.rates[-1]) else "no",
            "seeds": len(runs),
        })  # fmt: skip
    return rows, missing


def scored(texts: list[str], references: list[list[str]]) -> dict[str, float]:
    """BLEU and chrF lower-cased, ROUGE-L, and NIST where nltk is there."""
    references = references[: len(texts)]
    scores = TextMetrics(lowercase=True, tokenize="13a").scores(texts, references)
    if importlib.util.find_spec("nltk") is not None:
        from nltk.translate.nist_score import corpus_nist
        from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

        words = Tokenizer13a()
        wanted = [[words(one.lower()).split() for one in row] for row in references]
        scores["nist"] = corpus_nist(wanted, [words(text.lower()).split() for text in texts], n=5)
    return scores


def few_rows(done: list[Run]) -> list[Row]:
    """A row for each method and number of training rows."""
    rows = []
    for name, variant in FEW.items():
        for rate in ranked(done, ("grope", name), variant.rates, (0,))[:1]:
            for size in SIZES:
                runs = [run for run in runs_of(done, ("few", name, size), rate) if "texts" in run]
                if runs:
                    mean, std = mean_std([run["test"] for run in runs])
                    rows.append({"method": name, "rows": size, "test BLEU": round(mean, 2),
                                 "std": None if std is None else round(std, 2), "learning rate": rate,
                                 "seeds": len(runs)})  # fmt: skip
    return rows


def intro() -> list[str]:
    return [
        "E2E over SmolLM2-135M in bf16, trained weights in fp32: a random 21,000 of the 42,061 rows for one epoch, batch 32;",
        "630 test inputs with all their references. AdamW without weight decay, warm-up 10 %, linear decay; the loss is the mean",
        "over the target's tokens (the authors' sum over a sentence is in the tuning table). The learning rate is chosen by greedy",
        "BLEU on the dev split after one epoch over a third of those rows, one seed; the grids were narrowed after a first round,",
        "whose losses were good and whose texts were not (no run of it is here: tasks learned a wrong end token). Test: beam 5,",
        "last weights. BLEU and chrF: sacrebleu, lower-cased, 13a (as the E2E scorer); ROUGE-L: rouge_score, best reference;",
        "NIST: nltk, on the same words. `stored` is what the task folder holds: a reparameterisation is folded away.",
        "Minutes are of one run while other workers share the same GPU: compare them only roughly;",
        "GB is the largest allocation while training.",
        "",
        "A preliminary page: the device time ended before the third seed, most draws on few rows, and longer training (the paper:",
        "five epochs over all rows, so ten times the row-passes).",
        "",
    ]


def goals(rows: list[Row]) -> list[str]:
    """The shape that the paper found, and whether it is here."""
    score = {row["method"]: row["test BLEU"] for row in rows}
    lines = ["## Against the paper", "", "| method | test BLEU | the paper's, GPT-2 medium |", "| --- | --- | --- |"]
    for name, value in sorted(score.items(), key=lambda item: -item[1]):
        lines.append(f"| {name} | {value:.2f} | {PAPER.get(name, '-')} |")
    lines.append("")
    if {"prefix 0.1 %", "full fine-tuning"} <= score.keys():
        gain = score["prefix 0.1 %"] - score["full fine-tuning"]
        lines.append(f"Prefix against full fine-tuning: {gain:+.2f} (paper +1.5). Goal, at or above: "
                     f"{'met' if gain >= 0 else 'missed'}.")  # fmt: skip
    prompts = {name: value for name, value in score.items() if name.startswith("prompt")}
    if "prefix 0.1 %" in score and prompts:
        best = max(prompts, key=lambda name: prompts[name])
        gap = score["prefix 0.1 %"] - prompts[best]
        lines.append(f"The best prompt at the input, {best}, against the prefix: {-gap:+.2f} (paper -8.1). Goal, clearly below: "
                     f"{'met' if gap >= 2 else 'missed'}.")  # fmt: skip
    return [*lines, ""]


def few_summary(rows: list[Row]) -> list[str]:
    """The runs on few rows side by side."""
    if not rows:
        return []
    found = {(row["method"], row["rows"]): row for row in rows}
    shown = []
    for size in SIZES:
        line: Row = {"rows": size}
        for name in FEW:
            if row := found.get((name, size)):
                spread = "" if row["std"] is None else f" ± {row['std']:.2f}"
                line[name] = f"{row['test BLEU']:.2f}{spread} ({row['seeds']})"
        shown.append(line)
    lines = ["## Few rows", "",
             "Test BLEU, greedy: mean and standard deviation over draws (their number). Early stopping on further rows, "
             f"{DEV_SHARE:.0%} as many; the learning rate by the loss on a draw of 200 rows that is none of these.",
             "", table(shown), ""]  # fmt: skip
    real = "prefix, real words"
    for other in FEW:
        both = [size for size in SIZES if (real, size) in found and (other, size) in found]
        if other != real and both:
            gains = [found[real, size]["test BLEU"] - found[other, size]["test BLEU"] for size in both]
            paper = " (paper +2.9)" if other == "full fine-tuning" else ""
            lines.append(f"{real} against {other}: {statistics.mean(gains):+.2f} on average{paper}.")
    return [*lines, "", "![BLEU by training rows](table_to_text.png)", ""]


def choices(done: list[Run]) -> list[str]:
    """What each choice brought: dev BLEU at the best of the learning rates tried."""
    shown = []
    for name in VARIANTS:
        tried = [run for run in done if run["job"][:2] == ["tune", name] and not run.get("diverged")]
        if tried:
            best = max(tried, key=lambda run: run["validation"])
            every = sorted((run["job"][2], run["validation"]) for run in tried)
            shown.append({"method": name, "dev BLEU": round(best["validation"], 2), "learning rate": best["job"][2],
                          "all of them": ", ".join(f"{rate:g}: {score:.1f}" for rate, score in every),
                          "trained": best["trained"], "stored": best["stored"]})  # fmt: skip
    return ["## Tuning, and what the choices bring", "",
            "Greedy BLEU on the dev split after one epoch over a third of the rows, one seed.", "", table(shown), ""]  # fmt: skip


def samples(done: list[Run], inputs: list[str], references: list[list[str]]) -> list[str]:
    """Ten outputs, drawn once, beside their first references."""
    runs = [run for run in done if run["job"][:2] == ["final", "prefix 0.1 %"] and "texts" in run]
    if not runs:
        return []
    texts = min(runs, key=lambda run: run["job"][-1])["texts"]
    picked = sorted(random.Random(0).sample(range(len(texts)), min(SAMPLES, len(texts))))
    shown = [{"input": inputs[i].replace(" | ", "; "), "prefix writes": texts[i].replace("|", "/").replace("\n", " "),
              "first reference": references[i][0]} for i in picked]  # fmt: skip
    return ["## Ten outputs, drawn at random", "", table(shown), ""]


def draw(rows: list[Row]) -> None:
    """BLEU by the number of training rows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panel = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
    for name in FEW:
        mine = [row for row in rows if row["method"] == name]
        panel.errorbar([row["rows"] for row in mine], [row["test BLEU"] for row in mine],
                       yerr=[row["std"] or 0 for row in mine], marker="o", capsize=3, label=name)  # fmt: skip
    panel.set(xscale="log", xlabel="training rows", ylabel="test BLEU (greedy)", title="E2E with few rows")
    panel.set_xticks(SIZES, [str(size) for size in SIZES], minor=False)
    panel.minorticks_off()
    panel.grid(alpha=0.25)
    panel.legend(frameon=False)
    figure.savefig(RESULTS / "table_to_text.png", dpi=130)
