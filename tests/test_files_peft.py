"""Adapters exchanged with PEFT, on each family of bases: the same logits and the same values."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from conftest import moved, quick, tiny
from families import WIDE, base_of, opened_by_transformers

from minipeft import GPT, Error, __main__, adapt, fingerprint, load_adapter
from minipeft.adapters import export_adapter
from minipeft.data import NANO
from minipeft.files.peft import opens_in_adaption_prompt, read_adapter
from minipeft.runtime.console import run

LINEARS = {
    "gpt2": ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
LINEARS["qwen2"] = LINEARS["llama"]
NEWER = ("qwen3", "smollm3", "gemma3", "mistral")
PROJECTION = dict(num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=16)
GPT2_LORA = dict(fan_in_fan_out=True)
CASES = {  # kind of base, method, hyper-parameters, PEFT's config and its further arguments
    "prompt-gpt2": ("gpt2", "prompt", dict(num_virtual_tokens=5), "PromptTuningConfig", {}),
    "prompt-llama": ("llama", "prompt", dict(num_virtual_tokens=5), "PromptTuningConfig", {}),
    "prefix-gpt2": ("gpt2", "prefix", dict(num_virtual_tokens=5), "PrefixTuningConfig", {}),
    "prefix-llama": ("llama", "prefix", dict(num_virtual_tokens=5), "PrefixTuningConfig", {}),
    "projection-gpt2": ("gpt2", "prefix", PROJECTION, "PrefixTuningConfig", {}),
    "projection-llama": ("llama", "prefix", PROJECTION, "PrefixTuningConfig", {}),
    "lora-gpt2": ("gpt2", "lora", dict(r=3, lora_alpha=10), "LoraConfig", GPT2_LORA),
    "lora-llama": ("llama", "lora", dict(r=3, lora_alpha=10), "LoraConfig", {}),
    "lora-qwen2": ("qwen2", "lora", dict(r=3, lora_alpha=10), "LoraConfig", {}),
    "all-linears-gpt2": (
        "gpt2", "lora", dict(r=3, lora_alpha=10, target_modules=LINEARS["gpt2"]), "LoraConfig", GPT2_LORA),
    "all-linears-llama": ("llama", "lora", dict(r=3, lora_alpha=10, target_modules=LINEARS["llama"]), "LoraConfig", {}),
    "all-linears-qwen2": ("qwen2", "lora", dict(r=3, lora_alpha=10, target_modules=LINEARS["qwen2"]), "LoraConfig", {}),
    "whole-names-gpt2": (
        "gpt2", "lora", dict(r=3, target_modules=["attn.c_proj", "mlp.c_fc"]), "LoraConfig", GPT2_LORA),
    "whole-names-llama": (
        "llama", "lora", dict(r=3, target_modules=["attn.o_proj", "mlp.up_proj"]),
        "LoraConfig", dict(target_modules=["self_attn.o_proj", "mlp.up_proj"]),
    ),
    **{f"prompt-{kind}": (kind, "prompt", dict(num_virtual_tokens=5), "PromptTuningConfig", {}) for kind in NEWER},
    **{f"prefix-{kind}": (kind, "prefix", dict(num_virtual_tokens=5), "PrefixTuningConfig", {}) for kind in NEWER},
    **{f"all-linears-{kind}": (kind, "lora", dict(r=3, lora_alpha=10, target_modules=LINEARS["llama"]), "LoraConfig",
                               dict(target_modules=LINEARS["llama"])) for kind in NEWER},
    "lora-qwen3": ("qwen3", "lora", dict(r=3, lora_alpha=10), "LoraConfig", {}),
    "lora-gemma3": ("gemma3", "lora", dict(r=3, lora_alpha=10), "LoraConfig", {}),
    "projection-qwen3": ("qwen3", "prefix", PROJECTION, "PrefixTuningConfig", {}),
    "adaption-prompt-mistral": (
        "mistral", "llama-adapter", dict(adapter_len=4, adapter_layers=2), "AdaptionPromptConfig", {}),
    "adaption-prompt-llama": (
        "llama", "llama-adapter", dict(adapter_len=4, adapter_layers=2), "AdaptionPromptConfig", {}),
}
QUICK = [case for case, (kind, name, *_) in CASES.items() if kind not in NEWER or name == "prefix"]
QUICK += ["all-linears-gemma3", "all-linears-qwen3"]


def logits_in_peft(base_folder, adapter, idx):
    """Logits of the real tokens in PEFT, which must open the adapter without a warning."""
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Unexpected keyword|fan_in_fan_out")
        model = peft.PeftModel.from_pretrained(opened_by_transformers(base_folder), adapter).eval()
    with torch.no_grad():
        return model(idx).logits[:, -idx.size(1) :]


def close(ours, theirs, base, idx):
    """Assert equality within 1e-4, while the base alone differs clearly."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    with torch.no_grad():
        assert (base(idx) - theirs).abs().max() > 0.05


