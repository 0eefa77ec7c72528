"""adapt, train, save, load, detach: the contract of every method."""

import json
import warnings

import pytest
import torch
from conftest import tiny

from minipeft import METHODS, Error, adapt, hidden_from_prompt, load_adapter, prefix_from_hidden, prompt_from_tokens

FROZEN = [  # everything that leaves the base alone
    ("prompt", dict(num_virtual_tokens=5)),
    ("prompt", dict(num_virtual_tokens=5, init="random")),
    ("prefix", dict(num_virtual_tokens=5)),
    ("prefix", dict(num_virtual_tokens=5, init="vocab")),
    ("prefix", dict(num_virtual_tokens=5, space="hidden")),
    ("prefix", dict(num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=7)),
    ("prefix", dict(num_virtual_tokens=5, space="hidden", prefix_projection=True)),
]


def tune(model, idx, steps=3):
    optimizer = torch.optim.SGD(model.trainable_parameters(), lr=0.5)
    targets = idx.roll(-1, 1)
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(idx, targets).backward()
        optimizer.step()


@pytest.mark.parametrize("name, h", FROZEN)
def test_tuning_learns_and_leaves_the_base_bit_for_bit(name, h, base, idx):
    before = {k: t.clone() for k, t in base.state_dict().items()}
    model = adapt(base, name, **h)
    start = {k: p.clone() for k, p in model.named_trainable_parameters()}
    first = model.loss(idx, idx.roll(-1, 1)).item()
    with torch.no_grad():  # a validation pass first must not cost the gradients
        model(idx)
    tune(model, idx)
    assert model.loss(idx, idx.roll(-1, 1)).item() < first
    for k, p in model.named_trainable_parameters():
        assert not torch.equal(p, start[k]), k
        assert not k.startswith("base.")
    assert all(p.grad is None for p in base.parameters())
    assert model.detach() is base
    for k, t in base.state_dict().items():
        assert torch.equal(t, before[k]), k
    assert all(p.requires_grad for p in base.parameters())


@pytest.mark.parametrize("name, h", FROZEN)
def test_a_saved_adapter_is_exactly_its_folded_tensors_and_loads_to_the_same_model(name, h, base, idx, tmp_path):
    model = adapt(base, name, **h)
    tune(model, idx)
    model.save(tmp_path)
    tensors = model.method.tensors()
    width = {"prompt": 32}.get(name, 3 * 32 * (1 if h.get("space") == "hidden" else 2))
    assert {k: tuple(t.shape) for k, t in tensors.items()} == {"prompt_embeddings": (5, width)}
    again = load_adapter(base, tmp_path)
    torch.testing.assert_close(again(idx), model(idx), rtol=0, atol=1e-5)
    assert {k: tuple(p.shape) for k, p in again.method.named_parameters()} == {"prompt_embeddings": (5, width)}
    assert {f.name for f in tmp_path.iterdir()} <= {"adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"}
    tune(again, idx)  # what was loaded can be trained on


def test_full_trains_everything_and_saves_a_base(base, idx, tmp_path):
    model = adapt(base, "full")
    assert sum(p.numel() for p in model.trainable_parameters()) == sum(p.numel() for p in base.parameters())
    tune(model, idx)
    model.save(tmp_path)
    fresh = tiny(base.config.position)
    assert (fresh(idx) - model(idx)).abs().max() > 1e-2
    loaded = load_adapter(fresh, tmp_path)
    torch.testing.assert_close(loaded(idx), model(idx))
    assert loaded.base is not fresh  # the base given is not overwritten


@pytest.mark.parametrize("name, h", [("prompt", {}), ("prefix", {}), ("prefix", dict(space="hidden"))])
def test_starting_from_a_text_answers_as_if_the_text_were_read(name, h, base, idx):
    text = torch.tensor([3, 1, 4])
    model = adapt(base, name, num_virtual_tokens=5, init=text, **h)
    repeated = torch.tensor([3, 1, 4, 3, 1])
    read = base(torch.cat([repeated.expand(3, -1), idx], dim=1))[:, 5:]
    torch.testing.assert_close(model(idx), read, rtol=0, atol=2e-5)


def test_starting_from_the_vocabulary_takes_rows_of_the_embedding(base):
    rows = adapt(base, "prompt", num_virtual_tokens=4, init="vocab").method.prompt_embeddings
    assert all((base.wte.weight == row).all(dim=1).any() for row in rows)


def test_the_hidden_space_is_the_literal_hidden_prefix(base, idx):
    model = adapt(base, "prefix", num_virtual_tokens=4, space="hidden")
    hidden = model.method.prompt_embeddings.view(4, 3, 32).transpose(0, 1).unsqueeze(1)
    torch.testing.assert_close(model(idx), base(idx, prefix=prefix_from_hidden(base, hidden)))
    prompt = prompt_from_tokens(base, torch.tensor([5, 6, 7, 8]))
    with torch.no_grad():
        model.method.prompt_embeddings.copy_(hidden_from_prompt(base, prompt)[:, 0].transpose(0, 1).reshape(4, -1))
    torch.testing.assert_close(model(idx), base(idx, prompt=prompt), rtol=0, atol=2e-5)


def test_the_projection_is_li_and_liangs_mlp(base):
    method = adapt(base, "prefix", num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=7).method
    w1, b1, w2, b2 = method.transform[0].weight, method.transform[0].bias, method.transform[2].weight, method.transform[2].bias
    torch.testing.assert_close(method.rows(), torch.tanh(method.embedding @ w1.T + b1) @ w2.T + b2)


