"""P-tuning's prompt encoders against torch's own modules and the formulas written out."""

import copy
import json

import pytest
import torch
from torch import nn

from intarsia.errors import ConfigError, UnsupportedError
from intarsia.methods import PromptTuning, PTuning, method_from_dict, method_to_dict
from intarsia.methods.prompt import PromptDelta
from intarsia.sites import Role, Site
from methods.fakes import BLOCK, WORDS, built

encoders = pytest.mark.parametrize("encoder", ["lstm", "mlp"])


def table(width):
    return [Site(stack="", layer=-1, role=Role.EMBED, module="words", width=width)]


def encoded(encoder, *, width=6, length=5, seed=0, **settings):
    (delta,) = built(PTuning(length=length, encoder=encoder, **settings), table(width), seed=seed).values()
    return delta


def by_hand(delta):
    """The authors' PromptEncoder with the delta's tensors: torch's nn.LSTM and nn.Sequential."""
    state = delta.state_dict()
    width = delta.prompt.shape[2]
    states = delta.prompt.detach()
    if "lstm.weight_ih_l0" in state:
        lstm = nn.LSTM(width, width // 2, num_layers=2, bidirectional=True, batch_first=True).to(states.dtype)
        lstm.load_state_dict({name[5:]: tensor[0] for name, tensor in state.items() if name.startswith("lstm.")})
        states = lstm(states)[0]
    linears = [(state[f"layers.{i}.weight"][0], state[f"layers.{i}.bias"][0]) for i in range(len(delta.layers))]
    for index, (weight, bias) in enumerate(linears):
        states = (states if index == 0 else torch.relu(states)) @ weight.T + bias
    return states


@encoders
@pytest.mark.parametrize("width", [6, 7])
def test_the_prompt_is_what_the_authors_modules_compute(encoder, width):
    delta = encoded(encoder, width=width).double()
    assert delta().shape == (1, 5, width)
    torch.testing.assert_close(delta(), by_hand(delta), rtol=1e-12, atol=1e-12)


def test_the_lstm_reads_the_prompt_in_both_directions():
    # One cell at a time, from the textbook: gates i, f, g, o.
    delta = encoded("lstm").double()
    state = {name[5:]: tensor[0] for name, tensor in delta.state_dict().items() if name.startswith("lstm.")}

    def run(x, suffix):
        h = c = torch.zeros(3, dtype=torch.float64)
        out = []
        for row in x:
            gates = state[f"weight_ih_{suffix}"] @ row + state[f"bias_ih_{suffix}"]
            gates = gates + state[f"weight_hh_{suffix}"] @ h + state[f"bias_hh_{suffix}"]
            i, f, g, o = gates.chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            out.append(h)
        return torch.stack(out)

    x = delta.prompt[0].detach()
    for layer in ("l0", "l1"):
        x = torch.cat([run(x, layer), run(x.flip(0), f"{layer}_reverse").flip(0)], dim=1)
    x = torch.relu(x @ delta.layers[0].weight[0].T + delta.layers[0].bias[0])
    x = x @ delta.layers[1].weight[0].T + delta.layers[1].bias[0]
    torch.testing.assert_close(delta()[0], x, rtol=1e-12, atol=1e-12)


@encoders
def test_each_task_of_a_stack_is_encoded_by_its_own_tensors(encoder):
    first, second = encoded(encoder, seed=1), encoded(encoder, seed=2)
    both = copy.deepcopy(first)
    for (_, parameter), (_, other) in zip(both.named_parameters(), second.named_parameters(), strict=True):
        parameter.data = torch.cat([parameter.data, other.data])
    torch.testing.assert_close(both(), torch.cat([first(), second()]), rtol=0, atol=1e-6)


@encoders
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_folding_keeps_the_prompt_and_drops_the_encoder(encoder, dtype, tolerance):
    delta = encoded(encoder, place="end").to(dtype)
    folded = delta.fold()
    assert isinstance(folded, PromptDelta)
    assert (folded.length, folded.place, folded.prompt.dtype) == (5, "end", dtype)
    assert list(folded.state_dict()) == ["prompt"]
    torch.testing.assert_close(folded(), delta(), rtol=0, atol=tolerance)


@encoders
def test_the_folded_method_is_a_prompt_at_the_same_place(encoder):
    method = PTuning(length=3, encoder=encoder, place="template", insert_at="word_embeddings")
    folded = method.folded()
    assert folded == PromptTuning(length=3, init="uniform", place="template", insert_at="word_embeddings")
    (one,), (other,) = (built(m, table(6)).values() for m in (method, folded))
    assert one.fold().state_dict().keys() == other.state_dict().keys()
    assert one.fold().prompt.shape == other.prompt.shape


@encoders
def test_gradients_reach_every_tensor_and_match_torchs(encoder):
    delta = encoded(encoder).double()
    delta().square().sum().backward()
    for name, parameter in delta.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    step, x = 1e-6, delta.prompt
    with torch.no_grad():
        numeric = torch.zeros_like(x)
        for index in range(x.numel()):
            for sign in (1, -1):
                x.view(-1)[index] += sign * step
                numeric.view(-1)[index] += sign * delta().square().sum() / (2 * step)
                x.view(-1)[index] -= sign * step
    torch.testing.assert_close(delta.prompt.grad, numeric, rtol=1e-5, atol=1e-7)


@encoders
def test_weights_decay_and_nothing_else(encoder):
    delta = encoded(encoder)
    decays = {name for name, _ in delta.named_parameters()} - delta.decay_free()
    assert decays
    assert all("weight" in name for name in decays)
    assert not any("weight" in name for name in delta.decay_free())


@encoders
def test_the_same_seed_gives_the_same_prompt_and_another_seed_another(encoder):
    one, again, other = (encoded(encoder, seed=seed)() for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@encoders
def test_training_checkpoints_bring_back_the_encoder(encoder):
    delta, other = encoded(encoder, seed=1), encoded(encoder, seed=2)
    other.load_state_dict(delta.state_dict())
    assert torch.equal(other(), delta())


# Dynamo looks at .grad of what comes out of the LSTM, and hides the warning by a filter that "error" overrules.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@encoders
def test_it_runs_inside_a_compiled_graph(encoder):
    delta = encoded(encoder)
    compiled = torch.compile(delta, backend="eager")
    torch.testing.assert_close(compiled(), delta(), rtol=0, atol=1e-6)


def test_it_joins_where_prompts_do():
    assert PTuning().sites([WORDS, BLOCK]) == [WORDS]
    assert PTuning().sites([BLOCK]) == [BLOCK]
    with pytest.raises(
        UnsupportedError, match=r"PTuning\.insert_at is 'embedding_output', which this backbone does not have"
    ):
        PTuning(insert_at="embedding_output").sites([WORDS])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"length": 0}, "PTuning.length must be at least 1, got 0"),
        ({"encoder": "gru"}, "PTuning.encoder must be 'lstm' or 'mlp', got 'gru'"),
        ({"place": "middle"}, "PTuning.place must be"),
        ({"place": "template", "insert_at": "embedding_output"}, "slots are words"),
    ],
)
def test_a_bad_setting_is_named_at_birth(settings, says):
    with pytest.raises(ConfigError) as error:
        PTuning(**settings)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_it_comes_back_from_json_as_it_was():
    method = PTuning(length=3, encoder="lstm", place="template")
    assert method_from_dict(json.loads(json.dumps(method_to_dict(method)))) == method
