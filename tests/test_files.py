"""Files of tensors and adapter folders: written whole, verified when read, and no code runs."""

import json
import os
from dataclasses import replace

import pytest
import torch
from conftest import SHAPES, quick, tiny

from minipeft import GPT, METHODS, Error, adapt, fingerprint, load_adapter
from minipeft.config import RopeScaling, linears, shown
from minipeft.files import atomic
from minipeft.files import tensors as stored_tensors
from tests.faults import pickles


@pytest.fixture
def shape() -> str:
    """Llama's: its grouped heads set sizes apart that are equal elsewhere."""
    return "llama"


every_shape = pytest.mark.parametrize("shape", quick(SHAPES, "learned", "rotary", "llama", "gemma3"))


@pytest.fixture(params=["safetensors", "bin"])
def folder(request, base, tmp_path, monkeypatch):
    """An adapter folder in either format."""
    if request.param == "safetensors":
        pytest.importorskip("safetensors")
    else:
        monkeypatch.setattr(stored_tensors, "have_safetensors", lambda: False)
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


def read(folder, stem, config):
    stored = stored_tensors.StoredTensors(folder, stem, config)
    return dict(stored), stored.notes, stored.path


def without_checksum(folder):
    """Remove the notes, so that the checks behind the checksum are reached."""
    tensors, notes, path = read(folder, "adapter_model", read_config(folder))
    edit(folder, lambda c: c.pop("minipeft", None))
    return tensors, path.suffix != ".bin"


def refused(base, folder, message):
    with pytest.raises(Error, match=message) as e:
        load_adapter(base, folder)
    assert "\n" not in str(e.value)


@every_shape
def test_an_adapter_for_another_base_is_refused(shape, base, folder):
    refused(tiny(shape, seed=5), folder, "another base")
    *_, last = linears(base.config)
    for name in (f"h.1.{last}.weight", "h.1.ln_2.weight" if base.config.bias == "none" else "h.1.mlp.c_fc.bias"):
        nudged = tiny(shape)
        with torch.no_grad():
            nudged.get_parameter(name).view(-1)[3] += 0.01
        refused(nudged, folder, "another base")