def tuned(base, name, h, seed=0):
    """The method with large noise on everything it trains."""
    torch.manual_seed(seed)
    if name == "llama-adapter":  # its gates start at zero
        return moved(adapt(base, name, **h, gate="layer"), 1.0)
    return moved(adapt(base, name, **h), 0.3)


def stored(folder):
    return dict(read_adapter(folder)[1])


def command(capsys, *argv) -> tuple[int, str, str]:
    capsys.readouterr()  # what was said until here
    code = run("minipeft", lambda: __main__.main([str(a) for a in argv]))
    return code, *capsys.readouterr()


@pytest.mark.parametrize("exported", [False, True], ids=["saved", "exported"])
@pytest.mark.parametrize("case", quick(CASES, *QUICK))
def test_peft_opens_what_we_save_and_what_export_writes(case, exported, folders, read, tmp_path, capsys):
    kind, name, h, _, _ = CASES[case]
    base = GPT.from_pretrained(folders[kind])
    model = tuned(base, name, h)
    model.save(tmp_path / "ours")
    opened = tmp_path / "ours"
    if exported:
        opened = tmp_path / "out"
        code, printed, err = command(capsys, "export", tmp_path / "ours", opened, "--base", folders[kind])
        assert code == 0 and "which peft.PeftModel.from_pretrained" in printed, err
    with torch.no_grad():
        close(model(read), logits_in_peft(folders[kind], opened, read), base, read)


