"""(IA)³: the scaled weights it stands for, and adapters exchanged with PEFT, bytes included."""

import copy
import json
import warnings

import pytest
import torch
from conftest import moved, tiny
from families import base_of, opened_by_transformers

from minipeft import GPT, Error, GPTConfig, TaskBank, adapt, load_adapter
from minipeft.config import linears_by_role
from minipeft.files.peft import read_adapter

CASES = [("gpt2", "kv"), ("llama", "kv"), ("qwen2", "kv"), ("qwen2", "qv")]
DEFAULTS = {"gpt2": "kv", "llama": "kv", "qwen2": "qv"}  # what PEFT rescales where nothing is said
PEFT_TARGETS = {"kv": ["k_proj", "v_proj", "down_proj"], "qv": ["q_proj", "v_proj", "down_proj"]}


def tuned(base, **h):
    torch.manual_seed(1)
    return moved(adapt(base, "ia3", **h), 0.3)


def peft_config(kind, rescaled):
    """PEFT's config; without targets where its own are these."""
    peft = pytest.importorskip("peft")
    if DEFAULTS[kind] == rescaled:
        return peft.IA3Config(task_type="CAUSAL_LM", fan_in_fan_out=kind == "gpt2")
    targets = PEFT_TARGETS[rescaled]
    return peft.IA3Config(task_type="CAUSAL_LM", target_modules=targets, feedforward_modules=targets[-1:])


def tensors_in(folder) -> tuple[dict, bytes]:
    """Header of adapter_model.safetensors without its metadata, and all that follows."""
    file = (folder / "adapter_model.safetensors").read_bytes()
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:end])
    del header["__metadata__"]
    return header, file[end:]


