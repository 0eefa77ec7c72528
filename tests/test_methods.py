"""adapt, train, save, load, detach: the contract of every method."""

import copy
import json

import pytest
import torch
from conftest import FROZEN, TYPICAL, attached, in_turn, moved, one_shape, tiny

from minipeft import METHODS, Error, adapt, load_adapter
from minipeft.adapters import export_adapter
from minipeft.config import linears
from minipeft.files.tensors import StoredTensors

SETTINGS = [  # every method that leaves the base alone, and what no typical setting has
    *FROZEN,
    ("prompt", dict(num_virtual_tokens=5, init="random")),
    ("prefix", dict(num_virtual_tokens=5, init="vocab")),
    ("lora", dict(r=3, lora_alpha=12, target_modules=["c_proj", "mlp.c_fc"])),
    ("llama-adapter", dict(adapter_len=4, adapter_layers=2)),
]
FILES = [  # settings whose files are written out in saved_as
    ("prompt", dict(num_virtual_tokens=5)),
    ("prefix", dict(num_virtual_tokens=5)),
    ("prefix", dict(num_virtual_tokens=5, space="hidden")),
    ("prefix", dict(num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=7)),
    ("prefix", dict(num_virtual_tokens=5, space="hidden", prefix_projection=True)),
    ("lora", dict(r=4)),
    ("lora", dict(r=3, lora_alpha=12, target_modules=["c_proj", "mlp.c_fc"])),
    ("adapter", dict(bottleneck_size=5)),
    ("adapter", dict(bottleneck_size=5, placement="pfeiffer")),
    ("llama-adapter", dict(adapter_len=5)),
    ("llama-adapter", dict(adapter_len=4, adapter_layers=2)),
]
COMBINED = (["lora", "prefix"], dict(r=2, num_virtual_tokens=3))


def saved_as(name, h, config):
    """The tensors of an adapter file on the tiny base (L 3, nh 4, C 32): {name: shape}."""
    if name in ("prompt", "prefix"):
        layer = 32 if h.get("space") == "hidden" else 2 * config.n_kv * config.head_size
        return {"prompt_embeddings": (5, 32 if name == "prompt" else 3 * layer)}
    if name == "llama-adapter":
        n = h.get("adapter_layers", 3)
        return {"adaption_prompt": (n, h["adapter_len"], 32), "adaption_gate": (n, 4)}
    if name == "adapter":
        places = ["mlp"] if h.get("placement") == "pfeiffer" else ["attn", "mlp"]
        shapes = {"down": (5, 32), "b_down": (5,), "up": (32, 5), "b_up": (32,)}
        return {
            f"layers.{i}.{place}.{part}": shape for i in range(3) for place in places for part, shape in shapes.items()
        }
    if "attn.c_attn" in linears(config):
        sizes = {"attn.c_attn": (32, 96), "attn.c_proj": (32, 32), "mlp.c_fc": (32, 128), "mlp.c_proj": (128, 32)}
        places = ["attn.c_attn"] if "target_modules" not in h else ["attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
        key = "base_model.model.transformer.h.{}.{}.lora_{}.weight"
    else:  # the paper's two, or what in_shape says
        q, kv = 4 * config.head_size, config.n_kv * config.head_size
        sizes = {"self_attn.q_proj": (32, q), "self_attn.v_proj": (32, kv), "self_attn.o_proj": (q, 32)}
        sizes |= {"mlp.gate_proj": (32, 40), "mlp.up_proj": (32, 40), "mlp.down_proj": (40, 32)}
        places = list(sizes)[:2] if "target_modules" not in h else list(sizes)[2:]
        key = "base_model.model.model.layers.{}.{}.lora_{}.weight"
    pairs = {place: {"A": (h["r"], sizes[place][0]), "B": (sizes[place][1], h["r"])} for place in places}
    return {
        key.format(i, place, x): shape for i in range(3) for place, pair in pairs.items() for x, shape in pair.items()
    }


def tune(model, idx, steps=3):
    optimizer = torch.optim.SGD(model.trainable_parameters(), lr=0.1)
    targets = idx.roll(-1, 1)
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(idx, targets).backward()
        optimizer.step()


@pytest.mark.parametrize("name, h, shape", in_turn([*SETTINGS, COMBINED]))
def test_tuning_learns_and_leaves_the_base_bit_for_bit(name, h, shape, idx):
    base = tiny(shape, torch.float64)  # one gate of one layer moves the loss by less than float32 shows
    before = {k: t.clone() for k, t in base.state_dict().items()}
    model = adapt(base, name, **h) if isinstance(name, list) else attached(base, name, h)
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


@pytest.mark.parametrize("shape", ["learned", "llama", "gemma3"])  # joined, grouped, and heads of a size of their own
@pytest.mark.parametrize("name, h", FILES)
def test_the_names_and_shapes_in_the_file(name, h, base, tmp_path):
    model = attached(base, name, h)
    model.save(tmp_path)
    for tensors in (model.method.tensors(), dict(StoredTensors(tmp_path, "adapter_model", {}))):
        assert {k: tuple(t.shape) for k, t in tensors.items()} == saved_as(name, h, base.config)


@pytest.mark.parametrize("name, h, shape", in_turn(SETTINGS))
def test_a_saved_adapter_is_exactly_its_folded_tensors_and_loads_to_the_same_model(name, h, base, idx, tmp_path):
    model = attached(base, name, h)
    tune(model, idx)
    model.save(tmp_path)
    tensors, stored = model.method.tensors(), dict(StoredTensors(tmp_path, "adapter_model", {}))
    assert stored.keys() == tensors.keys() and all(torch.equal(stored[k], t) for k, t in tensors.items())
    again = load_adapter(base, tmp_path)
    torch.testing.assert_close(again(idx), model(idx), rtol=0, atol=1e-5)
    frozen = {t.data_ptr() for t in again.method.buffers()}  # those declared: test_declarations.py
    trained = [t for t in again.method.tensors().values() if t.data_ptr() not in frozen]
    assert sum(p.numel() for p in again.trainable_parameters()) == sum(t.numel() for t in trained)
    assert {f.name for f in tmp_path.iterdir()} <= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "adapter_model.bin",
    }
    tune(again, idx)  # what was loaded can be trained on


