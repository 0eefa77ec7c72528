"""Folders and hub ids that are no base of ours are refused in one line, before they cost memory."""

import importlib.util
import json
import re
import shutil
import sys
from fnmatch import fnmatch
from types import SimpleNamespace

import pytest
import torch
from families import base_of, theirs_of
from test_files_huggingface import in_bin_shards

from minipeft import GPT, Error
from minipeft.files.families import FAMILIES


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
    base_of("gpt2").save_pretrained(tmp_path, safe_serialization=False)
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04 and then nothing")
    refused(tmp_path, "torn or not a file of tensors")


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
        ({"model_type": "gemma3_text", "head_dim": 8, "query_pre_attn_scalar": 8, "rope_scaling": None,
          "rope_parameters": {"sliding_attention": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                                    "high_freq_factor": 4.0, "original_max_position_embeddings": 16}}},
         "rotary positions of layers with a window are not supported with scaling"),
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
        ({"num_hidden_layers": "three"}, "num_hidden_layers must be a whole number of at least 1"),
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
        *((dict(layer_norm_epsilon=wrong), "layer_norm_epsilon must be a positive number")
          for wrong in (float("nan"), "small")),
        (dict(model_type="a\nb" * 10**5), "is not supported, only gpt2"),
        (dict(model_type="bert"), "model_type 'bert' is not supported, only gpt2, llama, .*qwen3.* and minipeft$"),
        (dict(activation_function="relu"), "function 'relu' is not supported, only 'gelu_new' or 'gelu_pytorch_tanh'"),
        *((wrong, "does not fit") for wrong in (dict(n_inner=7), dict(n_embd=16))),
        (dict(n_layer="three"), "n_layer must be a whole number"),
        (dict(n_layer=4), "missing"),
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
