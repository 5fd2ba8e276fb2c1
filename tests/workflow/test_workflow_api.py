"""The same from Python: intarsia.train, evaluate, predict."""

import json
import random
import sys

import numpy as np
import pytest
import torch
import transformers

import intarsia
from intarsia.errors import ConfigError, DataError
from intarsia.training import SilentReporter
from workflow.tiny_run import make_decoder, sentences, write_csv


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("INTARSIA_CACHE", str(tmp_path / "cache"))


def train(backbone, files, out, **settings):
    from intarsia.workflow import train

    return train(backbone=backbone, train=files["train"], out=out, report=SilentReporter(), **settings)


@pytest.mark.parametrize("of_config", [None, -1])
def test_a_wrapped_decoder_whose_tokenizer_pads_with_nothing_trains_and_predicts(of_config, files, tmp_path):
    """As those of GPT-2 and Llama come from AutoTokenizer; the config of the first Llama says -1."""
    folder = str(make_decoder(tmp_path / "gpt2"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = None
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.config.pad_token_id = of_config
    backbone = intarsia.Backbone.wrap(model, tokenizer=tokenizer)
    done = train(backbone, files, tmp_path / "out", method="lora", max_steps=2, validation=files["validation"])
    texts = ["a good film", "a very very bad film"]
    found = intarsia.predict(done.folder, texts, backbone=backbone)
    bank = intarsia.TaskBank(backbone)
    bank.load(done.folder, name="t")
    assert bank.predict(texts, tasks="t") == found
    for text, one in zip(texts, found, strict=True):
        [alone] = bank.predict([text], tasks="t")
        assert alone.scores == pytest.approx(one.scores, abs=1e-5)


def test_train_evaluate_predict(backbone, files, tmp_path):
    loaded = intarsia.Backbone.load(str(backbone), device="cpu")
    method = intarsia.BottleneckAdapter(width=4, non_linearity="relu")
    done = train(
        loaded, files, tmp_path / "out", method=method, epochs=1, pooling="cls", validation=files["validation"]
    )
    assert done.task.method == method
    assert done.task.head.pooling == "cls"
    assert done.metrics["validation"]["accuracy"] == done.task.metrics["accuracy"]
    found = intarsia.evaluate(done.folder, str(files["validation"]), backbone=loaded)
    assert found.metrics["accuracy"] == done.metrics["validation"]["accuracy"]
    first, second = intarsia.predict(done.folder, ["a good film", "a bad film"], backbone=loaded)
    assert {first.label, second.label} <= {"pos", "neg"}


def test_texts_that_are_cut_are_counted(backbone, files, tmp_path, caplog):
    loaded = intarsia.Backbone.load(str(backbone), device="cpu")
    done = train(loaded, files, tmp_path / "out", method="adapter", max_steps=1, max_length=8)
    write_csv(long := tmp_path / "long.csv", [("good " * 20, "pos"), ("a bad film", "neg")])

    def said(run):
        caplog.clear()
        run()
        return [record.getMessage() for record in caplog.records if record.name == "intarsia"]

    cut = ["1 of 2 texts cut to fit 8 tokens"]
    assert said(lambda: intarsia.predict(done.folder, ["a good film", "good " * 20], backbone=loaded)) == cut
    assert said(lambda: intarsia.evaluate(done.folder, str(long), backbone=loaded)) == cut
    assert said(lambda: intarsia.predict(done.folder, ["a good film"], backbone=loaded)) == []


def test_the_same_seed_gives_the_same_file(backbone, files, tmp_path):
    runs = [
        train(str(backbone), files, tmp_path / name, method="lora", max_steps=4, seed=3).folder for name in ("a", "b")
    ]
    assert (runs[0] / "task.safetensors").read_bytes() == (runs[1] / "task.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_callers_default_dtype_and_random_numbers_change_nothing_and_are_not_changed(
    backbone, files, tmp_path, dtype
):
    whole = train(str(backbone), files, tmp_path / "whole", max_steps=4, dtype="float32").folder
    torch.set_default_dtype(dtype)
    try:
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
        other = train(str(backbone), files, tmp_path / "other", max_steps=4, dtype="float32").folder
        assert torch.get_default_dtype() is dtype
    finally:
        torch.set_default_dtype(torch.float32)
    assert (whole / "task.safetensors").read_bytes() == (other / "task.safetensors").read_bytes()
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert np.array_equal(before[2], np.random.get_state()[1])


def test_what_is_no_backbone_method_or_run_is_said(backbone, files, tmp_path):
    loaded = intarsia.Backbone.load(str(backbone), device="cpu")
    with pytest.raises(ConfigError, match=r"got BertModel; of a model make one with Backbone\.wrap\(model"):
        train(loaded.model, files, tmp_path / "out")
    for method in (intarsia.LoRA, None, 3):
        with pytest.raises(ConfigError, match=r"method must be a name, .* such as LoRA\(rank=8\), got (LoRA|None|3)$"):
            train(loaded, files, tmp_path / "out", method=method)
    with pytest.raises(ConfigError, match="each of the runs must be a mapping"):
        intarsia.train_pack(["lora"], backbone=loaded)


def test_a_misspelt_setting_is_named(backbone, files, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'epochs'"):
        train(str(backbone), files, tmp_path / "out", epoch=1)
    assert not (tmp_path / "out").exists()


def test_sections_may_be_given_whole(backbone, files, tmp_path):
    data = {"train": files["train"], "test": files["test"]}
    from intarsia.workflow import train

    done = train(
        backbone=str(backbone),
        data=data,
        out=tmp_path / "out",
        train={"max_steps": 1},
        score_test=True,
        report=SilentReporter(),
    )
    assert done.metrics["test"].keys() == done.metrics["validation"].keys()


def test_a_packs_run_says_what_it_has_otherwise_key_by_key_as_in_a_run_file(backbone, files, tmp_path):
    """A run's own `train` or `data` does not lose what all have there; another method replaces the shared one."""
    from intarsia.workflow.settings import resolve_pack

    shared = {
        "data": {"train": str(files["train"]), "label_column": "label"},
        "train": {"max_steps": 1, "batch_size": 4},
        "method": {"name": "adapter", "width": 3},
    }
    runs = [
        {"train": {"seed": 1}, "method": {"non_linearity": "relu"}},
        {"batch_size": 8, "method": "head", "data": {"validation": str(files["validation"])}},
    ]
    packed = intarsia.train_pack(
        [{**run, "out": tmp_path / str(number)} for number, run in enumerate(runs)], backbone=str(backbone), **shared
    )
    assert [one.task.method for one in packed] == [
        intarsia.BottleneckAdapter(width=3, non_linearity="relu"),
        intarsia.HeadOnly(),
    ]
    of = [json.loads((one.folder / "run.json").read_text("utf-8"))["run"] for one in packed]
    assert [(run["train"]["max_steps"], run["train"]["batch_size"], run["train"]["seed"]) for run in of] == [
        (1, 4, 1),
        (1, 8, 0),
    ]
    assert [run["data"]["label_column"] for run in of] == ["label", "label"]

    del runs[1]["batch_size"]  # in a run file each key stands in its section
    runs[1]["train"] = {"batch_size": 8}
    file = tmp_path / "pack.yaml"
    file.write_text(json.dumps({**shared, "backbone": str(backbone), "out": str(tmp_path), "runs": runs}))
    assert [one.train.model_dump(mode="json") for one in resolve_pack(file, {})] == [run["train"] for run in of]


def test_a_logger_that_is_not_installed_ends_its_own_run_only(backbone, files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    runs = [{"out": tmp_path / "a", "log": "wandb"}, {"out": tmp_path / "b"}]
    failed, trained = intarsia.train_pack(runs, backbone=backbone, train=files["train"], max_steps=2)
    assert "pip install wandb" in failed.message
    assert (trained.folder / "task.safetensors").is_file()


def test_scoring_the_test_split_needs_one(backbone, files, tmp_path):
    with pytest.raises(DataError, match="there is no 'test' split"):
        train(str(backbone), files, tmp_path / "out", score_test=True)
    assert not (tmp_path / "out").exists()


def test_a_test_file_without_labels_is_said_before_the_training(backbone, files, tmp_path):
    (tmp_path / "plain.csv").write_text("text\na good film\na bad one\n")
    with pytest.raises(DataError, match="the test rows have no labels in a column 'label'"):
        train(str(backbone), files, tmp_path / "out", test=tmp_path / "plain.csv")
    assert not (tmp_path / "out").exists()


MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_the_modes_of_torch_that_the_caller_is_in_change_nothing(backbone, files, tmp_path, mode):
    def answers(loaded, folder):
        bank = intarsia.TaskBank(loaded)
        bank.load(folder, name="mood")
        texts = ["a good film", "a bad film"]
        found = bank.predict(texts, tasks="mood"), intarsia.predict(folder, texts, backbone=loaded)
        bank.detach()
        return found, intarsia.evaluate(folder, str(files["validation"]), backbone=loaded).metrics

    def load():
        return intarsia.Backbone.load(str(backbone), device="cpu", dtype="float32")

    outside = train(load(), files, tmp_path / "outside", max_steps=4, method="ptuning").folder
    expected = answers(load(), outside)
    with mode():
        made_inside = load()
        inside = train(made_inside, files, tmp_path / "inside", max_steps=4, method="ptuning").folder
        packed = intarsia.train_pack(
            [{"method": "ptuning", "out": tmp_path / "packed", "train": files["train"], "max_steps": 4}],
            backbone=made_inside,
        )[0].folder
        if mode is not MODES["autocast"]:  # a bank's own passes are the caller's
            assert answers(load(), outside) == expected
        assert intarsia.evaluate(outside, str(files["validation"]), backbone=load()).metrics == expected[1]
    after = train(made_inside, files, tmp_path / "after", max_steps=4, method="ptuning").folder
    for folder in (inside, packed, after):
        assert (folder / "task.safetensors").read_bytes() == (outside / "task.safetensors").read_bytes()
    assert answers(made_inside, inside) == expected


def numbered(tmp_path, **units):
    """Files of prices for good and bad films: `mean` in the middle, `scale` to either side."""
    found = {}
    for split, seed in (("train", 0), ("validation", 1)):
        rows = [
            (text, units["mean"] + units["scale"] * (1 if label == "pos" else -1))
            for text, label in sentences(40, seed=seed)
        ]
        found[split] = write_csv(tmp_path / f"{split}{units['mean']}.csv", rows)
    return found


def test_numbers_are_learnt_alike_in_any_unit_and_answered_in_it(backbone, tmp_path):
    """With labels as they stand prices were out of reach, and tiny numbers had no gradient."""
    found = []
    texts = ["a good film", "a bad film"]
    for number, (mean, scale) in enumerate([(0.0, 1.0), (2e4, 5e3), (1e-5, 1e-6)]):
        files = numbered(tmp_path, mean=mean, scale=scale)
        out, settings = tmp_path / str(number), {"kind": "regression", "max_steps": 6, "learning_rate": 1e-2}
        done = train(backbone, files, out, method="lora", validation=files["validation"], **settings)
        answers = intarsia.predict(out, texts, backbone=done.backbone)
        bank = intarsia.TaskBank(done.backbone)
        bank.load(out, name="t")
        assert bank.predict(texts, tasks="t") == answers
        error = done.metrics["validation"]["mse"] / scale**2
        found.append([error, *((one.prediction - mean) / scale for one in answers)])
    assert found[0][0] < 1.5
    assert found[1] == pytest.approx(found[0], rel=0.05, abs=0.02)
    assert found[2] == pytest.approx(found[0], rel=0.05, abs=0.02)


def test_labels_that_are_all_the_same_are_learnt_too(backbone, tmp_path):
    files = numbered(tmp_path, mean=300.0, scale=0.0)
    done = train(str(backbone), files, tmp_path / "out", kind="regression", method="lora", max_steps=2)
    assert intarsia.predict(done.folder, ["a film"], backbone=done.backbone)[0].prediction == pytest.approx(300, abs=1)


def test_a_run_begun_with_another_unit_is_not_gone_on_with(backbone, tmp_path):
    """As one of a version before heads had units: its weights mean other numbers."""
    files = numbered(tmp_path, mean=300.0, scale=30.0)
    settings = {"kind": "regression", "method": "lora", "max_steps": 2}
    done = train(str(backbone), files, tmp_path / "out", **settings)
    record = done.folder / "run.json"
    facts = json.loads(record.read_text())
    del facts["head"]["mean"], facts["head"]["scale"]
    record.write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match=r"head.mean was None and is 300"):
        train(str(backbone), files, tmp_path / "out", resume=True, **settings)
