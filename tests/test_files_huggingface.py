"""Hugging Face folders: same logits as transformers, little memory, and other folders are refused."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import quick

from minipeft import GPT, Error, GPTConfig, adapt, generate, load_adapter
from minipeft.config import GEMMA3, LLAMA, QWEN3, RopeScaling
from minipeft.files.families import FAMILIES, architecture
from minipeft.files.tensors import StoredTensors

ROOT = Path(__file__).parent.parent
SMALL = dict(vocab_size=97, block_size=64, n_layer=3, n_head=4, n_embd=32)
GROUPED = SMALL | LLAMA | dict(n_kv_head=2, n_inner=40)
SHAPES = {
    "gpt2": GPTConfig(**SMALL),
    "gpt2-inner": GPTConfig(**SMALL, n_inner=40, layer_norm_epsilon=1e-3),
    "llama": GPTConfig(**GROUPED, tied=False, rope_theta=500.0),
    "llama-tied": GPTConfig(**GROUPED | dict(n_kv_head=None), layer_norm_epsilon=1e-3),
    "llama3": GPTConfig(**GROUPED, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 16)),  # 64 positions, from 16
    "qwen2": GPTConfig(**GROUPED | dict(bias="qkv")),
    "qwen2-untied": GPTConfig(**GROUPED | dict(bias="qkv", n_kv_head=1), tied=False),
    "llama-heads": GPTConfig(**GROUPED, head_dim=16),
    "mistral": GPTConfig(**GROUPED, sliding_window=6, tied=False),
    "mistral-heads": GPTConfig(**GROUPED | dict(n_head=6), sliding_window=80, head_dim=8),  # 32 / 6 is no size
    "mistral-wide": GPTConfig(**GROUPED, sliding_window=80, rope_theta=500.0),
    "qwen3": GPTConfig(**GROUPED | QWEN3, head_dim=16, rope_theta=1e6),
    "qwen3-untied": GPTConfig(**GROUPED | QWEN3, tied=False, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 16)),
    "smollm3": GPTConfig(**GROUPED, no_rope_layer_interval=2),
    "smollm3-first": GPTConfig(**GROUPED, no_rope_layer_interval=1, tied=False),  # no layer is rotated
    "gemma3": GPTConfig(**GROUPED | GEMMA3, head_dim=16, sliding_window=6, sliding_window_pattern=2,
                        rope_theta=1e6, rope_local_base_freq=100.0),
    "gemma3-windows": GPTConfig(**GROUPED | GEMMA3, sliding_window=5, tied=False),  # in every layer
    "gemma3-wide": GPTConfig(**GROUPED | GEMMA3 | dict(n_kv_head=1), sliding_window=80, sliding_window_pattern=3,
                             rope_local_base_freq=100.0, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 16)),
    "gemma3-full": GPTConfig(**GROUPED | GEMMA3, head_dim=4),
}
KINDS = quick(["gpt2", "llama", "qwen2", "gemma3", "qwen3", "smollm3", "mistral"],
              "gpt2", "llama", "qwen2", "gemma3")


def random_(model, std=0.2):
    """The model with weights large enough that all of them matter, biases and norms too."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=std) if p.dim() == 2 else p.add_(std * torch.randn_like(p))
    return model.eval()


def base_of(shape: str) -> GPT:
    return random_(GPT(SHAPES[shape]))


