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
def test_hosted_loggers_get_numbers_by_step_each_its_own_runs(tmp_path, monkeypatch, name):
    calls = []

    def init(*, project, name, config, **_options):
        calls.append(("init", project, name, config))
        return SimpleNamespace(
            log=lambda values, step: calls.append((name, values, step)), finish=lambda: calls.append((name, "finish"))
        )

    monkeypatch.setitem(sys.modules, name, SimpleNamespace(init=init))
    one, two = (open_logger(name, tmp_path / out, {"seed": 1}) for out in ("one", "two"))
    one.log(10, {"loss": 0.5})  # two are open at once in a pack
    two.log(20, {"loss": 0.4})
    one.close()
    two.close()
    assert calls == [
        ("init", "intarsia", "one", {"seed": 1}),
        ("init", "intarsia", "two", {"seed": 1}),
        ("one", {"loss": 0.5}, 10),
        ("two", {"loss": 0.4}, 20),
        ("one", "finish"),
        ("two", "finish"),
    ]


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_writes_event_files(tmp_path):
    logger = open_logger("tensorboard", tmp_path, {"seed": 1})
    logger.log(10, {"loss": 0.5})
    logger.close()
    assert list((tmp_path / "tensorboard").glob("events*"))
