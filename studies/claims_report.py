"""The report of studies.claims: results/claims.{json,md,runs.jsonl}, the plots, and docs/claims.md."""

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS, table, write_results

from studies import claims_plots
from studies.claims import FIRST_SEEDS, PARTS, best_rate
from studies.claims_facts import Facts, Finding
from studies.claims_findings import findings
from studies.pool import Run, keep, mean_std, read, runs_of

DOCS = RESULTS.parent / "docs" / "claims.md"
SHARE = ("text length", "unseen", "unseen, full")
"""Parts whose scores are BLEU already; all others become percent."""
Row = dict[str, Any]


def report(paths: list[Path]) -> None:
    """Writes everything; what is not finished is left out, and said. Without a run only what other studies say is judged."""
    if lost := [str(path) for path in paths if not path.exists()]:
        raise SystemExit(f"no such file: {', '.join(lost)}; give --runs what `run` wrote")
    done = read(*(paths or [RESULTS / "claims.runs.jsonl"]))
    rows, missing = score_rows(done)
    rows += ablation_rows(done)
    facts = Facts(
        own=rows,
        adapters=rows_of("adapters_classification"),
        prompts=rows_of("prompts_classification"),
        tables=rows_of("table_to_text"),
        tunes=tunes(read(RESULTS / "table_to_text.runs.jsonl.gz")),
    )
    found = findings(facts)
    drawn = claims_plots.draw(facts)
    if done:
        keep(done, RESULTS / "claims.runs.jsonl")
        text = summary(missing)
        write_results("claims", "The papers' claims: what was run for them", rows, text=text, about=done[-1]["about"])
    DOCS.write_text(page(found, drawn, missing, facts), encoding="utf-8")
    print(f"{sum(map(len, found.values()))} claims, {len(rows)} rows, plots: {', '.join(drawn) or 'none'} -> {DOCS}")


def rows_of(study: str) -> list[Row]:
    """The rows of another study; none where it has not been made."""
    path = RESULTS / f"{study}.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []


def tunes(runs: list[Run]) -> dict[str, float]:
    """The best dev BLEU of each method that studies.table_to_text has tuned."""
    best: dict[str, float] = {}
    for run in runs:
        sort, name = run["job"][:2]
        if sort == "tune":
            best[name] = max(best.get(name, run["validation"]), run["validation"])
    return best


def score_rows(done: list[Run]) -> tuple[list[Row], list[str]]:
    """A row for each variant, backbone and data set that has all its first seeds, and the names of the others."""
    rows, missing = [], []
    for name, part in PARTS.items():
        others = {run["job"][1] for run in done if run["job"][0] == name}
        for over in dict.fromkeys((*part.backbones, *sorted(others))):
            for data in part.epochs:
                for variant in part.variants:
                    row = score_row(done, name, over, data, variant)
                    rows += [row] if row else []
                    missing += [] if row else [f"{name}: {variant} on {data} over {over}"]
    return rows, missing


def score_row(done: list[Run], name: str, over: str, data: str, variant: str) -> Row | None:
    """Means over the seeds of the best learning rate."""
    what, part = (name, over, data, variant), PARTS[name]
    for rate in best_rate(done, *what, seeds=1 if part.alone else FIRST_SEEDS):
        runs = runs_of(done, what, rate)
        if len(runs) < FIRST_SEEDS:
            return None
        well = [run for run in runs if "test" in run]
        factor = 1 if name in SHARE else 100
        # A run that diverged answers no better than by chance; it counts as nothing right.
        mean, std = mean_std([factor * run.get("test", 0.0) for run in runs])
        kinds = {
            k: round(statistics.mean(run[k] for run in well), 2) for k in ("seen", "unseen") if well and k in well[0]
        }
        return {
            "part": name,
            "backbone": over,
            "data": data,
            "variant": variant,
            "test": round(mean, 2),
            "std": None if std is None else round(std, 2),
            **kinds,
            "validation": round(factor * statistics.mean(max(0.0, run["validation"]) for run in runs), 2),
            "learning rate": rate,
            "stored": well[0]["stored"] if well else None,
            "seeds": len(runs),
            "diverged": len(runs) - len(well),
        }
    return None


def ablation_rows(done: list[Run]) -> list[Row]:
    """Test scores with modules taken out, means over the tasks that were ablated; "whole": with all of them."""
    rows = []
    runs = [run for run in done if "without" in run]
    for data in dict.fromkeys(run["job"][2] for run in runs):
        mine = [run for run in runs if run["job"][2] == data]
        scores = {"whole": [run["test"] for run in mine]}
        scores |= {span: [run["without"][span] for run in mine] for span in mine[0]["without"]}
        for variant, values in scores.items():
            mean, std = mean_std([100 * value for value in values])
            rows.append({"part": "ablation", "backbone": "minilm", "data": data, "variant": variant, "test": round(mean, 2),
                         "std": None if std is None else round(std, 2), "seeds": len(values)})  # fmt: skip
    return rows


