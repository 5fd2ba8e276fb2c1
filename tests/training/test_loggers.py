import importlib.util
import sys
from types import SimpleNamespace

import pytest

from intarsia.errors import ConfigError
from intarsia.training import LOGGERS, open_logger


def test_an_unknown_logger_names_those_there_are(tmp_path):
    with pytest.raises(ConfigError, match="one of tensorboard, wandb, trackio, got 'wandbb'; did you mean 'wandb'"):
        open_logger("wandbb", tmp_path, {})


@pytest.mark.parametrize("name", LOGGERS)
def test_a_logger_that_is_not_installed_says_how_to_get_it(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(ConfigError, match=f"needs the package {name}, which is not installed: pip install {name}"):
        open_logger(name, tmp_path, {})


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_hosted_loggers_get_numbers_by_step(tmp_path, monkeypatch, name):
    calls = []
    fake = SimpleNamespace(
        init=lambda **options: calls.append(("init", options["project"], options["name"], options["config"])),
        log=lambda values, step: calls.append(("log", values, step)),
        finish=lambda: calls.append(("finish",)),
    )
    monkeypatch.setitem(sys.modules, name, fake)
    logger = open_logger(name, tmp_path / "run", {"seed": 1})
    logger.log(10, {"loss": 0.5})
    logger.close()
    assert calls == [("init", "intarsia", "run", {"seed": 1}), ("log", {"loss": 0.5}, 10), ("finish",)]


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_writes_event_files(tmp_path):
    logger = open_logger("tensorboard", tmp_path, {"seed": 1})
    logger.log(10, {"loss": 0.5})
    logger.close()
    assert list((tmp_path / "tensorboard").glob("events*"))
