"""Data: from files, embedded packages and the hub to checked rows, to tokens, to batches.

    splits = load_data(DataSpec(train="train.tsv", test="test.tsv"))
    encoded = encode(splits.split("train"), backbone.tokenizer, max_length=128, kind=splits.kind)
    source = EncodedSource(encoded, batch_size=16, pad_id=backbone.tokenizer.pad_token_id, seed=0)

Importing this package is light: torch, datasets and pyarrow are imported where they are needed.
"""

from intarsia.data.batching import EncodedSource, batches, collate
from intarsia.data.encoding import Encoded, encode
from intarsia.data.load import load_data, load_rows_for_prediction
from intarsia.data.spec import KINDS, DataSpec, Rows, Splits

__all__ = [
    "KINDS",
    "DataSpec",
    "Encoded",
    "EncodedSource",
    "Rows",
    "Splits",
    "batches",
    "collate",
    "encode",
    "load_data",
    "load_rows_for_prediction",
]
