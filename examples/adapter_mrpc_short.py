"""adapter_mrpc.py in five lines:  python examples/adapter_mrpc_short.py runs/short [train.tsv dev.tsv [embedded:minilm]]"""

import sys

import intarsia

out, *rest = sys.argv[1:] if len(sys.argv) in (2, 4, 5) else sys.exit(__doc__)
data = {"train": rest[0], "validation": rest[1]} if rest else "hub:glue/mrpc"
backbone = rest[2] if len(rest) > 2 else "bert-base-uncased"
try:
    result = intarsia.train(backbone=backbone, data=data, method="adapter", max_length=128, out=out)
except (intarsia.IntarsiaError, OSError) as error:  # a file, or a model that is not here; each says what
    sys.exit(f"{error}")
print(f"accuracy {result.metrics['validation']['accuracy']:.4f}, {result.size / 1e6:.2f} MB in {result.folder}")