def test_full_trains_everything_and_saves_a_base(shape, base, idx, tmp_path):
    model = adapt(base, "full")
    assert sum(p.numel() for p in model.trainable_parameters()) == sum(p.numel() for p in base.parameters())
    tune(model, idx)
    model.save(tmp_path)
    fresh = tiny(shape)
    assert (fresh(idx) - model(idx)).abs().max() > 1e-2
    loaded = load_adapter(fresh, tmp_path)
    torch.testing.assert_close(loaded(idx), model(idx))
    assert loaded.base is not fresh  # the base given is not overwritten


@pytest.mark.parametrize("name, h", [x for x in SETTINGS if "num_virtual_tokens" not in METHODS[x[0]].sizes()])
def test_methods_without_virtual_tokens_start_as_the_base(name, h, base, idx):
    """LLaMA-Adapter too, whose prompts are behind a gate of 0."""
    torch.testing.assert_close(attached(base, name, h)(idx), base(idx), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name, h", [x for x in SETTINGS if hasattr(METHODS[x[0]], "weight_changes")])
def test_what_can_be_merged_is_a_change_of_the_weights(name, h, base, idx):
    """The change that it says, in a copy of the base, and merge(), give the tuned logits; unmerge() takes it back."""
    model = moved(attached(base, name, h))
    before = {k: t.clone() for k, t in base.state_dict().items()}
    tuned = model(idx)
    changed = copy.deepcopy(base)
    with torch.no_grad():
        for weight, change in model.method.weight_changes(base).items():
            changed.get_parameter(weight).add_(change)
    torch.testing.assert_close(changed(idx), tuned, rtol=0, atol=2e-5)
    model.merge()
    torch.testing.assert_close(base(idx), tuned, rtol=0, atol=2e-5)
    assert torch.equal(model(idx), base(idx))
    model.unmerge()
    assert all(torch.equal(t, before[k]) for k, t in base.state_dict().items())


@pytest.mark.parametrize("name, h", [x for x in TYPICAL if not hasattr(METHODS[x[0]], "weight_changes")])
@one_shape
def test_what_cannot_be_merged_says_so(name, h, base):
    with pytest.raises(Error, match=f"^{name} cannot be merged: it is no change of the base's weights"):
        attached(base, name, h).merge()


@pytest.mark.parametrize("name, h", TYPICAL)
def test_every_method_is_exported_in_a_form_of_pefts_or_refused(name, h, tmp_path):
    """With the reason that it declares, or that of the setting; PEFT's own opening is test_files_peft.py's."""
    for shape in ("learned", "llama"):
        base = tiny(shape)
        model, (folder, out) = attached(base, name, h), (tmp_path / shape / x for x in ("ours", "out"))
        model.save(folder)
        if not METHODS[name].freezes_base:
            continue
        try:
            kind = export_adapter(base, folder, out)
        except Error as e:
            reason = METHODS[name].peft or "PEFT's prefixes have no bias" * h.get("key_bias", False)
            assert reason and reason in str(e) and not out.exists()
        else:
            config = json.loads((out / "adapter_config.json").read_text())
            assert config["peft_type"] == kind and (METHODS[name].peft is None or kind == "ADAPTION_PROMPT")


@one_shape
def test_a_merged_adapter_is_not_saved_trained_or_merged_again(base, idx):
    model = moved(adapt(base, "lora"))
    before, tuned = {k: t.clone() for k, t in base.state_dict().items()}, model(idx)
    model.merge()
    for do, message in ((model.merge, "already merged"), (lambda: model.save("nowhere"), "unmerge"),
                        (lambda: model.loss(idx, idx), "unmerge.. before training"),
                        (lambda: adapt(base, "prompt"), "unmerge it first")):
        with pytest.raises(Error, match=message):
            do()
    model.unmerge()
    assert torch.equal(model(idx), tuned)
    model.merge()
    model.detach()  # takes the change back out, too
    with pytest.raises(Error, match="must be attached"):
        model.merge()
    assert all(torch.equal(t, before[k]) for k, t in base.state_dict().items())


@one_shape
def test_only_a_change_of_weights_on_a_base_of_its_own_is_merged(base):
    one = adapt(base, "lora")
    two = adapt(base, "adapter")
    with pytest.raises(Error, match="adapter cannot be merged"):
        two.merge()
    with pytest.raises(Error, match="attached to the base, and no other"):
        one.merge()


@one_shape
def test_loras_a_starts_as_pefts_and_b_at_zero(base):
    """nn.Linear's own: uniform within 1 / sqrt(inputs)  (kaiming with a = sqrt(5), as PEFT has it)."""
    torch.manual_seed(0)
    for name, p in adapt(base, "lora", r=16).named_trainable_parameters():
        bound = p.size(1) ** -0.5
        assert 0.95 * bound < p.abs().max() <= bound if name.endswith(".A") else not p.any()


@one_shape
def test_the_summary_is_pefts_line(base):
    summary = adapt(base, "prompt", num_virtual_tokens=5).trainable_summary()
    everything = 160 + sum(p.numel() for p in base.parameters())
    assert summary == f"trainable params: 160 || all params: {everything:,} || trainable%: {100 * 160 / everything:.4f}"


@one_shape
def test_the_loss_ignores_what_is_not_supervised(base, idx):
    model = adapt(base, "prompt", num_virtual_tokens=2)
    targets = torch.full_like(idx, -100)
    targets[0, 4], targets[2, 9] = 7, 8
    logp = model(idx).log_softmax(-1)
    torch.testing.assert_close(model.loss(idx, targets), -(logp[0, 4, 7] + logp[2, 9, 8]) / 2)


@pytest.mark.parametrize("name, h", SETTINGS)
def test_what_is_trained_stays_float32_beside_a_bfloat16_base(name, h, idx):
    model = attached(tiny("rotary", torch.bfloat16), name, h)
    with torch.no_grad():  # away from zeros, where the other factor has no gradient
        for p in model.trainable_parameters():
            p.add_(0.1 * torch.randn_like(p))
    assert {p.dtype for p in model.trainable_parameters()} == {torch.float32}
    model.loss(idx, idx).backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in model.trainable_parameters())