@every_shape
def test_the_fingerprint_is_of_shape_and_weights_not_of_their_type(shape, base):
    others = [dict(layer_norm_epsilon=1e-6), dict(scale_embeddings=not base.config.scale_embeddings)]
    if not base.config.qk_norm:  # whose shape is a head's
        others.append(dict(n_head=2, n_kv_head=base.config.n_kv // 2))
    if base.config.mlp != "gelu":
        others.append(dict(mlp="swiglu" if base.config.mlp == "geglu" else "geglu"))
    if base.config.norm != "layer":
        others.append(dict(norm="rms" if base.config.norm == "rms1p" else "rms1p"))
    if shape == "smollm3":
        others += [dict(no_rope_layer_interval=3), dict(no_rope_layer_interval=None)]
    if shape == "gemma3":
        others += [dict(sliding_window=6), dict(sliding_window_pattern=3), dict(rope_local_base_freq=50.0)]
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
    tensors, notes, path = read(folder, "adapter_model", read_config(folder))
    tensors["prompt_embeddings"][2, 3] += 1e-6
    stored_tensors.write_tensors(folder, "adapter_model", tensors, path.suffix != ".bin", notes)
    refused(base, folder, "do not match their checksum")


def test_other_keys_and_shapes_are_refused(base, folder):
    tensors, safe = without_checksum(folder)
    t, W = tensors["prompt_embeddings"], 3 * 2 * base.config.kv
    for wrong, message in [
        ({}, "missing .'prompt_embeddings'"),
        ({"prompt_embeddings": t, "more": t.clone()}, "not expected .'more'"),
        ({"prompt_embeddings": t[:4]}, rf"is \(4, {W}\), but \(5, {W}\)"),
        ({"prompt_embeddings": t.long()}, "does not fit"),
    ]:
        stored_tensors.write_tensors(folder, "adapter_model", wrong, safe)
        refused(base, folder, message)


@pytest.mark.parametrize("folder", ["bin"], indirect=True)
def test_a_file_of_other_things_is_refused(base, folder):
    tensors, _ = without_checksum(folder)
    for wrong in ({3: tensors["prompt_embeddings"]}, {"prompt_embeddings": "text"}):
        torch.save(wrong, folder / "adapter_model.bin")
        refused(base, folder, "something else than named tensors")


def test_peft_adapters_name_the_shape_of_their_base(base, folder):
    tensors, safe = without_checksum(folder)
    stored_tensors.write_tensors(folder, "adapter_model", tensors, safe)
    load_adapter(base, folder)
    edit(folder, lambda c: c.update(num_layers=None, token_dim=None))
    load_adapter(base, folder)
    its = read_config(folder)
    c = base.config
    for name, own in (("token_dim", c.kv), ("num_layers", c.n_layer), ("num_attention_heads", c.n_kv)):
        edit(folder, lambda config, name=name: (config.update(its), config.update({name: 6})))
        refused(base, folder, f"another base: {name} is 6, this one has {own}$")


def test_an_adapter_and_a_base_do_not_share_a_folder(base, folder):
    with pytest.raises(Error, match="already holds an adapter"):
        base.save_pretrained(folder)
    base.save_pretrained(folder.parent / "base")
    with pytest.raises(Error, match="already holds a base"):
        adapt(base, "prompt").save(folder.parent / "base")
    (folder.parent / "file").write_text("")
    with pytest.raises(Error, match="is a file"):
        adapt(base, "prompt").save(folder.parent / "file")


def test_what_is_no_fingerprint_is_not_saved_as_one(base, tmp_path):
    model = adapt(base, "prompt")
    for wrong in ("abc", 5, fingerprint(base).upper()):
        with pytest.raises(Error, match="base_fingerprint must be what fingerprint.base. returns"):
            model.save(tmp_path / "x", wrong)
    model.save(tmp_path / "x", fingerprint(base))
    load_adapter(base, tmp_path / "x")


def test_missing_parts_are_named(base, folder):
    refused(base, folder.parent / "nowhere", "no such folder")
    tensor_file(folder).unlink()
    refused(base, folder, "neither adapter_model.safetensors nor adapter_model.bin")
    (folder / "adapter_config.json").unlink()
    refused(base, folder, "adapter_config.json is missing")


def test_configs_that_say_something_else_are_refused(base, folder):
    edit(folder, lambda c: c.update(peft_type="MAGIC"))
    refused(base, folder, "PROMPT_TUNING, PROMPT_TUNING_IN_TEXT, PREFIX_TUNING")
    edit(folder, lambda c: c.update(peft_type="PREFIX_TUNING", num_virtual_tokens="many"))
    refused(base, folder, "num_virtual_tokens must be")
    (folder / "adapter_config.json").write_text("{")
    refused(base, folder, "not a readable JSON")
    (folder / "adapter_config.json").write_text("[1]")
    refused(base, folder, "must hold a JSON object")


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(to):
        to.write_text("half")
        raise OSError("disk full")

    with pytest.raises(Error, match="file cannot be written: disk full"):
        atomic.write_atomically(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="no umask there")
@pytest.mark.parametrize("safe", [True, False])
def test_files_have_the_mode_that_the_umask_says(safe, tmp_path):
    """safetensors itself writes for the owner alone."""
    if safe:
        pytest.importorskip("safetensors")
    before = os.umask(0o027)
    try:
        tiny().save_pretrained(tmp_path, safe_serialization=safe)
    finally:
        os.umask(before)
    files = list(tmp_path.iterdir())
    assert len(files) == 2 and {path.stat().st_mode & 0o777 for path in files} == {0o640}


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
    tensors, notes, _ = read(tmp_path, "model", config)
    tensors["transformer.ln_f.bias" if "transformer.ln_f.bias" in tensors else "model.norm.weight"][3] += 1e-6
    stored_tensors.write_tensors(tmp_path, "model", tensors, safe, notes)
    with pytest.raises(Error, match="do not match their checksum"):
        GPT.from_pretrained(tmp_path)


def test_files_are_read_where_stderr_is_closed(tmp_path):
    pytest.importorskip("safetensors")
    tiny().save_pretrained(tmp_path, safe_serialization=True)
    kept = os.dup(2)
    os.close(2)
    try:
        again = GPT.from_pretrained(tmp_path)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
    assert torch.equal(again.wte.weight, tiny().wte.weight)


def test_saving_twice_gives_the_same_bytes(base, tmp_path):
    for name in ("a", "b"):
        base.save_pretrained(tmp_path / name, safe_serialization=False)
    assert (tmp_path / "a" / "pytorch_model.bin").read_bytes() == (tmp_path / "b" / "pytorch_model.bin").read_bytes()


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model", "combination.json"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "device"])
def test_only_regular_files_are_opened(name, kind, base, folder):
    path = tensor_file(folder) if name == "adapter_model" else folder / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path if kind == "loop" else "/dev/zero")
    refused(base, folder, f"{path.name} cannot be read: (it is not a regular file|Too many levels of symbolic links)")


@pytest.mark.parametrize(
    "change",
    [dict(lora_alpha=9), dict(lora_alpha=8.5), dict(lora_dropout=0.5),
     dict(target_modules=["c_attn", "mlp.c_proj"][::-1])],
)
def test_a_config_that_was_changed_after_saving_is_noticed(change, tmp_path):
    base = tiny("learned")
    adapt(base, "lora", target_modules=["c_attn", "mlp.c_proj"]).save(tmp_path)
    edit(tmp_path, lambda c: c.update(inference_mode=False))  # what makes no difference may change
    load_adapter(base, tmp_path)
    edit(tmp_path, lambda c: c.update(change))
    refused(base, tmp_path, "adapter_config.json is damaged: it is not the config that adapter_model")


def test_notes_without_a_digest_of_the_config_are_still_read(base, tmp_path, monkeypatch):
    monkeypatch.setattr(stored_tensors, "have_safetensors", lambda: False)
    adapt(base, "prompt").save(tmp_path)
    edit(tmp_path, lambda c: c["minipeft"].pop("config"))
    load_adapter(base, tmp_path)


@pytest.mark.parametrize("change", [dict(layer_norm_epsilon=1e-3), dict(n_head=2), dict(n_head=8)])
def test_a_bases_config_that_was_changed_is_noticed(change, tmp_path):
    tiny("learned").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(Error, match="config.json is damaged: it is not the config that .* was saved with"):
        GPT.from_pretrained(tmp_path)


def test_a_combination_that_lost_a_part_is_noticed(tmp_path):
    base = tiny("learned")
    adapt(base, ["adapter", "lora", "prefix"]).save(tmp_path)
    path = tmp_path / "combination.json"
    whole = json.loads(path.read_text())
    del whole["parts"]["lora"]
    path.write_text(json.dumps(whole))
    refused(base, tmp_path, "combination.json is damaged: its parts do not match their checksum")
    del whole["parts"]["adapter"]
    path.write_text(json.dumps({"parts": whole["parts"]}))  # as it was written before it had one
    refused(base, tmp_path, "must name the parts, of .*, two or more")


@pytest.mark.parametrize(
    "method, h, change",
    [
        ("adapter", {}, dict(bottleneck_size=2**30)),
        ("llama-adapter", {}, dict(adapter_len=2**30)),
        ("prompt", {}, dict(num_virtual_tokens=10**12)),
        ("hard-prompt", dict(tokens=torch.tensor([1])), dict(num_virtual_tokens=2**30)),
        ("hard-prompt", dict(tokens=torch.tensor([1])), dict(num_virtual_tokens=10**30)),
        ("lora", {}, dict(r=10**9)),
        ("lora", {}, dict(r="8")),
        ("lora", {}, dict(lora_alpha=10**400)),
        ("lora", {}, dict(target_modules=["x" * 10_000])),
        ("prefix", {}, dict(num_virtual_tokens=float("nan"))),
        ("adapter", {}, dict(bottleneck_size=True)),
        ("adapter", {}, dict(bottleneck_size=None)),
    ],
)
def test_what_a_config_claims_is_refused_before_it_is_made(method, h, change, tmp_path, monkeypatch):
    base = tiny("learned")
    monkeypatch.setattr(stored_tensors, "have_safetensors", lambda: False)
    adapt(base, method, **h).save(tmp_path)
    edit(tmp_path, lambda c: c.pop("minipeft"))
    edit(tmp_path, lambda c: c.update(change))
    with pytest.raises(Error, match="adapter_config.json: ") as e:
        load_adapter(base, tmp_path)
    assert len(str(e.value)) < 600 and len(str(e.value).splitlines()) == 1


def test_a_hard_prompt_takes_no_memory_for_what_its_config_claims():
    tokens = METHODS["hard-prompt"].from_config({"num_virtual_tokens": 2**30})["tokens"]
    assert tokens.shape == (2**30,) and tokens.untyped_storage().nbytes() == 8


def test_a_hard_prompt_of_ids_that_the_base_lacks_is_refused(tmp_path, monkeypatch):
    base = tiny("learned")
    monkeypatch.setattr(stored_tensors, "have_safetensors", lambda: False)
    adapt(base, "hard-prompt", tokens=torch.tensor([3, 96])).save(tmp_path)
    edit(tmp_path, lambda c: c.pop("minipeft"))
    torch.save({"prompt_tokens": torch.tensor([3, 97])}, tmp_path / "adapter_model.bin")
    refused(base, tmp_path, "token ids must lie in 0 … 96")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64, torch.int32])
