"""Settings: what overrides what, and what a run file may hold."""

import dataclasses

import numpy as np
import pytest

from intarsia.errors import ConfigError
from intarsia.methods import METHODS
from intarsia.workflow.runfile import parse_yaml
from intarsia.workflow.sections import SECTIONS, RunSettings
from intarsia.workflow.settings import ELSEWHERE, from_tree, resolve

LEAST = {"backbone": "b", "data.data": "embedded:questions", "method.name": "adapter", "out": "o"}


def written(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_a_run_file_alone_is_a_run(tmp_path):
    path = written(
        tmp_path,
        """
        backbone: embedded:minilm
        data: {train: a.csv, text_columns: [first, second], label_column: same}
        method: {name: lora, rank: 4}
        head: {pooling: cls}
        train: {epochs: 2, learning_rate: 1e-3}
        out: runs/x
        """,
    )
    settings = resolve(path, {})
    assert settings.method["rank"] == 4
    assert settings.train.learning_rate == 1e-3
    assert settings.data.text_columns == ("first", "second")
    assert settings.head.pooling == "cls"


def test_flags_override_the_file_and_set_overrides_both(tmp_path):
    path = written(tmp_path, "train: {epochs: 2, batch_size: 8, seed: 5}\n")
    settings = resolve(path, LEAST | {"train.epochs": 3, "train.batch_size": 4}, ["train.epochs=4"])
    assert (settings.train.epochs, settings.train.batch_size, settings.train.seed) == (4, 4, 5)


def test_the_same_method_by_flag_keeps_the_fields_of_the_file_and_another_drops_them(tmp_path):
    path = written(tmp_path, "method: {name: adapter, width: 48}\n")
    assert resolve(path, LEAST).method["width"] == 48
    assert "width" not in resolve(path, LEAST | {"method.name": "lora"}).method


def test_data_by_flag_replaces_the_files_of_the_run_file(tmp_path):
    path = written(tmp_path, "data: {train: a.csv, test: b.csv, label_column: c, split_seed: 3}\n")
    data = resolve(path, LEAST).data
    assert (data.data, data.train, data.test, data.label_column, data.split_seed) == (
        "embedded:questions",
        None,
        None,
        None,
        3,
    )
    path = written(tmp_path, "data: embedded:questions\n")
    data = resolve(
        path, {key: value for key, value in LEAST.items() if key != "data.data"} | {"data.train": "a.csv"}
    ).data
    assert (data.data, str(data.train)) == (None, "a.csv")


def test_resolved_settings_resolve_to_themselves():
    settings = resolve(None, LEAST, ["method.after=[ffn_out]", "method.width=8", "train.betas=[0.9, 0.98]"])
    assert from_tree(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("48", 48),
        ("1e-3", 1e-3),
        ("-2E4", -2e4),
        ("true", True),
        ("null", None),
        ("[a, b]", ["a", "b"]),
        ("relu", "relu"),
    ],
)
def test_values_read_as_people_mean_them(text, value):
    assert parse_yaml(text) == value


@pytest.mark.parametrize(
    ("override", "fragment"),
    [
        ("train.epochs=2024-99-99", "not valid YAML"),
        ("train.epochs=", "train.epochs"),
        ("train={epochs: 1, epochs: 2}", "given twice"),
        ("train=fast", "train"),
        ("data.text_columns=3", "data.text_columns"),
        ("method=[adapter]", "method"),
        ("method.name=[adapter]", "method.name"),
        ("method.width={a: 1}", "width"),
        ("threads=0", "threads"),
        ("=3", "KEY=VALUE"),
    ],
)
def test_wrong_overrides_are_config_errors_of_one_line(override, fragment):
    with pytest.raises(ConfigError) as caught:
        resolve(None, LEAST, [override])
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_file_of_more_than_a_megabyte_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="larger than 1 MB"):
        resolve(written(tmp_path, "x: " + "y" * (1 << 20)), {})


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("train.max_grad_norm", "train.clip"),
        ("train.per_device_train_batch_size", "train.batch_size"),
        ("train.num_train_epochs", "train.epochs"),
        ("train.gradient_accumulation_steps", "train.accumulate"),
        ("train.warmup_ratio", "train.warmup"),
        ("train.lr", "train.learning_rate"),
        ("output_dir", "out"),
    ],
)
def test_what_other_trainers_call_a_setting_is_answered_with_ours(theirs, ours):
    with pytest.raises(ConfigError, match=f"unknown key '{theirs}'; here it is '{ours}'"):
        resolve(None, LEAST, [f"{theirs}=1"])


def test_every_name_of_ours_in_that_table_exists():
    fields = {field.name for cls in METHODS.values() for field in dataclasses.fields(cls)}
    sections = {name for model in SECTIONS.values() for name in model.model_fields}
    assert set(ELSEWHERE.values()) <= fields | sections | set(RunSettings.model_fields)
    assert not set(ELSEWHERE) & (fields | sections | set(RunSettings.model_fields))


def test_numbers_of_numpy_are_numbers():
    given = {"epochs": np.int64(2), "learning_rate": np.float32(0.5), "betas": (np.float64(0.5), 0.75)}
    method = {"name": "adapter", "width": np.int32(8)}
    settings = from_tree({"backbone": "b", "data": "embedded:questions", "method": method, "train": given, "out": "o"})
    assert (settings.train.epochs, settings.train.learning_rate, settings.train.betas) == (2, 0.5, (0.5, 0.75))
    assert settings.method["width"] == 8
    assert "np." not in repr(settings)
    with pytest.raises(ConfigError, match=r"train\.epochs"):
        from_tree({"backbone": "b", "data": "d", "method": "head", "train": {"epochs": np.float64(1.5)}, "out": "o"})


NO_NUMBERS = {
    "valid integer": ("train.seed", "data.split_seed", "generation.beams", "threads"),
    "valid number": ("generation.temperature", "generation.top_p", "data.validation_fraction", "head.dropout"),
    "expected a number": ("method lora: rank", "method lora: alpha"),
}


@pytest.mark.parametrize(("wanted", "key"), [(wanted, key) for wanted, keys in NO_NUMBERS.items() for key in keys])
def test_true_is_no_number(wanted, key):
    given = key.replace(" lora: ", ".")
    with pytest.raises(ConfigError, match=f"{key}: .*{wanted}, got True"):
        resolve(
            None, {"backbone": "b", "data.data": "embedded:x", "method.name": "lora", "out": "o"}, [f"{given}=true"]
        )
