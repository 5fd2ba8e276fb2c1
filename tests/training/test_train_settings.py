import subprocess
import sys

import pytest
from pydantic import ValidationError

from intarsia.training import TrainSettings

BAD = {
    "epochs": [0, -1, 1.5, "many"],
    "max_steps": [0, -5],
    "learning_rate": [float("nan"), float("inf"), 0.0, -1e-3, True],
    "batch_size": [0],
    "optimizer": ["sgd"],
    "weight_decay": [-0.1, float("nan")],
    "betas": [(0.9,), (0.9, 1.0), (-0.1, 0.9)],
    "warmup": [-0.1, 1.1, True],
    "schedule": ["cosine"],
    "clip": [-1.0],
    "accumulate": [0],
    "evaluate_every": [0],
    "patience": [0],
    "seed": [-1, 2**63, True],
    "checkpoint_every": [0],
    "max_length": [0],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_bad_value_is_one_error_about_that_name(name, value):
    with pytest.raises(ValidationError) as caught:
        TrainSettings(**{name: value})
    errors = caught.value.errors()
    assert len(errors) == 1
    assert errors[0]["loc"][0] == name


def test_an_unknown_name_is_refused():
    with pytest.raises(ValidationError, match="learningrate"):
        TrainSettings(**{"learningrate": 1e-3})


def test_every_setting_has_a_help_text():
    assert all(field.description for field in TrainSettings.model_fields.values())


def test_weight_decay_follows_the_optimizer_unless_given():
    assert TrainSettings().decay() == 0.01
    assert TrainSettings(optimizer="adafactor").decay() == 1e-5
    assert TrainSettings(optimizer="adafactor", weight_decay=0.0).decay() == 0.0


def test_importing_the_package_is_light():
    heavy = "'torch', 'pydantic', 'rich', 'sklearn', 'matplotlib', 'transformers'"
    code = f"import sys, intarsia.training; sys.exit(any(name in sys.modules for name in ({heavy})))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_function_train_is_not_hidden_by_the_package():
    import intarsia
    import intarsia.training
    import intarsia.workflow

    assert intarsia.train is intarsia.workflow.train


def test_every_public_name_is_there():
    import intarsia.training as package

    assert all(getattr(package, name) is not None for name in package.__all__)
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        _ = package.fitt
