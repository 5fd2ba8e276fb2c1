"""Three adapters on the same prompts: blocks of keys and values that requests share must be of the same task (trap 10)."""

import pytest
import torch
import transformers

import tiny
from intarsia.backbone import Backbone
from intarsia.bank import TaskBank
from intarsia.methods import LoRA
from intarsia.serving.decoder import Decoder, Writing
from intarsia.serving.sampling import Sampling
from intarsia.task import Task
from serving.writing import Letters

ADAPTERS = ("one", "two", "three")
PROMPTS = ([5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [20, 21, 22, 23, 24, 25, 26, 27, 28, 29])
NEW = 6


class Endless(Letters):
    """No token ends a text: neither the reference here nor the manager is told of one."""

    eos_token_id = None


def made(backbone, name):
    """A LoRA whose numbers come from its name."""
    task = Task.new(name, backbone, LoRA(rank=3, alpha=6.0)).eval().requires_grad_(False)
    g = torch.Generator().manual_seed(ADAPTERS.index(name))
    for parameter in task.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.4)
    return task


@pytest.fixture(scope="module")
def both():
    """peft's model with three LoRAs, and a bank with the same tensors."""
    peft = pytest.importorskip("peft")
    model = tiny.build("llama", eos_token_id=None)
    config = peft.LoraConfig(r=3, lora_alpha=6.0, target_modules=["q_proj", "v_proj"])
    wrapped = peft.get_peft_model(model, config, adapter_name=ADAPTERS[0])
    for name in ADAPTERS[1:]:
        wrapped.add_adapter(name, config)
    backbone = Backbone.wrap(tiny.build("llama", eos_token_id=None))
    backbone._tokenizer = Endless()
    bank = TaskBank(backbone)
    for name in ADAPTERS:
        task = made(backbone, name)
        for key, site in task.sites.items():
            delta, theirs = task.delta(key), wrapped.base_model.model.base_model.get_submodule(site.module)
            with torch.no_grad():
                theirs.lora_A[name].weight.copy_(delta.a[0])
                theirs.lora_B[name].weight.copy_(delta.b[0])
        bank.add(task)
    return wrapped.eval(), bank


def settings():
    return transformers.GenerationConfig(max_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=-1)


def texts_alone(wrapped):
    """What peft's model writes for each adapter and prompt by itself, a whole forward pass a token."""
    found = {}
    for name in ADAPTERS:
        wrapped.set_adapter(name)
        for number, prompt in enumerate(PROMPTS):
            ids = torch.tensor([prompt])
            with torch.no_grad():
                for _ in range(NEW):
                    ids = torch.cat([ids, wrapped(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
            found[name, number] = ids[0, len(prompt) :].tolist()
    return found


def texts_of_the_stock_manager(wrapped, share):
    """One manager, its adapter set before each adapter's requests."""
    model = wrapped.base_model.model
    config = transformers.ContinuousBatchingConfig(
        page_size=4, num_blocks=64, max_batch_tokens=64, max_requests_per_batch=8, allow_block_sharing=share
    )
    found = {}
    wrapped.set_adapter(ADAPTERS[0])
    with model.continuous_batching_context_manager(
        generation_config=settings(), continuous_batching_config=config
    ) as manager:
        for name in ADAPTERS:
            wrapped.set_adapter(name)
            asked = {
                manager.add_request(prompt, max_new_tokens=NEW, eos_token_id=-1): number
                for number, prompt in enumerate(PROMPTS)
            }
            for _ in asked:
                while (one := manager.get_result(timeout=30)) is not None and not one.is_finished():
                    pass
                assert one is not None
                assert one.error is None
                found[name, asked[one.request_id]] = one.generated_tokens
    return found


def texts_of_ours(bank, together):
    """All at once, or task by task through one decoder."""
    decoder = Decoder(bank)
    asked = {}
    for name in ADAPTERS:
        for number, prompt in enumerate(PROMPTS):
            asked[name, number] = Writing(prompt, name, Sampling(max_tokens=NEW))
            decoder.add(asked[name, number])
        while not together and (decoder.running or decoder.waiting):
            decoder.step()
    while decoder.running or decoder.waiting:
        decoder.step()
    return {key: writing.new for key, writing in asked.items()}


def right(found, want):
    return sum(found[key] == want[key] for key in want)


@pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
)  # peft's, the manager's
def test_three_adapters_on_the_same_prompts_are_all_right_where_the_stock_manager_mixes_them_up(both):
    wrapped, bank = both
    want = texts_alone(wrapped)
    for number in range(len(PROMPTS)):
        assert len({tuple(want[name, number]) for name in ADAPTERS}) == 3, "the adapters must matter"
    assert right(texts_of_ours(bank, together=True), want) == 6
    assert right(texts_of_ours(bank, together=False), want) == 6
    # Without shared blocks the manager is right as long as its adapter stands still, so it is the sharing that is wrong.
    assert right(texts_of_the_stock_manager(wrapped, share=False), want) == 6
    assert right(texts_of_the_stock_manager(wrapped, share=True), want) == 2


def test_a_task_loaded_again_under_its_name_during_traffic_writes_as_its_new_self(both):
    _, bank = both
    decoder = Decoder(bank)

    def written(name):
        writing = Writing(PROMPTS[0], name, Sampling(max_tokens=NEW))
        decoder.add(writing)
        while len(writing.new) < NEW:
            decoder.step()
        return writing.new

    beside = Writing(PROMPTS[1], "three", Sampling(max_tokens=5 * NEW))
    decoder.add(beside)
    of_one, of_two = written("one"), written("two")
    bank.add(made(bank.backbone, "one"), "changing")
    before = written("changing")
    bank.replace("changing", made(bank.backbone, "two"))
    assert (before, written("changing")) == (of_one, of_two)
    assert of_one != of_two
    assert decoder.running == 1, "another text is written all the while"
    decoder.cancel(beside)
    assert beside.new[:NEW] == texts_of_ours(bank, together=True)["three", 1]