def test_types_that_no_method_computes_in_are_refused(dtype, base, tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    adapt(base, "prompt", num_virtual_tokens=4).save(tmp_path)
    save_file({"prompt_embeddings": torch.zeros(4, 32).to(dtype)}, tmp_path / "adapter_model.safetensors")
    refused(base, tmp_path, "prompt_embeddings is .* and not float32")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("names", [["adapter"], ["lora", "prefix"]], ids="+".join)
def test_tensors_of_any_type_are_trained_in_float32(names, dtype, shape, base, tmp_path):
    made = adapt(base, names)
    made.method.to(dtype)  # as a program that trains in this type saves it
    made.save(tmp_path)
    for its_base in (base, tiny(shape).bfloat16()):
        again = load_adapter(its_base, tmp_path)
        assert {p.dtype for p in again.trainable_parameters()} == {torch.float32}
        for ours, theirs in zip(again.method.parameters(), made.method.parameters(), strict=True):
            assert torch.equal(ours, theirs.float())


def test_a_whole_model_in_half_precision_is_trained_in_float32(base, tmp_path):
    base.bfloat16().save_pretrained(tmp_path)
    for model in (load_adapter(base, tmp_path), adapt(base, "full")):
        assert {p.dtype for p in model.trainable_parameters()} == {torch.float32}


def test_json_that_is_large_deep_or_no_text_is_refused(tmp_path):
    path = tmp_path / "file.json"
    for data, message in [
        (b"[" * 100_000, "not a readable JSON file .RecursionError"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not a readable JSON file"),
        (b'{"a": "\xff"}', "not a readable JSON file .UnicodeDecodeError"),
        (b'{"a": [' + b"[]," * 800_000 + b"0]}", "no JSON file here needs more than"),
        (b"", "not a readable JSON file"),
    ]:
        path.write_bytes(data)
        with pytest.raises(Error, match=message):
            atomic.read_json(path)
    path.write_text('{"a": "é"}', encoding="utf-8-sig")  # as editors on Windows save it
    assert atomic.read_json(path) == {"a": "é"}


def test_what_is_shown_of_a_file_is_short_and_on_one_line():
    nested = pickles.shared(60, list)
    for value in ("a\nb", "\u2028", "x" * 10**6, 10**5000, -(10**5000), nested, torch.ones(5), [["\n"]] * 99,
                  float("nan"), None, b"\n"):
        assert len(shown(value)) <= 201 and len(shown(value).splitlines()) == 1
    assert shown("yarn") == "'yarn'" and shown(3) == "3" and shown([1, "a"]) == "[1, 'a']" and shown(None) == "None"