@pytest.mark.parametrize("name", ["prompt", "prefix"])
@pytest.mark.parametrize("projection", [False, True])
def test_peft_opens_what_we_save_and_we_open_what_peft_saves(name, projection, tmp_path):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    if name == "prompt" and projection:
        pytest.skip("a prompt has no projection")
    base = tiny("learned")
    idx = torch.randint(97, (2, 9))
    base.save_pretrained(tmp_path / "base")
    h = dict(prefix_projection=True, encoder_hidden_size=16) if projection else {}
    ours = adapt(base, name, num_virtual_tokens=5, **h)
    tune(ours, idx)
    ours.save(tmp_path / "ours")

    def theirs():
        return transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base").eval()

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Unexpected keyword")
        opened = peft.PeftModel.from_pretrained(theirs(), tmp_path / "ours").eval()
    with torch.no_grad():
        torch.testing.assert_close(opened(idx).logits[:, -9:], ours(idx), rtol=0, atol=1e-4)

    kind = {"prompt": peft.PromptTuningConfig, "prefix": peft.PrefixTuningConfig}[name]
    made = peft.get_peft_model(theirs(), kind(task_type="CAUSAL_LM", num_virtual_tokens=6, **h)).eval()
    made.save_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        want = made(idx).logits[:, -9:]
        torch.testing.assert_close(load_adapter(base, tmp_path / "theirs")(idx), want, rtol=0, atol=1e-4)


def test_the_summary_is_pefts_line(base):
    summary = adapt(base, "prompt", num_virtual_tokens=5).trainable_summary()
    everything = 160 + sum(p.numel() for p in base.parameters())
    assert summary == f"trainable params: 160 || all params: {everything:,} || trainable%: {100 * 160 / everything:.4f}"


def test_the_loss_ignores_what_is_not_supervised(base, idx):
    model = adapt(base, "prompt", num_virtual_tokens=2)
    targets = torch.full_like(idx, -100)
    targets[0, 4], targets[2, 9] = 7, 8
    logp = model(idx).log_softmax(-1)
    torch.testing.assert_close(model.loss(idx, targets), -(logp[0, 4, 7] + logp[2, 9, 8]) / 2)


@pytest.mark.parametrize("name, h", FROZEN)
def test_what_is_trained_stays_float32_beside_a_bfloat16_base(name, h, idx):
    model = adapt(tiny("rotary", torch.bfloat16), name, **h)
    assert {p.dtype for p in model.trainable_parameters()} == {torch.float32}
    model.loss(idx, idx).backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in model.trainable_parameters())


def test_several_methods_share_a_frozen_base(base, idx):
    one, two = adapt(base, "prompt"), adapt(base, "prefix")
    assert one.detach() is base
    assert not any(p.requires_grad for p in base.parameters())  # the other still needs it frozen
    assert [n for n, _ in two.named_trainable_parameters()] == ["method.prompt_embeddings"]
    with pytest.raises(Error, match="detach the other adapter first"):
        adapt(base, "full")
    two.detach()
    assert all(p.requires_grad for p in base.parameters())
    full = adapt(base, "full")
    with pytest.raises(Error, match="cannot share it"):
        adapt(base, "prompt")
    full.detach()
    partly = tiny()
    partly.wte.requires_grad_(False)
    adapt(partly, "prompt").detach()
    assert [n for n, p in partly.named_parameters() if not p.requires_grad] == ["wte.weight"]


@pytest.mark.parametrize(
    "name, h, message",
    [
        ("magic", {}, "full, prompt, prefix"),
        ("prompt", dict(length=3), "takes num_virtual_tokens, init, not 'length'"),
        ("full", dict(r=3), "no hyper-parameters"),
        ("prompt", dict(num_virtual_tokens=0), "1 … 47"),
        ("prefix", dict(num_virtual_tokens=48), "block size of 48, not 48"),
        ("prompt", dict(init="zeros"), "'random', 'vocab'"),
        ("prefix", dict(init="zeros"), "'random', 'vocab'"),
        ("prefix", dict(space="keys"), "'kv' or 'hidden'"),
        ("prefix", dict(prefix_projection=True, init=torch.tensor([1])), "starts random"),
        ("prefix", dict(prefix_projection=True, encoder_hidden_size=0), "at least 1, not 0"),
        ("prompt", dict(init=torch.tensor([], dtype=torch.int64)), "empty"),
        ("prompt", dict(init=[1, 2]), "token ids"),
        ("prefix", dict(init=torch.tensor([[1], [2]])), "token ids"),
        ("prefix", dict(init=None), "token ids"),
        ("prompt", dict(init=torch.tensor([97])), "0 … 96"),
        ("prompt", dict(num_virtual_tokens=True), "1 … 47"),
        ("prefix", dict(prefix_projection=True, encoder_hidden_size=1.5), "whole number"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(name, h, message, base):
    with pytest.raises(Error, match=message) as e:
        adapt(base, name, **h)
    assert "\n" not in str(e.value)


def test_methods_are_registered_under_their_names():
    assert {name: method.name for name, method in METHODS.items()} == {name: name for name in METHODS}


def test_the_saved_config_holds_pefts_fields(base, tmp_path):
    adapt(base, "prefix", num_virtual_tokens=5, prefix_projection=True).save(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["prefix_projection"] is False and config["num_virtual_tokens"] == 5 and config["peft_type"] == "PREFIX_TUNING"
