"""LoRA by PEFT: opened however PEFT tells where it goes, or refused if it is another function."""

import json

import pytest
import torch
from families import opened_by_transformers
from test_files_peft import close, logits_in_peft, stored

from minipeft import GPT, Error, load_adapter


def lora_by_peft(folder, base_folder, **config):
    """Save PEFT's LoRA with this config, with random values."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(4)
    config = peft.LoraConfig(task_type="CAUSAL_LM", **dict(r=3, target_modules=["q_proj", "v_proj"]) | config)
    model = peft.get_peft_model(opened_by_transformers(base_folder), config)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.normal_(std=0.3)
    embeddings = "lm_head" in config.target_modules  # then PEFT saves them
    model.save_pretrained(folder, save_embedding_layers=embeddings)


LINEARS_OF_LLAMA = ["attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
                    "mlp.down_proj"]
LORAS = {  # kind of base, PEFT's config, the linears of ours
    "all-linear": ("llama", dict(target_modules="all-linear"), LINEARS_OF_LLAMA),
    "all-linear-gpt2": ("gpt2", dict(target_modules="all-linear", fan_in_fan_out=True),
                        ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]),
    "pattern": ("llama", dict(target_modules=r".*\.self_attn\.(k|o)_proj"), ["attn.k_proj", "attn.o_proj"]),
    "pattern-gpt2": ("gpt2", dict(target_modules=r".*mlp\.c_.*", fan_in_fan_out=True), ["mlp.c_fc", "mlp.c_proj"]),
    "paths": ("qwen2", dict(target_modules=[f"model.layers.{i}.mlp.up_proj" for i in range(3)]), ["mlp.up_proj"]),
    "mixed": ("llama", dict(target_modules=["q_proj", *(f"layers.{i}.mlp.up_proj" for i in range(3))]),
              ["attn.q_proj", "mlp.up_proj"]),
    "of-no-module": ("llama", dict(target_modules=["q_proj", "query"]), ["attn.q_proj"]),
    "excluded-of-one-name": ("gpt2", dict(target_modules=["c_proj"], exclude_modules=["mlp.c_proj"],
                                          fan_in_fan_out=True), ["attn.c_proj"]),
    "excluded": ("llama", dict(exclude_modules=["v_proj"]), ["attn.q_proj"]),
    "every-layer": ("llama", dict(layers_to_transform=[0, 1, 2]), ["attn.q_proj", "attn.v_proj"]),
    "rank-above": ("llama", dict(r=40), ["attn.q_proj", "attn.v_proj"]),  # v_proj is 16 × 32
    "gaussian": ("llama", dict(init_lora_weights="gaussian"), ["attn.q_proj", "attn.v_proj"]),
    "eva": ("llama", dict(init_lora_weights="eva"), ["attn.q_proj", "attn.v_proj"]),
    "mica": ("llama", dict(init_lora_weights="mica"), ["attn.q_proj", "attn.v_proj"]),
}


@pytest.mark.filterwarnings("ignore")  # PEFT's, of eva
@pytest.mark.parametrize("case", LORAS)
def test_loras_are_opened_however_peft_tells_where_they_go_and_start(case, folders, read, tmp_path):
    kind, config, linears = LORAS[case]
    lora_by_peft(tmp_path / "theirs", folders[kind], **config)
    base = GPT.from_pretrained(folders[kind])
    model = load_adapter(base, tmp_path / "theirs")
    assert model.method.linears == linears
    with torch.no_grad():
        close(model(read), logits_in_peft(folders[kind], tmp_path / "theirs", read), base, read)
        model.save(tmp_path / "again")
        assert torch.equal(load_adapter(base, tmp_path / "again")(read), model(read))


@pytest.mark.parametrize(
    "config, message",
    [
        (dict(layers_to_transform=[0, 2]), "missing .*layers.1.self_attn.q_proj"),
        (dict(target_modules=["model.layers.0.self_attn.q_proj"]), "missing .*layers.1.self_attn.q_proj"),
        (dict(init_lora_weights="pissa"), "LoRA with init_lora_weights 'pissa' is not supported: it changes the base"),
        (dict(init_lora_weights="olora"), "LoRA with init_lora_weights 'olora' is not supported"),
        (dict(use_dora=True), "LoRA with use_dora True is not supported"),
        (dict(use_rslora=True), "LoRA with use_rslora True is not supported"),
        (dict(lora_bias=True), "LoRA with lora_bias True is not supported"),
        (dict(bias="lora_only"), "LoRA with bias 'lora_only' is not supported"),
        (dict(rank_pattern={"q_proj": 2}), "LoRA with rank_pattern {'q_proj': 2} is not supported"),
        (dict(trainable_token_indices=[1]), r"LoRA with trainable_token_indices \[1\] is not supported"),
        (dict(modules_to_save=["lm_head"]), r"LoRA with modules_to_save \['lm_head'\] is not supported"),
        (dict(target_modules=["q_proj", "lm_head"]), "not expected .*lm_head.lora_A"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed", "ignore:Adapter 'default'")  # PEFT's, of lora_bias
def test_loras_of_another_function_are_refused(config, message, folders, tmp_path):
    lora_by_peft(tmp_path, folders["llama"], **config)
    with pytest.raises(Error, match=message) as e:
        load_adapter(GPT.from_pretrained(folders["llama"]), tmp_path)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(a_field_of_tomorrow={"scale": 2}), "LoRA with a_field_of_tomorrow {'scale': 2} is not supported"),
        (dict(use_qalora=True), "LoRA with use_qalora True is not supported"),
        (dict(target_modules=["model.layers.0.self_attn.q_proj"]),
         "its target_modules do not name model.layers.0.self_attn.v_proj, for which there are tensors"),
        (dict(target_modules=["k_proj"]), "do not name model.layers.0.self_attn.q_proj"),
        (dict(target_modules=[["q_proj"]]), "target module .* matches nothing"),
    ],
)
def test_a_config_that_does_not_fit_its_lora_is_refused(change, message, folders, tmp_path):
    lora_by_peft(tmp_path, folders["llama"])
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | dict(a_field_of_tomorrow=None, target_modules="(.*)*x")))
    base = GPT.from_pretrained(folders["llama"])
    assert load_adapter(base, tmp_path).method.linears == ["attn.q_proj", "attn.v_proj"]
    path.write_text(json.dumps(config | change))
    with pytest.raises(Error, match=message) as e:
        load_adapter(base, tmp_path)
    assert "\n" not in str(e.value)


# a tied head, and one of its own
@pytest.mark.parametrize("kind, names", [("gpt2", ["c_attn"]), ("llama", ["q_proj"])])
def test_embeddings_in_an_adapter_must_be_the_bases_own(kind, names, folders, read, tmp_path):
    peft = pytest.importorskip("peft")
    base = GPT.from_pretrained(folders[kind])

    def save(folder, change):
        model = opened_by_transformers(folders[kind])
        change(model)
        model = peft.get_peft_model(model, peft.LoraConfig(
            task_type="CAUSAL_LM", target_modules=names, fan_in_fan_out=kind == "gpt2"))
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.normal_(std=0.3)
        model.save_pretrained(tmp_path / folder, save_embedding_layers=True)
        return model.eval()

    same = save("same", lambda model: None)
    assert any("lm_head" in name for name in stored(tmp_path / "same"))
    load_adapter(GPT.from_pretrained(folders[kind], torch.bfloat16), tmp_path / "same")
    with torch.no_grad():
        close(load_adapter(base, tmp_path / "same")(read), same(read).logits, base, read)
    save("more", lambda model: model.resize_token_embeddings(97 + 4))
    save("other", lambda model: model.get_input_embeddings().weight.data.add_(0.1))
    for folder, vocabulary in [("more", 101), ("other", 97)]:
        with pytest.raises(Error, match=f"of a vocabulary of {vocabulary} .this base: 97.: merge it into") as e:
            load_adapter(base, tmp_path / folder)
        assert "\n" not in str(e.value)
