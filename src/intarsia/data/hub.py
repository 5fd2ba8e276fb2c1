"""`hub:` data sets, through `datasets.load_dataset`."""

from __future__ import annotations

from typing import Any

from intarsia.data.files import Table
from intarsia.errors import DataError

VALIDATION = ("validation", "validation_matched", "dev", "valid")


def load_hub(name: str, notes: list[str]) -> dict[str, Table]:
    """NAME, NAME/CONFIG (`glue/mrpc`), OWNER/NAME or OWNER/NAME/CONFIG as tables by split.

    Columns that are neither numbers, text nor lists of these (pictures, sound, records) are left out.
    """
    parts = name.split("/")
    if not 1 <= len(parts) <= 3 or not all(parts):
        raise DataError(
            f"hub:{name} is no data set; expected hub:NAME, hub:NAME/CONFIG, hub:OWNER/NAME or hub:OWNER/NAME/CONFIG"
        )
    if len(parts) == 2:
        loaded = _load(name, [(parts[0], parts[1]), (name, None)])
    else:
        loaded = _load(name, [("/".join(parts[:2]), parts[2]) if len(parts) == 3 else (name, None)])
    tables = {}
    for split, names in (("train", ("train",)), ("validation", VALIDATION), ("test", ("test",))):
        found = next((one for one in names if one in loaded), None)
        if found is None or not len(loaded[found]):
            continue
        if found not in ("train", "validation", "test"):
            notes.append(f"validation: the hub's split {found}")
        tables[split] = _table(loaded[found], f"hub:{name} {found}")
    if not tables:
        raise DataError(
            f"hub:{name} has no split named train, validation or test; it has {', '.join(map(str, loaded))}"
        )
    return tables


def _load(name: str, candidates: list[tuple[str, str | None]]) -> Any:
    import datasets
    from datasets import config as datasets_config
    from datasets.exceptions import DatasetsError

    first: Exception | None = None
    for path, configuration in candidates:
        try:
            return datasets.load_dataset(path, configuration)
        except (
            OSError,
            ValueError,
            RuntimeError,
            DatasetsError,
        ) as error:  # what datasets raises, network errors included
            first = first or error
    reason = " ".join(str(first).split())
    if isinstance(first, ConnectionError) or datasets_config.HF_HUB_OFFLINE:
        reason += "; go online, or give the rows as files with --train, --validation, --test"
    raise DataError(f"hub:{name} cannot be loaded: {reason}") from first


def _table(split: Any, source: str) -> Table:
    from datasets import ClassLabel, LargeList, List, Value

    kept, class_names = [], {}
    for column, feature in split.features.items():
        inner = feature.feature if isinstance(feature, List | LargeList) else feature
        if not isinstance(inner, Value | ClassLabel):
            continue
        kept.append(column)
        if isinstance(inner, ClassLabel) and inner.names:
            class_names[column] = tuple(inner.names)
    return Table(source, split.select_columns(kept)[:], range(1, len(split) + 1), "row", class_names)
