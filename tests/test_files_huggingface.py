"""Hugging Face folders: same logits as transformers, little memory, and other folders are refused."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import quick
from families import GROUPED, SHAPES, SMALL, base_of, kind_of, opened_by_transformers, random_, theirs_of

from minipeft import GPT, GPTConfig, adapt, generate, load_adapter
from minipeft.config import LLAMA
from minipeft.files.families import architecture
from minipeft.files.tensors import StoredTensors

ROOT = Path(__file__).parent.parent
KINDS = quick(["gpt2", "llama", "qwen2", "gemma3", "qwen3", "smollm3", "mistral"],
              "gpt2", "llama", "qwen2", "gemma3")

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


def test_layers_that_share_their_tensors_in_a_file_are_trained_apart(tmp_path):
    base = base_of("llama")
    in_bin_shards(base, tmp_path)
    places = json.loads((tmp_path / "pytorch_model.bin.index.json").read_text())["weight_map"]
    state = {name: t for file in set(places.values()) for name, t in torch.load(tmp_path / file).items()}
    for name in state:
        if ".layers.1." in name:
            state[name] = state[name.replace(".layers.1.", ".layers.0.")]
    for path in tmp_path.glob("pytorch_model*"):
        path.unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    opened = GPT.from_pretrained(tmp_path)
    with torch.no_grad():
        for p in opened.h[0].parameters():
            p.zero_()
    for (name, a), b in zip(opened.h[1].named_parameters(), base.h[0].parameters(), strict=True):
        assert torch.equal(a, b), name


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


@pytest.mark.slow
def test_a_header_of_many_tensors_is_read_in_time(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file({f"t{i}": torch.zeros(1) for i in range(30_000)}, tmp_path / "model.safetensors")
    start = time.perf_counter()
    assert len(dict(StoredTensors(tmp_path, "model", {}))) == 30_000
    assert time.perf_counter() - start < 5  # its header is read a few times, not once a tensor