def summary(missing: list[str]) -> str:
    """What stands above the table of results/claims.md."""
    lines = [
        "What [docs/claims.md](../docs/claims.md) needs and other studies do not answer. `test`: accuracy in percent",
        "(`tagging`: F1 over whole spans; `unseen`, `text length`: BLEU of greedy texts), mean and standard deviation over",
        "seeds. AdamW without weight decay, batch 32, warm-up 10 %, linear decay, bf16 backbone, fp32 modules, no dropout in",
        "the backbone, last weights. The learning rate is chosen on the validation split over three seeds (full fine-tuning:",
        "one; texts: chosen by table_to_text). A run that diverged counts as 0. `ablation`: the tasks of `std 0.01` without",
        "the adapters and norms of layers i to j. `slots`: E2E's sentences, six slots to tag, restaurant names of the test",
        "split never seen in training. `e2e, seen kinds`: no Italian and Japanese food and no riverside in training.",
    ]  # fmt: skip
    return "\n".join(lines + (["", f"Not finished, and left out: {'; '.join(missing)}."] if missing else []))


# -- docs/claims.md ----------------------------------------------------------------------------------------------------

INTRO = """# The papers' claims, here

Written by `python -m studies.claims report` from results/; do not edit. Backbones are small (MiniLM with 22 million parameters,
SmolLM2 with 135 million) and so are the test sets (500 to 1,821 texts, a standard error of about one point; E2E: 630 inputs), so a
claim about BERT-large or GPT-2 medium may fail here and be true there. The rules for what comes from `claims` were written down
before its runs; those for older results after these had been seen.
"""
METHOD = """## How the runs of this page were made

`studies/claims.py` trains what other studies do not answer, as packs (dozens of runs through the model at once), three seeds or
more; every figure is in [results/claims.md](../results/claims.md), every run in results/claims.runs.jsonl.

- *Taking out adapters* trains nothing again: the layer is the frozen backbone's, its trained norms too.
- *Unseen kinds*: no set with unseen topics is at hand. E2E is divided: no row with Italian or Japanese food or on the riverside is
  in training (nor a sentence that names them); test inputs with one of these are unseen. WebNLG's unseen categories are much
  farther from its seen ones than a food is from another, so this is a milder test than the paper's.
- *Tagging*: no set with tags is at hand either. E2E's fields stand word for word in most sentences; these are the tags (name, near,
  food, area, price, rating), and names of validation and test are never in training. 2,000 sentences to train on.
- *Size*: prompt and full fine-tuning with the same classification head, data and number of epochs (two) over each backbone; a
  prompt over MiniLM wants more, so its gap after 4 and 8 epochs, from other pages, stands beside. `run --part size "size, full"
  --backbone NAME ...` takes other backbones.
"""


def page(found: dict[str, list[Finding]], drawn: list[str], missing: list[str], facts: Facts) -> str:
    every = [one for some in found.values() for one in some]
    words = {
        "holds": "hold",
        "partly": "hold in part",
        "does not hold": "do not",
        "not measured yet": "are not measured yet",
    }
    counts = [f"{n} {word}" for verdict, word in words.items() if (n := sum(one.verdict == verdict for one in every))]
    lines = [INTRO, f"Of {len(every)} claims {', '.join(counts)}.", ""]
    for paper, some in found.items():
        shown = [
            {
                "claim": one.claim,
                "the paper": one.paper,
                "here": one.here or None,
                "verdict": f"**{one.verdict}**",
                "rule": one.rule,
                "from": f"[{one.source}](../results/{one.source}.md)" if one.here else None,
            }
            for one in some
        ]
        lines += [f"## {paper}", "", table(shown), ""]
        lines += [line for name in drawn for line in claims_plots.shown(name, paper, "../results/")]
    if not_here := [one.claim for one in every if one.verdict in ("partly", "does not hold")]:
        lines += ["## What does not hold here, or only in part", "", *(f"- {claim}" for claim in not_here), ""]
    if thin := few_seeds(facts):
        lines += [f"Fewer than three seeds stand behind: {', '.join(thin)}.", ""]
    if not facts.own:
        return "\n".join(lines)
    lines += [METHOD]
    if missing:
        lines += [f"Not finished, and left out: {'; '.join(missing)}.", ""]
    return "\n".join(lines)


def few_seeds(facts: Facts) -> list[str]:
    """What the verdicts read in other studies and that has one or two seeds."""
    texts = [(f"{r['method']} on {r['data']} as text", r["seeds"]) for r in facts.prompts if r["backbone"] == "SmolLM2"]
    tables = [(f"{r['method']} on E2E ({r['runs']})", r["seeds"]) for r in facts.tables]
    return [f"{name}: {seeds}" for name, seeds in tables + texts if seeds < FIRST_SEEDS]