@one_shape
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
        ("magic", {}, ", ".join(METHODS)),
        ("prompt", dict(length=3), "takes num_virtual_tokens, init, template, not 'length'"),
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
        (
            "prompt",
            dict(num_virtual_tokens=4, init=torch.zeros(1, 3, 32)),
            "has 3 virtual tokens, so num_virtual_tokens cannot be 4",
        ),
        ("prompt", dict(init=torch.zeros(3, 1, 4, 32)), "above level 'prompt'"),
        ("lora", dict(r=0), "at least 1, not 0"),
        ("lora", dict(target_modules=["query"]), "'query' matches nothing: there are {places} "),
        ("lora", dict(target_modules=[]), "must be names of linears"),
        ("lora", dict(target_modules=5), "must be names of linears: there are {places}; not 5"),
        ("adapter", dict(placement=["mlp"]), "'houlsby' or 'pfeiffer'"),
        ("lora", dict(lora_alpha=0), "positive number"),
        ("lora", dict(lora_dropout=1.0), "below 1"),
        ("adapter", dict(placement="before"), "'houlsby' or 'pfeiffer'"),
        ("adapter", dict(bottleneck_size=0), "at least 1"),
        ("llama-adapter", dict(adapter_layers=4), "more than the base's 3 layers"),
        ("llama-adapter", dict(adapter_len=0), "at least 1"),
        ("hard-prompt", {}, "needs its tokens"),
        ("hard-prompt", dict(tokens=torch.tensor([97])), "0 … 96"),
        (["prompt", "hard-prompt"], dict(tokens=torch.tensor([1])), "both fill the model's prompt slot"),
        (["prefix", "llama-adapter"], {}, "both fill the model's prefix slot"),
        (["lora", "lora"], {}, "not with itself"),
        (["lora", "full"], {}, "full fine-tuning cannot be combined"),
        (["lora", "prefix"], dict(placement="houlsby"), "method 'lora.prefix' takes r, lora_alpha"),
        ([], {}, "no method given"),
    ],
)
@one_shape
def test_what_cannot_be_is_refused_in_one_line(name, h, message, base):
    with pytest.raises(Error, match=message.format(places=", ".join(linears(base.config)))) as e:
        adapt(base, name, **h)
    assert "\n" not in str(e.value)


def test_methods_are_registered_under_their_names():
    assert {name: method.name for name, method in METHODS.items()} == {name: name for name in METHODS}


@one_shape
def test_the_saved_config_holds_pefts_fields(base, tmp_path):
    adapt(base, "prefix", num_virtual_tokens=5, prefix_projection=True).save(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (
        config["prefix_projection"] is False
        and config["num_virtual_tokens"] == 5
        and config["peft_type"] == "PREFIX_TUNING"
    )