def theirs_of(shape: str):
    """transformers' own model of one of SHAPES."""
    transformers = pytest.importorskip("transformers")
    c = SHAPES[shape]
    shared = dict(vocab_size=c.vocab_size, tie_word_embeddings=c.tied, bos_token_id=None, eos_token_id=None)
    if shape.startswith("gpt2"):
        sizes = dict(n_positions=c.block_size, n_layer=c.n_layer, n_head=c.n_head, n_embd=c.n_embd, n_inner=c.n_inner)
        config = transformers.GPT2Config(**sizes, layer_norm_epsilon=c.layer_norm_epsilon, **shared)
        return random_(transformers.GPT2LMHeadModel(config))
    rope = {"rope_type": "default", "rope_theta": c.rope_theta}
    if s := c.rope_scaling:
        rope |= {"rope_type": "llama3", "factor": s.factor, "low_freq_factor": s.low_freq_factor}
        rope |= {"high_freq_factor": s.high_freq_factor, "original_max_position_embeddings": s.original}
    kind, more = kind_of(shape), {"pad_token_id": None}
    if kind in ("llama", "mistral", "qwen3", "gemma3_text"):
        more["head_dim"] = c.head_size
    if kind == "mistral":
        more["sliding_window"] = c.sliding_window
    if kind == "smollm3":
        more["no_rope_layers"] = [int((i + 1) % c.no_rope_layer_interval != 0) for i in range(c.n_layer)]
    if kind == "gemma3_text":
        every, full = c.sliding_window_pattern or (99 if c.sliding_window else 1), {"rope_type": "default"}
        more |= {"query_pre_attn_scalar": c.head_size, "sliding_window": c.sliding_window or 7,
                 "layer_types": ["sliding_attention" if i % every else "full_attention" for i in (1, 2, 3)]}
        local = {"rope_type": "default", "rope_theta": c.rope_local_base_freq or c.rope_theta}
        rope = {"full_attention": full | rope, "sliding_attention": local}
    name = dict(llama="Llama", mistral="Mistral", qwen2="Qwen2", qwen3="Qwen3", smollm3="SmolLM3")
    config = getattr(transformers, name.get(kind, "Gemma3Text") + "Config")(
        max_position_embeddings=c.block_size, num_hidden_layers=c.n_layer, num_attention_heads=c.n_head,
        num_key_value_heads=c.n_kv, hidden_size=c.n_embd, intermediate_size=c.inner,
        rms_norm_eps=c.layer_norm_epsilon, rope_parameters=rope, **more, **shared)
    return random_(getattr(transformers, name.get(kind, "Gemma3") + "ForCausalLM")(config))


def kind_of(shape: str) -> str:
    """The model_type of one of SHAPES."""
    return {"llama3": "llama", "gemma3": "gemma3_text"}.get(kind := shape.partition("-")[0], kind)


