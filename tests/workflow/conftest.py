"""The fixtures of end-to-end tests, and of comparisons in made-up time."""

import os
from pathlib import Path

import pytest

from intarsia.backbone import Backbone
from intarsia.workflow.compare import ledger as ledgers
from intarsia.workflow.compare import probing, testing
from intarsia.workflow.compare.settings import from_mapping
from workflow.compare_standins import METHODS, Clock
from workflow.tiny_run import backbone, cli, decoder, encoder_decoder, files, masked, trained

__all__ = ["backbone", "cli", "decoder", "encoder_decoder", "files", "masked", "trained"]


@pytest.fixture(scope="module")
def loaded(backbone):
    return Backbone.load(str(backbone), dtype="float32", device="cpu")


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(ledgers, "time", made)
    monkeypatch.setattr(probing, "time", made)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    return made


@pytest.fixture
def unscored(monkeypatch):
    """Test scores that are made up, so that many comparisons are quick."""

    def scored(task, backbone, rows, *, with_answers):
        return {"accuracy": task.metrics["accuracy"] - 0.01}, {"confusion": [[1, 2], [3, 4]]} if with_answers else {}

    monkeypatch.setattr(testing, "_scored", scored)


@pytest.fixture
def settings(backbone, files, tmp_path, monkeypatch):
    """Makes the settings of a comparison of few methods."""
    monkeypatch.setenv("INTARSIA_CACHE", str(tmp_path / "cache"))

    def make(out: Path = tmp_path / "out", **changes):
        return from_mapping(
            {
                "backbone": str(backbone),
                "data": {name: str(path) for name, path in files.items()},
                "methods": METHODS,
                "device": "cpu",
                "dtype": "float32",
                "out": str(out),
                **changes,
            }
        )

    return make
