"""Files: whole or not at all, checked, and without code."""

import json
import os
from dataclasses import replace

import pytest
import torch
from conftest import tiny

from minipeft import GPT, Error, adapt, checkpoint, fingerprint, load_adapter
from minipeft.config import RopeScaling, linears


@pytest.fixture(params=["safetensors", "bin"])
def folder(request, base, tmp_path, monkeypatch):
    """An adapter, in both formats."""
    if request.param == "safetensors":
        pytest.importorskip("safetensors")
    else:
        monkeypatch.setattr(checkpoint, "have_safetensors", lambda: False)
    adapt(base, "prefix", num_virtual_tokens=5).save(tmp_path / "adapter")
    assert (tmp_path / "adapter" / f"adapter_model.{request.param}").exists()
    return tmp_path / "adapter"


def tensor_file(folder):
    return next(f for f in folder.iterdir() if f.name.startswith("adapter_model"))


def edit(folder, change):
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def read_config(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def without_checksum(folder):
    """What the checks behind the checksum see: the same file, with no notes."""
    tensors, notes, path = checkpoint.read_tensors(folder, "adapter_model", read_config(folder))
    edit(folder, lambda c: c.pop("minipeft", None))
    return tensors, path.suffix != ".bin"


def refused(base, folder, message):
    with pytest.raises(Error, match=message) as e:
        load_adapter(base, folder)
    assert "\n" not in str(e.value)


def test_an_adapter_for_another_base_is_refused(shape, base, folder):
    refused(tiny(shape, seed=5), folder, "another base")
    *_, last = linears(base.config)
    for name in (f"h.1.{last}.weight", "h.1.ln_2.weight" if base.config.bias == "none" else "h.1.mlp.c_fc.bias"):
        nudged = tiny(shape)
        with torch.no_grad():
            nudged.get_parameter(name).view(-1)[3] += 0.01
        refused(nudged, folder, "another base")


def test_the_fingerprint_is_of_shape_and_weights_not_of_their_type(shape, base):
    others = [dict(n_head=2, n_kv_head=base.config.n_kv // 2), dict(layer_norm_epsilon=1e-6)]
    if base.config.position == "rotary":
        others += [dict(rope_theta=20000.0), dict(rope_scaling=RopeScaling(4.0, 1.0, 4.0, 16))]
    for change in others:  # the same weights, another function
        other = GPT(replace(base.config, **change))
        other.load_state_dict(base.state_dict())
        assert fingerprint(other) != fingerprint(base), change
    same = GPT(replace(base.config, layer_norm_epsilon=0.00001))
    same.load_state_dict(base.state_dict())
    assert fingerprint(same) == fingerprint(base)
    assert fingerprint(tiny(shape)) == fingerprint(base)
    assert fingerprint(tiny(shape).bfloat16()) == fingerprint(base)


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_torn_file_is_refused(base, folder, keep):
    path = tensor_file(folder)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else keep])
    refused(base, folder, "torn or not a file of tensors")


def test_a_changed_number_is_noticed(base, folder):
    tensors, notes, path = checkpoint.read_tensors(folder, "adapter_model", read_config(folder))
    tensors["prompt_embeddings"][2, 3] += 1e-6
    checkpoint.write_tensors(folder, "adapter_model", tensors, path.suffix != ".bin", notes)
    refused(base, folder, "do not match their checksum")


def test_other_keys_and_shapes_are_refused(base, folder):
    tensors, safe = without_checksum(folder)
    t, W = tensors["prompt_embeddings"], 3 * 2 * base.config.n_kv * 8
    for wrong, message in [
        ({}, "missing .'prompt_embeddings'"),
        ({"prompt_embeddings": t, "more": t.clone()}, "not expected .'more'"),
        ({"prompt_embeddings": t[:4]}, rf"is \(4, {W}\), but \(5, {W}\)"),
        ({"prompt_embeddings": t.long()}, "does not fit"),
    ]:
        checkpoint.write_tensors(folder, "adapter_model", wrong, safe)
        refused(base, folder, message)


def test_a_file_of_other_things_is_refused(base, folder):
    tensors, safe = without_checksum(folder)
    if not safe:
        for wrong in ({3: tensors["prompt_embeddings"]}, {"prompt_embeddings": "text"}):
            torch.save(wrong, folder / "adapter_model.bin")
            refused(base, folder, "something else than named tensors")


def test_peft_adapters_name_the_shape_of_their_base(base, folder):
    tensors, safe = without_checksum(folder)
    checkpoint.write_tensors(folder, "adapter_model", tensors, safe)
    load_adapter(base, folder)
    edit(folder, lambda c: c.update(num_layers=6, token_dim=24))
    refused(base, folder, f"another base: token_dim is 24, this one has {base.config.n_kv * 8}")


def test_an_adapter_and_a_base_do_not_share_a_folder(base, folder):
    with pytest.raises(Error, match="already holds an adapter"):
        base.save_pretrained(folder)
    base.save_pretrained(folder.parent / "base")
    with pytest.raises(Error, match="already holds a base"):
        adapt(base, "prompt").save(folder.parent / "base")
    (folder.parent / "file").write_text("")
    with pytest.raises(Error, match="is a file"):
        adapt(base, "prompt").save(folder.parent / "file")


def test_missing_parts_are_named(base, folder):
    refused(base, folder.parent / "nowhere", "no such folder")
    tensor_file(folder).unlink()
    refused(base, folder, "neither adapter_model.safetensors nor adapter_model.bin")
    (folder / "adapter_config.json").unlink()
    refused(base, folder, "adapter_config.json is missing")


def test_configs_that_say_something_else_are_refused(base, folder):
    edit(folder, lambda c: c.update(peft_type="MAGIC"))
    refused(base, folder, "PROMPT_TUNING, PREFIX_TUNING")
    edit(folder, lambda c: c.update(peft_type="PREFIX_TUNING", num_virtual_tokens="many"))
    refused(base, folder, "num_virtual_tokens must be")
    (folder / "adapter_config.json").write_text("{")
    refused(base, folder, "not a readable JSON")
    (folder / "adapter_config.json").write_text("[1]")
    refused(base, folder, "must hold a JSON object")


class Dangerous:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_no_code_runs_from_a_file(base, folder, tmp_path):
    tensor_file(folder).unlink()
    torch.save({"prompt_embeddings": Dangerous(str(tmp_path / "ran"))}, folder / "adapter_model.bin")
    refused(base, folder, "torn or not a file of tensors")
    assert not (tmp_path / "ran").exists()


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(to):
        to.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError):
        checkpoint.write_atomically(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_saving_in_the_other_format_leaves_one_file(base, tmp_path):
    pytest.importorskip("safetensors")
    base.save_pretrained(tmp_path, safe_serialization=False)
    base.save_pretrained(tmp_path, safe_serialization=True)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_base_comes_back_bit_for_bit_in_its_own_type(base, tmp_path):
    base.bfloat16().save_pretrained(tmp_path)
    again = GPT.from_pretrained(tmp_path)
    assert again.config == base.config
    for (name, a), (_, b) in zip(again.state_dict().items(), base.state_dict().items(), strict=True):
        assert a.dtype == torch.bfloat16 and torch.equal(a, b), name


@pytest.mark.parametrize("safe", [True, False])
def test_a_changed_number_in_a_base_is_noticed(base, safe, tmp_path):
    if safe:
        pytest.importorskip("safetensors")
    base.save_pretrained(tmp_path, safe_serialization=safe)
    config = json.loads((tmp_path / "config.json").read_text())
    tensors, notes, _ = checkpoint.read_tensors(tmp_path, "model", config)
    tensors["model.norm.weight" if config["model_type"] == "llama" else "transformer.ln_f.bias"][3] += 1e-6
    checkpoint.write_tensors(tmp_path, "model", tensors, safe, notes)
    with pytest.raises(Error, match="do not match their checksum"):
        GPT.from_pretrained(tmp_path)


def test_saving_twice_gives_the_same_bytes(base, tmp_path):
    for name in ("a", "b"):
        base.save_pretrained(tmp_path / name, safe_serialization=False)
    assert (tmp_path / "a" / "pytorch_model.bin").read_bytes() == (tmp_path / "b" / "pytorch_model.bin").read_bytes()


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(layer_norm_epsilon="small"), "layer_norm_epsilon must be a positive number"),
        (dict(model_type="bert"), "model_type 'bert' is not supported, only gpt2, llama, qwen2 and minipeft"),
        (dict(activation_function="relu"), "activation_function 'relu' is not supported"),
        (dict(n_inner=7), "does not fit"),
        (dict(n_layer="three"), "n_layer must be"),
        (dict(n_layer=4), "missing"),
        (dict(n_embd=16), "does not fit"),
    ],
)
def test_bases_of_another_kind_are_refused(change, message, tmp_path):
    tiny("learned").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(Error, match=message) as e:
        GPT.from_pretrained(tmp_path)
    assert "\n" not in str(e.value)


def test_folders_that_are_no_base_are_refused(tmp_path):
    with pytest.raises(Error, match="no such folder"):
        GPT.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(Error, match="no config.json"):
        GPT.from_pretrained(tmp_path)
    tiny("learned").save_pretrained(tmp_path, safe_serialization=False)
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(Error, match="torn"):
        GPT.from_pretrained(tmp_path)