def opened_by_transformers(folder):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def same_logits(ours, theirs, T=64):
    idx = torch.randint(97, (2, T), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = theirs(idx).logits
        torch.testing.assert_close(ours(idx), want, rtol=0, atol=1e-4)
    assert want.std() > 0.1


def same_answers(ours, theirs):
    """20 tokens, greedily, after a few prompts."""
    for T in (1, 5, 17):
        idx = torch.randint(97, (1, T), generator=torch.Generator().manual_seed(T))
        want = theirs.generate(idx, attention_mask=torch.ones_like(idx), do_sample=False, max_new_tokens=20,
                               pad_token_id=0)
        assert want.shape == (1, T + 20) and torch.equal(generate(ours, idx, 20), want)


@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_opens_what_we_save(shape, tmp_path):
    ours = base_of(shape)
    assert architecture(ours.config) == kind_of(shape)
    ours.save_pretrained(tmp_path)
    theirs = opened_by_transformers(tmp_path)
    same_logits(ours, theirs)
    same_answers(ours, theirs)
    again = GPT.from_pretrained(tmp_path)
    assert again.config.resolved() == ours.config.resolved() and again.state_dict().keys() == ours.state_dict().keys()
    assert all(torch.equal(t, ours.state_dict()[name]) for name, t in again.state_dict().items())


@pytest.mark.parametrize("shape", SHAPES)
def test_we_open_what_transformers_saves(shape, tmp_path):
    theirs = theirs_of(shape)
    theirs.save_pretrained(tmp_path)
    ours = GPT.from_pretrained(tmp_path)
    assert ours.config.resolved() == SHAPES[shape].resolved()  # however the file spells it
    same_logits(ours, theirs)
    same_answers(ours, theirs)


FIELDS = {  # shape: fields of config.json that are set, and fields that are missing
    "llama-absent": ("llama", {}, ["rms_norm_eps", "max_position_embeddings", "tie_word_embeddings", "head_dim"]),
    "qwen2-absent": ("qwen2-untied", {}, ["rms_norm_eps", "max_position_embeddings", "tie_word_embeddings",
                                          "use_sliding_window", "sliding_window", "layer_types", "hidden_act"]),
    "gpt2-absent": ("gpt2", {}, ["n_inner", "layer_norm_epsilon", "activation_function", "tie_word_embeddings",
                                 "scale_attn_weights", "scale_attn_by_inverse_layer_idx"]),
    "llama-null": ("llama-tied", dict(rope_scaling=None, quantization_config=None, head_dim=None,
                                      num_key_value_heads=None), []),
    "qwen2-null": ("qwen2", dict(rope_scaling=None, sliding_window=None), ["layer_types"]),
    "qwen2-types": ("qwen2", dict(layer_types=["full_attention"] * 3), []),
    "llama-both-spellings": ("llama3", dict(rope_scaling=dict(
        rope_type="llama3", factor=2.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=32)), []),
    "qwen3-absent": ("qwen3", {}, ["rms_norm_eps", "max_position_embeddings", "use_sliding_window", "layer_types"]),
    "mistral-absent": ("mistral-heads", {}, ["sliding_window", "rope_parameters"]),
    "mistral-null": ("mistral", dict(sliding_window=None), []),
    "smollm3-absent": ("smollm3", {}, ["no_rope_layers", "rope_parameters", "tie_word_embeddings", "rms_norm_eps",
                                       "max_position_embeddings"]),
    "smollm3-interval": ("smollm3", dict(no_rope_layer_interval=2), ["no_rope_layers"]),
    "gemma3-old": ("gemma3", dict(sliding_window_pattern=2, rope_theta=1e6, rope_local_base_freq=100.0,
                                  rope_scaling=None), ["layer_types", "rope_parameters"]),
    "gemma3-absent": ("gemma3-wide", {}, ["layer_types", "rope_parameters", "rms_norm_eps", "sliding_window",
                                          "tie_word_embeddings", "max_position_embeddings"]),
    "llama-whole-rotation": ("llama", dict(partial_rotary_factor=1.0), []),
}


@pytest.mark.parametrize("case", FIELDS)
def test_fields_that_are_absent_null_or_double_mean_what_they_do_in_transformers(case, tmp_path):
    shape, changes, absent = FIELDS[case]
    theirs_of(shape).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if name not in absent}))
    ours, theirs = GPT.from_pretrained(tmp_path), opened_by_transformers(tmp_path)
    same_logits(ours, theirs)
    eps = "layer_norm_epsilon" if shape == "gpt2" else "rms_norm_eps"
    assert ours.config.layer_norm_epsilon == getattr(theirs.config, eps)
    assert ours.config.block_size == theirs.config.max_position_embeddings


def test_what_transformers_takes_for_false_may_be_null(tmp_path):
    for shape, names in (("llama", ["attention_bias", "mlp_bias"]), ("qwen2", ["use_sliding_window"])):
        base = base_of(shape)
        base.save_pretrained(tmp_path)
        path = tmp_path / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | dict.fromkeys(names)))
        assert GPT.from_pretrained(tmp_path).config.resolved() == base.config.resolved()


@pytest.mark.parametrize("shape", ["gpt2", "llama-tied", "qwen2", "gemma3"])
def test_a_model_saved_without_its_head_is_read(shape, tmp_path):
    theirs = theirs_of(shape)
    theirs.base_model.save_pretrained(tmp_path)  # "layers.0…" instead of "model.layers.0…"
    same_logits(GPT.from_pretrained(tmp_path), theirs)


