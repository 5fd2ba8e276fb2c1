"""A backbone, and a good task folder of it."""

import pytest

from methods.every import new_task, wrap


@pytest.fixture(scope="module")
def backbone():
    return wrap("bert")


@pytest.fixture
def folder(tmp_path, backbone):
    """A good task folder."""
    task = new_task(backbone, "serial", name="good")
    task.metrics = {"accuracy": 0.75}
    task.data = {"text_columns": ["a", "b"], "max_length": 64}
    task.save(tmp_path / "task")
    return tmp_path / "task"