def saved_by_peft(case, folder, base_folder, dtype):
    """Save PEFT's own adapter of this case, with random values, on a base of this type."""
    peft = pytest.importorskip("peft")
    _, _, h, config, more = CASES[case]
    torch.manual_seed(3)
    base = opened_by_transformers(base_folder).to(dtype)
    config = getattr(peft, config)(task_type="CAUSAL_LM", **h | more)
    model = peft.get_peft_model(base, config, autocast_adapter_dtype=False)
    model.to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.normal_(std=0.3)
    model.save_pretrained(folder)
    assert dtype in {t.dtype for t in stored(folder).values()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", quick(CASES, *QUICK))
def test_we_open_what_peft_saves_and_save_the_same_values(case, dtype, folders, read, tmp_path, capsys):
    pytest.importorskip("safetensors")
    kind, name = CASES[case][:2]
    saved_by_peft(case, tmp_path / "theirs", folders[kind], dtype)
    base = GPT.from_pretrained(folders[kind])
    model = load_adapter(base, tmp_path / "theirs")
    with torch.no_grad():
        close(model(read), logits_in_peft(folders[kind], tmp_path / "theirs", read), base, read)
    model.save(tmp_path / "again")
    code, printed, err = command(capsys, "import", tmp_path / "theirs", tmp_path / "imported", "--base", folders[kind])
    assert code == 0 and f": {name}, " in printed, err
    want = stored(tmp_path / "theirs")
    for folder in ("again", "imported"):
        have = stored(tmp_path / folder)
        assert have.keys() == want.keys() and {t.dtype for t in have.values()} == {torch.float32}
        assert all(torch.equal(t, want[n].float()) for n, t in have.items())
    close(logits_in_peft(folders[kind], tmp_path / "imported", read), model(read).detach(), base, read)


def test_merging_a_bfloat16_lora_leaves_the_base_its_precision(read, tmp_path):
    base = base_of("llama")
    before = {name: t.clone() for name, t in base.state_dict().items()}
    made = tuned(base, "lora", dict(r=3, lora_alpha=10))
    made.method.bfloat16()
    made.save(tmp_path)
    made.detach()
    model = load_adapter(base, tmp_path)
    with torch.no_grad():
        want = model(read)
        model.merge()
        torch.testing.assert_close(base(read), want, rtol=0, atol=1e-4)
    model.unmerge()
    assert all(torch.equal(t, before[name]) for name, t in base.state_dict().items())


@pytest.mark.parametrize("kind", quick(WIDE, "gpt2", "llama", "qwen2", "gemma3"))
@pytest.mark.parametrize("rung", ["hard-prompt", "hidden"])
def test_what_peft_has_no_name_for_climbs_the_ladder(rung, kind, folders, read, tmp_path, capsys):
    base = GPT.from_pretrained(folders[kind])
    if rung == "hidden":
        model, becomes = tuned(base, "prefix", dict(num_virtual_tokens=4, space="hidden")), "PREFIX_TUNING"
    else:
        model, becomes = adapt(base, "hard-prompt", tokens=torch.tensor([5, 6, 7])), "PROMPT_TUNING"
    model.save(tmp_path / "ours")
    code, printed, err = command(capsys, "export", tmp_path / "ours", tmp_path / "out", "--base", folders[kind])
    assert code == 0 and printed.startswith(f"{tmp_path / 'out'}: {becomes}, which"), err
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["peft_type"] == becomes
    assert stored(tmp_path / "out").keys() == {"prompt_embeddings"}
    with torch.no_grad():
        torch.testing.assert_close(load_adapter(base, tmp_path / "out")(read), model(read), rtol=0, atol=1e-4)
        close(model(read), logits_in_peft(folders[kind], tmp_path / "out", read), base, read)


def other(kind, folder):
    """A base of the same shape with other weights."""
    base = base_of(kind)
    with torch.no_grad():
        base.wte.weight[0] += 1
    base.save_pretrained(folder)
    return base


def notes_of(folder) -> dict:
    return read_adapter(folder)[1].notes


@pytest.mark.parametrize("case", ["prefix-llama", "lora-gpt2"])
def test_what_was_imported_has_its_checksum_and_is_tied_to_its_base(case, folders, tmp_path, capsys):
    pytest.importorskip("safetensors")
    kind = CASES[case][0]
    saved_by_peft(case, tmp_path / "theirs", folders[kind], torch.float32)
    stranger = other(kind, tmp_path / "other")
    assert notes_of(tmp_path / "theirs") == {}
    load_adapter(stranger, tmp_path / "theirs")  # PEFT does not say which base it was for
    assert command(capsys, "import", tmp_path / "theirs", tmp_path / "out", "--base", folders[kind])[0] == 0
    notes = notes_of(tmp_path / "out")
    assert notes["base"] == fingerprint(GPT.from_pretrained(folders[kind])) and len(notes["sha256"]) == 64
    with pytest.raises(Error, match="was tuned for another base") as e:
        load_adapter(stranger, tmp_path / "out")
    assert "\n" not in str(e.value)
    code, out, err = command(capsys, "import", tmp_path / "out", tmp_path / "more", "--base", tmp_path / "other")
    assert (code, out) == (2, "") and "was tuned for another base" in err and len(err.splitlines()) == 1
    path = tmp_path / "out" / "adapter_model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)
    with pytest.raises(Error, match="do not match their checksum"):
        load_adapter(GPT.from_pretrained(folders[kind]), tmp_path / "out")


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_export_says_what_peft_cannot_do(kind, folders, tmp_path, capsys):
    base = GPT.from_pretrained(folders[kind])
    refusals = {
        "adapter": (["adapter"], {}, "PEFT has no bottleneck adapters"),
        "both": (["lora", "prefix"], {},
                 "both is a combination: export its parts, each a folder of its own, one by one"),
        "gates": (["llama-adapter"], {},
                  "PEFT's ADAPTION_PROMPT is LLaMA-Adapter with one gate a layer on transformers' Llama"),
    }
    if kind == "gpt2":
        refusals["layer"] = (["llama-adapter"], dict(gate="layer"), "PEFT's ADAPTION_PROMPT is LLaMA-Adapter")
    for folder, (names, h, message) in refusals.items():
        adapt(base, names, **h).save(tmp_path / folder)
        code, out, err = command(capsys, "export", tmp_path / folder, tmp_path / "out", "--base", folders[kind])
        assert (code, out) == (2, "") and message in err and len(err.splitlines()) == 1
    full = GPT.from_pretrained(folders[kind])
    adapt(full, "full").save(tmp_path / "full")
    code, out, err = command(capsys, "export", tmp_path / "full", tmp_path / "out", "--base", folders[kind])
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert "is a whole model, which transformers opens as it is" in err
    code, out, err = command(capsys, "export", tmp_path / "nowhere", tmp_path / "out", "--base", folders[kind])
    assert (code, out) == (2, "") and "no adapter at" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    for part in ("lora", "prefix"):  # one by one, as it says
        assert command(capsys, "export", tmp_path / "both" / part, tmp_path / part, "--base", folders[kind])[0] == 0


def test_the_embedded_base_is_none_of_transformers(tmp_path, capsys):
    base = GPT.from_pretrained(NANO)
    adapt(base, "prompt").save(tmp_path / "prompt")
    with pytest.raises(Error, match="PEFT works on transformers' models, and none has this base's architecture") as e:
        export_adapter(base, tmp_path / "prompt", tmp_path / "out")
    assert "\n" not in str(e.value) and not (tmp_path / "out").exists()


def test_a_method_that_peft_lacks_is_refused_with_its_own_reason_on_any_base(tmp_path, capsys):
    adapt(GPT.from_pretrained(NANO), "adapter").save(tmp_path / "ours")
    code, out, err = command(capsys, "export", tmp_path / "ours", tmp_path / "out")
    assert (code, out) == (2, "") and "ours is adapter: PEFT has no bottleneck adapters" in err
    assert len(err.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_export_and_import_do_not_write_over_something_else(folders, tmp_path, capsys):
    base = GPT.from_pretrained(folders["gpt2"])
    adapt(base, "prompt").save(tmp_path / "prompt")
    base.save_pretrained(tmp_path / "base")
    for do in ("export", "import"):
        code, _, err = command(capsys, do, tmp_path / "prompt", tmp_path / "base", "--base", folders["gpt2"])
        assert code == 2 and len(err.splitlines()) == 1
        assert "already holds a base: save an adapter in a folder of its own" in err


def test_an_adapter_is_not_exported_over_itself(folders, tmp_path, capsys):
    base = GPT.from_pretrained(folders["gpt2"])
    adapt(base, "hard-prompt", tokens=torch.tensor([1, 2, 3])).save(tmp_path / "words")
    code, _, err = command(capsys, "export", tmp_path / "words", tmp_path / "words", "--base", folders["gpt2"])
    assert code == 2 and "export it into another folder" in err and len(err.splitlines()) == 1
    model = load_adapter(base, tmp_path / "words")
    assert model.method.name == "hard-prompt" and model.detach() is base
    export_adapter(base, tmp_path / "words", tmp_path / "out")
    assert "attached" not in vars(base) and all(p.requires_grad for p in base.parameters())


def import_refused(capsys, tmp_path, base_folder, message):
    code, out, err = command(capsys, "import", tmp_path / "theirs", tmp_path / "out", "--base", base_folder)
    assert (code, out) == (2, "") and message in err and len(err.splitlines()) == 1, err
    assert not (tmp_path / "out").exists()


def test_a_method_of_peft_that_we_lack_is_refused(folders, tmp_path, capsys):
    peft = pytest.importorskip("peft")
    config = peft.LoHaConfig(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"])
    peft.get_peft_model(opened_by_transformers(folders["llama"]), config).save_pretrained(tmp_path / "theirs")
    import_refused(capsys, tmp_path, folders["llama"],
                   "peft_type must be one of HARD_PROMPT, PROMPT_TUNING, PROMPT_TUNING_IN_TEXT")


@pytest.mark.parametrize("case", ["prompt-llama", "prefix-llama", "lora-llama", "adaption-prompt-llama", "prefix-gpt2"])
def test_an_adapter_for_another_shape_is_refused(case, folders, tmp_path, capsys):
    kind = CASES[case][0]
    saved_by_peft(case, tmp_path / "theirs", folders[kind], torch.float32)
    wide = GPT(type(base_of(kind).config)(**base_of(kind).config.__dict__ | dict(n_embd=48, n_layer=4)))
    wide.save_pretrained(tmp_path / "wide")
    import_refused(capsys, tmp_path, tmp_path / "wide", "another base: " if case.startswith("pr") else "does not fit: ")


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_pefts_adaption_prompt_is_another_function_off_llama(kind, folders, tmp_path, capsys):
    saved_by_peft("adaption-prompt-llama", tmp_path / "theirs", folders["llama"], torch.float32)
    import_refused(capsys, tmp_path, folders[kind],
                   "theirs is ADAPTION_PROMPT, which on this base is another function than llama-adapter")


def test_on_what_pefts_adaption_prompt_does_not_know_llama_adapter_is_not_called_so():
    """Norms of queries and keys, layers without rotation, and heads that are not C / nh wide."""
    llama = tiny("llama").config
    assert opens_in_adaption_prompt(llama, "layer") and not opens_in_adaption_prompt(llama, "head")
    without = [dict(qk_norm=True), dict(sandwich_norm=True), dict(no_rope_layer_interval=2), dict(head_dim=16)]
    for c in (replace(llama, **choices) for choices in without):
        assert not opens_in_adaption_prompt(c, "layer")
