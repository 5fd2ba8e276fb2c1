"""A real engine over a real folder of tasks, and a client of it in this process."""

import pytest

from intarsia.backbone import Backbone
from intarsia.serving.http import Keys
from intarsia.serving.library import Library
from serving.fake_engine import serving
from serving.served import engine_over, save
from workflow.tiny_run import make_decoder

ADMIN = {"X-API-Key": "admin-key-0123456789"}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return Backbone.load(str(make_decoder(tmp_path_factory.mktemp("http") / "tiny-gpt2")), dtype="float32")


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"admin:{ADMIN['X-API-Key']}\n")
    path.chmod(0o600)
    return Keys.read(path)


@pytest.fixture
def folder(backbone, tmp_path):
    """Two classifiers and a writer."""
    tasks = tmp_path / "tasks"
    save(backbone, tasks, "mood", 0)
    save(backbone, tasks, "spam", 1, seed=3)
    save(backbone, tasks, "writer", 1, seed=1, kind="generation", labels=())
    return tasks


@pytest.fixture
def engine(backbone):
    with engine_over(backbone) as engine:
        yield engine


@pytest.fixture
def said():
    return []


@pytest.fixture
def library(folder, engine, said):
    library = Library(folder, engine, say=said.append)
    library.look()
    return library


@pytest.fixture
def client(engine, library, keys):
    client = serving(engine, keys, library=library)
    client.headers.update(ADMIN)
    return client