@pytest.mark.parametrize("shape", KINDS)
def test_weights_of_several_types_become_the_embeddings_type(shape, tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    base = base_of(shape).bfloat16()
    base.save_pretrained(tmp_path)
    tensors = dict(StoredTensors(tmp_path, "model", {}))
    tensors = {name: t.float() if t.dim() == 1 else t for name, t in tensors.items()}  # norms and biases
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    ours = GPT.from_pretrained(tmp_path)
    assert all(torch.equal(t, base.state_dict()[name]) for name, t in ours.state_dict().items())
    adapt(ours, "prompt").loss(torch.arange(8)[None], torch.arange(1, 9)[None]).backward()


def test_past_the_first_positions_the_stretched_ones_differ(tmp_path):
    """The comparison above would pass if both libraries ignored rope_scaling."""
    ours = base_of("llama3")
    plain = GPT(GPTConfig(**GROUPED))
    plain.load_state_dict(ours.state_dict())
    idx = torch.randint(97, (2, 64))
    assert (ours(idx) - plain(idx))[:, 40:].abs().max() > 0.1


@pytest.mark.parametrize("form", ["rope_parameters", "rope_scaling", "type"])
def test_positions_are_read_as_old_and_new_files_name_them(form, tmp_path):
    base_of("llama3").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    scaling = config.pop("rope_scaling")
    if form == "type":  # before "rope_type"
        scaling["type"] = scaling.pop("rope_type")
    if form == "rope_parameters":
        scaling["rope_theta"] = config.pop("rope_theta")
    config["rope_scaling" if form == "type" else form] = scaling
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert GPT.from_pretrained(tmp_path).config.rope_scaling == SHAPES["llama3"].rope_scaling


@pytest.mark.parametrize("shape", KINDS)
def test_shards_are_read(shape, tmp_path):
    theirs = theirs_of(shape)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2 and not (tmp_path / "model.safetensors").exists()
    same_logits(GPT.from_pretrained(tmp_path), theirs)


def in_bin_shards(base: GPT, folder: Path) -> None:
    """Save the base with its weights in two pytorch_model.bin shards."""
    base.save_pretrained(folder, safe_serialization=False)
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    names, files = sorted(state), [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    places = {name: files[i % 2] for i, name in enumerate(names)}
    for file in files:
        torch.save({name: state[name].clone() for name in names if places[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "pytorch_model.bin").unlink()
    config = json.loads((folder / "config.json").read_text())
    config.pop("minipeft")  # the checksum, which other programs do not save
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("safe", [True, False])
def test_saving_over_shards_leaves_no_index_that_would_win(safe, tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    base_of("llama").save_pretrained(tmp_path)
    names = [name for name, _ in StoredTensors(tmp_path, "model", {})]
    save_file(dict(StoredTensors(tmp_path, "model", {})), tmp_path / "model-00001-of-00001.safetensors")
    (tmp_path / "model.safetensors").unlink()
    index = {"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    other = random_(GPT(SHAPES["llama"]), std=0.3)
    other.save_pretrained(tmp_path, safe_serialization=safe)
    again = GPT.from_pretrained(tmp_path)
    assert all(torch.equal(again.state_dict()[name], t) for name, t in other.state_dict().items())


def test_a_tuned_model_is_of_its_bases_shape_whatever_the_config_left_out(tmp_path):
    base = GPT(GPTConfig(**SMALL, **LLAMA))  # no n_kv_head, no n_inner; the saved file names both
    adapt(base, "full").save(tmp_path)
    assert load_adapter(base, tmp_path).base.config.n_inner == 128


@pytest.mark.parametrize("shape", KINDS)
def test_shards_in_torchs_own_format_are_read(shape, tmp_path):
    base = base_of(shape)
    in_bin_shards(base, tmp_path)
    again = GPT.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(t, again[name]) for name, t in base.state_dict().items())


@pytest.mark.parametrize("shape", KINDS)
@pytest.mark.parametrize("safe", [True, False])
def test_the_type_of_the_weights_is_kept_or_converted(shape, safe, tmp_path):
    if safe:
        pytest.importorskip("safetensors")
    base = base_of(shape)
    base.save_pretrained(tmp_path / "float32", safe_serialization=safe)
    half = GPT.from_pretrained(tmp_path / "float32", dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "bfloat16", safe_serialization=safe)
    for folder, dtype, want in [
        ("float32", None, torch.float32),
        ("float32", torch.bfloat16, torch.bfloat16),
        ("bfloat16", None, torch.bfloat16),
        ("bfloat16", torch.float32, torch.float32),
    ]:
        again = GPT.from_pretrained(tmp_path / folder, dtype=dtype).state_dict()
        for name, t in base.state_dict().items():
            rounded = t if (folder, dtype) == ("float32", None) else t.bfloat16().to(want)
            assert again[name].dtype == want and torch.equal(again[name], rounded), (folder, dtype, name)


def test_transformers_opens_a_bfloat16_base_as_one(tmp_path):
    base_of("llama").bfloat16().save_pretrained(tmp_path)
    assert {p.dtype for p in opened_by_transformers(tmp_path).parameters()} == {torch.bfloat16}


MEASURE = """
import sys
import time
import torch
from minipeft import GPT
from minipeft.bench.measure import resident_peak, restart_peak
torch.set_num_threads(1)
for dtype in (None, torch.float32, torch.bfloat16):
    GPT.from_pretrained(sys.argv[1], dtype)  # everything that is imported on the way
for folder in sys.argv[2:]:
    dtype = torch.bfloat16 if folder.endswith("converted") else None
    restart_peak(torch.device("cpu"))
    before = resident_peak()
    base = GPT.from_pretrained(folder, dtype)
    print((resident_peak() - before) / sum(p.numel() * p.element_size() for p in base.parameters()))
    del base
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is Linux's VmHWM")
def test_loading_takes_little_more_than_the_weights(tmp_path):
    """A fresh process never holds a file twice, even to transpose or convert its weights."""
    pytest.importorskip("safetensors")
    sizes = dict(vocab_size=4000, block_size=64, n_layer=5, n_head=8, n_embd=512)
    bases = {"gpt2": GPT(GPTConfig(**sizes)), "llama": GPT(GPTConfig(**sizes | LLAMA, n_inner=1400, tied=False))}
    folders = [tmp_path / name for name in ("gpt2", "gpt2.bin", "llama", "llama.bin", "llama.converted")]
    for folder in folders:  # some 70 MB each
        bases[folder.stem].save_pretrained(folder, safe_serialization=folder.suffix != ".bin")
    base_of("gpt2").save_pretrained(tmp_path / "tiny")
    command = [sys.executable, "-c", MEASURE, tmp_path / "tiny", *folders]
    # what is freed goes back to the system at once, so that every folder starts from the same
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr
    rises = dict(zip([f.name for f in folders], map(float, done.stdout.split()), strict=True))
    assert all(0.8 < rise <= 1.2 for rise in rises.values()), rises


@pytest.fixture
def llama_folder(tmp_path):
    base_of("llama").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def refused(folder, message):
    with pytest.raises(Error, match=message) as e:
        GPT.from_pretrained(folder)
    assert "\n" not in str(e.value)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    refused(tmp_path, "holds no config.json: a base is a Hugging Face model folder")
    refused(tmp_path / "nowhere", "no base at .*nowhere: there is no such folder$")
    (tmp_path / "config.json").write_text("{torn")
    refused(tmp_path, "config.json is not a readable JSON file")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    refused(tmp_path, "holds neither model.safetensors nor pytorch_model.bin")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "gemma3"}, f"model_type 'gemma3' is not supported, only {', '.join(FAMILIES)} and minipeft$"),
        ({"model_type": None}, "model_type None is not supported"),
        ({"model_type": ["llama"]}, "is not supported, only gpt2, llama, mistral, qwen2"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rotary positions of type 'yarn' are not supported"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rotary positions of type 'yarn' are not supported"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
         "rotary positions of type 'yarn' are not supported"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}},
         "only 'default' and 'llama3' .with factor, low_freq_factor"),
        ({"rope_scaling": "yarn"}, "rope_scaling must be a JSON object or null, not 'yarn'"),
        ({"head_dim": 16}, r"does not fit"),
        ({"head_dim": 16, "model_type": "qwen2"}, "head_dim 16 is not supported, only hidden_size / num_att"),
        ({"head_dim": "8"}, "head_dim must be a whole number of at least 1, not '8'"),
        ({"model_type": "qwen3"}, "missing .*k_norm.weight"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window must be a whole number of at least 1"),
        ({"model_type": "smollm3", "no_rope_layers": [1, 0, 0]},
         r"no_rope_layers \[1, 0, 0\] is not supported: only 3 layers of which every n-th is 0"),
        ({"model_type": "smollm3", "no_rope_layers": [1, 0]}, "only 3 layers of which every n-th is 0"),
        ({"model_type": "gemma3_text", "head_dim": 8, "query_pre_attn_scalar": 8,
          "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
         "layer_types .* is not supported: only 3 layers of which every n-th is 'full_attention'"),
        ({"model_type": "gemma3_text", "head_dim": 8}, r"query_pre_attn_scalar 256 is not supported, only head_dim"),
        ({"model_type": "gemma3_text", "final_logit_softcapping": 30.0}, "30.0 is not supported, only null"),
        ({"model_type": "gemma3_text", "rope_parameters": {"full_attention": [], "sliding_attention": 3},
          "rope_scaling": None}, "must hold a JSON object for full_attention"),
        ({"model_type": "gemma3_text", "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
         "rotary positions of type 'linear' are not supported"),
        ({"attention_bias": True}, "attention_bias True is not supported, only False"),
        ({"mlp_bias": True}, "mlp_bias True is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported, only 'silu'"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window True is not supported"),
        ({"model_type": "qwen2"}, "missing .*q_proj.bias|missing .*k_proj.bias"),
        ({"model_type": "qwen2", "layer_types": ["full_attention", "sliding_attention"]},
         r"layer_types \['full_attention', 'sliding_attention'\] is not supported, only 'full_attention'"),
        ({"layer_types": "sliding_attention"}, "layer_types 'sliding_attention' is not supported"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported, only 1"),
        ({"rope_scaling": {"rope_type": "default", "partial_rotary_factor": 0.25}}, "factor 0.25 is not supported"),
        ({"num_key_value_heads": 3}, "does not divide into groups"),
        ({"hidden_size": 64}, "does not fit"),
        ({"num_hidden_layers": "three"}, "n_layer must be a whole number"),
        ({"tie_word_embeddings": True},
         "lm_head.weight differs from the embeddings, but the config says that the head is tied"),
    ],
)
def test_a_config_that_is_not_ours_is_refused(change, message, llama_folder):
    config = json.loads((llama_folder / "config.json").read_text())
    (llama_folder / "config.json").write_text(json.dumps(config | change))
    refused(llama_folder, message)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}, "(bitsandbytes, 4 bit)"),
        ({"load_in_8bit": True}, "(bitsandbytes, 8 bit)"),  # as it was written first
        ({"quant_method": "gptq", "bits": 4}, "(gptq, 4 bit)"),
        ({"quant_method": "awq", "bits": 4}, "(awq, 4 bit)"),
        ({"quant_method": "fp8"}, "(fp8)"),
        ({"quant_method": ["\n"]}, "quantised"),
        ("nf4", "quantised"),
    ],
)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_quantised_base_is_refused_by_name(kind, settings, said, tmp_path):
    base_of(kind).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": None}))
    GPT.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    refused(tmp_path, f"config.json: the weights are .*{re.escape(said)}.*: take the unquantised model$")


@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_a_config_without_a_size_is_refused(name, llama_folder):
    config = json.loads((llama_folder / "config.json").read_text())
    del config[name]
    (llama_folder / "config.json").write_text(json.dumps(config))
    refused(llama_folder, f"config.json: it has no {name}$")


def test_gpt2_with_an_activation_of_its_own_is_refused(tmp_path):
    base_of("gpt2").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"activation_function": "relu"}))
    refused(tmp_path, "activation_function 'relu' is not supported, only 'gelu_new' or 'gelu_pytorch_tanh'")


def test_shards_that_are_missing_torn_or_elsewhere_are_refused(tmp_path):
    folder = tmp_path / "base"
    in_bin_shards(base_of("llama"), folder)
    first, second = sorted(folder.glob("*.bin"))
    whole, index = second.read_bytes(), folder / "pytorch_model.bin.index.json"
    second.unlink()
    refused(folder, "pytorch_model-00002-of-00002.bin is missing: "
                    "it is one of the 2 shards that pytorch_model.bin.index.json lists")
    second.write_bytes(whole[: len(whole) // 2])
    refused(folder, "pytorch_model-00002-of-00002.bin is torn or not a file of tensors")
    second.write_bytes(whole)
    GPT.from_pretrained(folder)

    names = json.loads(index.read_text())["weight_map"]
    (tmp_path / second.name).write_bytes(whole)  # it is there, but not in the folder
    for outside in (f"../{second.name}", str(tmp_path / second.name), f"sub/../{second.name}", "..", ""):
        index.write_text(json.dumps({"weight_map": names | {"lm_head.weight": outside}}))
        refused(folder, "must list the file of every tensor|torn or not a file of tensors")
    for wrong in ([], {}, {"lm_head.weight": 3}, None):
        index.write_text(json.dumps({"weight_map": wrong}))
        refused(folder, "must list the file of every tensor under weight_map")
    index.write_text(json.dumps({"weight_map": {name: file for name, file in names.items() if file == first.name}}))
    refused(folder, "does not fit: missing")


def test_a_torn_shard_of_safetensors_is_refused(tmp_path):
    theirs_of("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    last = sorted(tmp_path.glob("*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:-100])
    refused(tmp_path, f"{last.name} is torn or not a file of tensors")


def hub(monkeypatch, fetch):
    """Install a fake huggingface_hub with this snapshot_download; None: uninstall it."""
    found = importlib.util.find_spec
    spec = object() if fetch else None
    monkeypatch.setattr(importlib.util, "find_spec",
                        lambda name, *a: spec if name == "huggingface_hub" else found(name, *a))
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=fetch) if fetch else None)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("name", ["someone/tiny-1.5", "distilgpt2"])  # the oldest models have no owner
def test_a_hub_id_is_fetched_where_huggingface_hub_is_installed(name, safe, monkeypatch, tmp_path):
    if safe:
        pytest.importorskip("safetensors")
    base, asked = base_of("llama"), []
    base.save_pretrained(tmp_path / "there", safe_serialization=safe)
    (tmp_path / "there" / "training_args.bin").write_bytes(b"not a weight")

    def fetch(name, allow_patterns):
        asked.append(name)
        (tmp_path / "cache").mkdir(exist_ok=True)
        for file in (tmp_path / "there").iterdir():
            if any(fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copy(file, tmp_path / "cache")
        return str(tmp_path / "cache")

    monkeypatch.chdir(tmp_path)
    hub(monkeypatch, fetch)
    again = GPT.from_pretrained(name)
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in base.state_dict().items())
    assert set(asked) == {name} and not (tmp_path / "cache" / "training_args.bin").exists()


class HubError(Exception):
    """The root of the exceptions below."""


@pytest.mark.parametrize(
    "classes, message",
    [
        (["LocalEntryNotFoundError"], "the hub cannot be reached"),
        (["ConnectionError", "OfflineModeIsEnabled"], "the hub cannot be reached"),
        (["RepositoryNotFoundError"], "the hub has no such model, or keeps it private"),
        (["RepositoryNotFoundError", "GatedRepoError"], "its page asks for a login and consent"),
        (["Unheard"], "404 Client Error"),
    ],
)
def test_a_hub_id_that_cannot_be_fetched_is_refused_with_the_reason(classes, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    kind = HubError
    for name in classes:
        kind = type(name, (kind,), {})

    def fetch(name, allow_patterns):
        raise kind("\n404 Client Error\nand a page of advice")

    hub(monkeypatch, fetch)
    for name in ("someone/tiny", "distilgpt2"):
        refused(name, rf"no base at {name}: .* fetching a model of that name failed \({message}\)$")
    for path in ("../nowhere/base", "./base", "/nowhere/base", "a/b/c", "a b", "C:\\base", ""):  # no hub ids
        refused(path, "there is no such folder$|no config.json")
    hub(monkeypatch, None)
    refused("someone/tiny", "no such folder .and to fetch a model of that name: pip install huggingface_hub.$")


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(n_layer=10**9), "describes [0-9]+ parameters, but there are [0-9,]+ bytes of tensors"),
        (dict(vocab_size=2**30, n_positions=2**30), "describes [0-9]+ parameters"),
        (dict(n_layer=10**12), "n_layer must be below 2,147,483,648"),
        (dict(n_embd=10**4000), "n_embd must be below .*, not a number of [0-9]+ bits"),
        (dict(n_layer=True), "n_layer must be a whole number"),
        (dict(n_head=2.0), "n_head must be a whole number"),
        (dict(layer_norm_epsilon=10**400), "layer_norm_epsilon must be a positive number, not a number of"),
        (dict(layer_norm_epsilon=float("nan")), "layer_norm_epsilon must be a positive number"),
        (dict(model_type="a\nb" * 10**5), "is not supported, only gpt2"),
    ],
)
def test_what_a_config_claims_is_refused_before_it_is_made(change, message, tmp_path):
    base_of("gpt2").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(tmp_path, message)


def test_more_layers_than_any_model_has_are_refused(tmp_path):
    torch.save({"transformer.wte.weight": torch.zeros(1, 3_000_000, dtype=torch.uint8)}, tmp_path / "pytorch_model.bin")
    sizes = dict(vocab_size=1, n_positions=1, n_layer=1001, n_head=1, n_embd=1, n_inner=1)
    (tmp_path / "config.json").write_text(json.dumps(dict(model_type="gpt2", **sizes)))
    refused(tmp_path, "config.json: 1001 layers, but no more than 1000 are read")


@pytest.mark.parametrize("name", ["a\nb.bin", "x" * 5000, "\ud800", "a\0b", ".", "..", "a/b.bin", 3])
def test_shards_have_plain_names(name, tmp_path):
    in_bin_shards(base_of("gpt2"), tmp_path)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"wte.weight": name}}))
    refused(tmp_path, "must list the file of every tensor under weight_map$")


def test_a_tensor_is_in_one_shard_and_under_one_name(tmp_path):
    base = base_of("gpt2")
    in_bin_shards(base, tmp_path / "a")
    first, second = sorted((tmp_path / "a").glob("*.bin"))
    torch.save(torch.load(second) | dict([torch.load(first).popitem()]), second)
    refused(tmp_path / "a", "which another shard holds as well")
    in_bin_shards(base, tmp_path / "b")
    first, _ = sorted((tmp_path / "b").glob("*.bin"))
    state = torch.load(first)
    name = next(iter(state))
    torch.save(state | {name.removeprefix("transformer."): state[name].clone()}, first)
    refused(tmp_path / "b", "under two names")


@pytest.mark.slow
def test_a_header_of_many_tensors_is_read_in_time(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file({f"t{i}": torch.zeros(1) for i in range(30_000)}, tmp_path / "model.safetensors")
    start = time.perf_counter()
    assert len(dict(StoredTensors(tmp_path, "model", {}))) == 30_000
    assert time.perf_counter() - start < 5  # its header is read a few times, not once a tensor
