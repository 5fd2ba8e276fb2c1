"""Runs scripts/quickstart as a user would, and keeps its numbers and its curve.

    python -m benchmarks.quickstart [--method adapter]

Writes results/quickstart.{json,md} and docs/quickstart.png.
"""

import argparse
import json
import math
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.results import RESULTS, write_results

ROOT = RESULTS.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="adapter")
    method = parser.parse_args().method
    with tempfile.TemporaryDirectory() as folder:
        out, start = Path(folder) / "run", time.monotonic()
        subprocess.run(["bash", ROOT / "scripts/quickstart", "--method", method, "--out", out], check=True)
        seconds = time.monotonic() - start
        task, test = (json.loads((out / name).read_text()) for name in ("task.json", "test.json"))
        row = {
            "method": method,
            "test accuracy": test["metrics"]["accuracy"],
            "test rows": test["rows"],
            "trained parameters": sum(math.prod(shape) for shape in task["tensors"].values()),
            "bytes on disk": sum((out / name).stat().st_size for name in ("task.safetensors", "task.json")),
            "seconds in all": round(seconds, 1),
        }
        shutil.copy(out / "curve.png", ROOT / "docs/quickstart.png")
    text = "`bash scripts/quickstart` after the downloads: MiniLM, `embedded:questions` (six classes), three epochs, one seed."
    write_results("quickstart", "The quickstart", [row], text=text)


if __name__ == "__main__":
    main()