@pytest.mark.parametrize("kind, rescaled", CASES)
@torch.no_grad()
def test_peft_opens_what_we_save_and_merges_it_as_we_do(kind, rescaled, tmp_path, idx):
    peft = pytest.importorskip("peft")
    base = base_of(kind)
    base.save_pretrained(tmp_path / "base")
    model = tuned(base, rescaled=rescaled)
    model.save(tmp_path / "ours")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Unexpected keyword|fan_in_fan_out")
        theirs = peft.PeftModel.from_pretrained(opened_by_transformers(tmp_path / "base"), tmp_path / "ours").eval()
    want = model(idx)
    assert (base(idx) - want).abs().max() > 0.05
    torch.testing.assert_close(theirs(idx).logits, want, rtol=1e-5, atol=1e-5)
    model.merge()
    torch.testing.assert_close(base(idx), theirs.merge_and_unload()(idx).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind, rescaled", CASES)
def test_we_open_what_peft_saves_and_save_the_same(kind, rescaled, dtype, tmp_path, idx):
    pytest.importorskip("safetensors")
    peft = pytest.importorskip("peft")
    base = base_of(kind)
    base.save_pretrained(tmp_path / "base")
    theirs = peft.get_peft_model(opened_by_transformers(tmp_path / "base"), peft_config(kind, rescaled)).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            if p.requires_grad:
                p.data = (1 + 0.3 * torch.randn_like(p)).to(dtype)
    theirs.save_pretrained(tmp_path / "theirs")
    theirs = peft.PeftModel.from_pretrained(opened_by_transformers(tmp_path / "base"), tmp_path / "theirs").eval()
    model = load_adapter(base, tmp_path / "theirs")
    with torch.no_grad():
        torch.testing.assert_close(model(idx), theirs(idx).logits, rtol=1e-5, atol=1e-5)
    model.save(tmp_path / "ours")
    if dtype == torch.float32:
        assert tensors_in(tmp_path / "ours") == tensors_in(tmp_path / "theirs")
    else:  # the same values, trained on and saved in float32
        ours, stored = (dict(read_adapter(tmp_path / name)[1]) for name in ("ours", "theirs"))
        assert ours.keys() == stored.keys() and {t.dtype for t in stored.values()} == {dtype}
        assert all(torch.equal(t, stored[name].float()) for name, t in ours.items())


MIXTURES = {  # two that transformers does not have
    "joined": dict(n_kv_head=1, mlp="swiglu", norm="rms", bias="none", tied=False),
    "apart": dict(projections="apart", bias="qkv"),
}


@pytest.mark.parametrize("shape", ["learned", "rotary", "llama", *MIXTURES])
@pytest.mark.parametrize("rescaled", ["kv", "qv"])
@torch.no_grad()
def test_it_is_the_base_with_scaled_weights(shape, rescaled, idx, tmp_path):
    base = tiny(shape, torch.float64) if shape not in MIXTURES else moved(adapt(GPT(
        GPTConfig(97, 48, n_layer=2, n_head=4, n_embd=32, **MIXTURES[shape])), "full"), 0.2).detach().double()
    model = adapt(base, "ia3", rescaled=rescaled)
    assert torch.equal(model(idx), base(idx))
    before = {name: t.clone() for name, t in base.state_dict().items()}
    want, scaled = moved(model, 0.3)(idx), copy.deepcopy(base)
    scales = iter(model.method.tensors().values())
    into_qkv, _, _, mlp_out = linears_by_role(base.config)
    for block in scaled.h:
        for name in into_qkv if len(into_qkv) == 1 else [f"attn.{letter}_proj" for letter in rescaled]:
            linear, l_out = block.get_submodule(name), next(scales)  # (out, 1)
            linear.weight.copy_(torch.diag(l_out.flatten()) @ linear.weight)
            if linear.bias is not None:
                linear.bias.mul_(l_out.flatten())
        linear, l_in = block.get_submodule(mlp_out), next(scales)  # (1, in)
        linear.weight.copy_(linear.weight @ torch.diag(l_in.flatten()))
    assert next(scales, None) is None
    torch.testing.assert_close(want, scaled(idx), rtol=0, atol=1e-10)
    model.merge()
    torch.testing.assert_close(base(idx), scaled(idx), rtol=0, atol=1e-10)
    model.unmerge()
    assert all(torch.equal(t, before[name]) for name, t in base.state_dict().items())
    model.save(tmp_path)
    assert torch.equal(load_adapter(base, tmp_path)(idx), want)


@torch.no_grad()
def test_rows_of_a_batch_have_a_task_each(idx):
    base = tiny("llama", torch.float64)
    tasks = {"kv": tuned(base), "qv": tuned(base, rescaled="qv")}
    mixed = TaskBank(base, tasks)(idx, ["qv", None, "kv"])
    alone = tasks["qv"](idx[:1]), base(idx[1:2]), tasks["kv"](idx[2:])
    torch.testing.assert_close(mixed, torch.cat(alone), rtol=0, atol=1e-10)


def test_targets_are_read_in_every_spelling_and_others_refused(tmp_path):
    pytest.importorskip("safetensors")
    base = tiny("llama")
    tuned(base).save(tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    (tmp_path / "adapter_model.safetensors").write_bytes(without_notes(tmp_path / "adapter_model.safetensors"))
    for targets, inner in (
        (["down_proj", "v_proj", "k_proj"], ["down_proj"]),
        (["self_attn.v_proj", "mlp.down_proj", "self_attn.k_proj"], ["mlp.down_proj"]),
    ):
        path.write_text(json.dumps(config | {"target_modules": targets, "feedforward_modules": inner}))
        load_adapter(base, tmp_path)
    for targets, inner in (
        (["k_proj", "v_proj", "down_proj"], []),
        (["k_proj", "v_proj", "up_proj", "down_proj"], ["down_proj"]),
        ("all-linear", None),
    ):
        path.write_text(json.dumps(config | {"target_modules": targets, "feedforward_modules": inner}))
        with pytest.raises(Error, match="^[^\n]* IA3 with target_modules [^\n]* is not supported, only [^\n]*$"):
            load_adapter(base, tmp_path)
    path.write_text(json.dumps(config | {"target_modules": ["q_proj", "v_proj", "down_proj"]}))
    with pytest.raises(Error, match="^[^\n]* does not fit: [^\n]*$"):
        load_adapter(base, tmp_path)
    with pytest.raises(Error, match="^rescaled must be 'kv' or 'qv', not 'k'$"):
        adapt(base, "ia3", rescaled="k")


def without_notes(path) -> bytes:
    """A safetensors file without our metadata, as PEFT writes it."""
    file = path.read_bytes()
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.dumps(json.loads(file[8:end]) | {"__metadata__": {"format": "pt"}}).encode()
    return len(header).to_bytes(8, "little") + header + file[end:]
