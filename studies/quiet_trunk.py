"""Dropout inside the frozen trunk, or none: what results/adapters_classification.json says of it, side by side.

python -m studies.quiet_trunk        # writes results/quiet_trunk.{json,md}; trains nothing
"""

import json
import statistics

from benchmarks.results import RESULTS, write_results

QUIET = ", quiet trunk"
TEXT = """
Test accuracy over MiniLM, five seeds each; learning rates chosen on validation; the runs are those of
[adapters_classification](adapters_classification.md). `quiet`: no dropout inside the frozen backbone; that of the head stays.

The differences lie within what five seeds and these test sets can tell (a standard error of the mean over seeds is 0.1 to 0.5, that
of a test set about 1): better for adapters, slightly worse for LoRA, and the mean of both is equal. So a frozen backbone
is trained without dropout by default: masks cost a quarter of a step on a CPU, and without them rows can be packed, trunks
reused and packs repeated to the bit. Where a method trains the backbone's own weights (full, top layers), dropout stays on.
"""


def main() -> None:
    source = json.loads((RESULTS / "adapters_classification.json").read_text())
    found = {(row["method"], row["data"]): row for row in source["rows"]}
    rows = []
    for method in [name.removesuffix(QUIET) for name, data in found if name.endswith(QUIET) and data == "mrpc"]:
        pairs = [(data, found[method, data], found[method + QUIET, data]) for data in ("mrpc", "sst2", "trec")]
        for data, loud, quiet in pairs:
            rows.append(
                _row(
                    method,
                    data,
                    loud["test accuracy"],
                    loud["std"],
                    quiet["test accuracy"],
                    quiet["std"],
                    loud["seeds"],
                )
            )
        means = [statistics.mean(pair[i]["test accuracy"] for pair in pairs) for i in (1, 2)]
        rows.append(_row(method, "mean", means[0], None, means[1], None, pairs[0][1]["seeds"]))
    facts = {key: source[key] for key in ("hardware", "versions", "command", "commit")}
    write_results("quiet_trunk", "No dropout inside the frozen trunk", rows, text=TEXT, about=facts)


def _row(
    method: str, data: str, loud: float, loud_std: float | None, quiet: float, quiet_std: float | None, seeds: int
) -> dict:
    return {
        "method": method,
        "data": data,
        "with dropout": round(loud, 2),
        "std": loud_std,
        "quiet": round(quiet, 2),
        "quiet std": quiet_std,
        "difference": round(quiet - loud, 2),
        "seeds": seeds,
    }


if __name__ == "__main__":
    main()
