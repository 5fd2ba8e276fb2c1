"""Data: from files, embedded packages and the hub to checked rows, to tokens, to batches.

    splits = load_data(DataSpec(train="train.tsv", test="test.tsv"))
    encoded = encode(splits.split("train"), backbone.tokenizer, max_length=128, kind=splits.kind)
    source = EncodedSource(encoded, batch_size=16, pad_id=backbone.pad_id, seed=0)

Generation has its own pair, `encode_generation` and `GenerationSource`; a `Template` serves both.

Importing this package is light: torch, datasets and pyarrow are imported where they are needed.
"""

from intarsia.data.batching import Arrangement, EncodedSource, Flat, GenerationSource, batches, collate
from intarsia.data.encoding import Encoded, encode
from intarsia.data.generation import EncodedPairs, encode_generation
from intarsia.data.load import load_data, load_rows_for_prediction
from intarsia.data.spec import KINDS, DataSpec, Rows, Splits
from intarsia.data.template import Template

__all__ = [
    "KINDS",
    "Arrangement",
    "DataSpec",
    "Encoded",
    "EncodedPairs",
    "EncodedSource",
    "Flat",
    "GenerationSource",
    "Rows",
    "Splits",
    "Template",
    "batches",
    "collate",
    "encode",
    "encode_generation",
    "load_data",
    "load_rows_for_prediction",
]
