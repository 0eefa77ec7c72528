#!/usr/bin/env python3
"""Files as other programs write them, for compatibility.py: with each program's own save functions.

python docs/tools/writers.py FOLDER [--only TEXT …]

It runs in any Python that has some of transformers, PEFT, pandas, safetensors, torch and gguf, and
knows nothing of minipeft. FOLDER/written.json lists the files, the versions, and with every file
the logits (or ids, or rows) that a reader must find in it. The lines below are both run and shown.
"""

import argparse
import contextlib
import copy
import csv
import functools
import importlib.metadata
import io
import json
import platform
import sys
import warnings
from pathlib import Path

SAVE = "model.save_pretrained(path)"
SIZES = {
    "GPT2Config": dict(n_positions=64, n_embd=32, n_layer=2, n_head=4),
    "GemmaConfig": dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, head_dim=8),
    "OPTConfig": dict(
        hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, word_embed_proj_dim=32),
    "BloomConfig": dict(hidden_size=32, n_layer=2, n_head=4)}
LLAMA_SIZES = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=64)
GROUPED = dict(num_key_value_heads=2)
SIZES["SmolLM3Config"] = LLAMA_SIZES | dict(pad_token_id=None)
SIZES["Gemma3TextConfig"] = LLAMA_SIZES | dict(head_dim=8, query_pre_attn_scalar=8)
BASES = {
    "GPT-2": "GPT2Config()", "Llama": "LlamaConfig()",
    "Qwen2": "Qwen2Config(tie_word_embeddings=True)"}

# transformers: (config, how it is saved)
SAVES = [
    SAVE, "model.save_pretrained(path, safe_serialization=False)",
    'model.save_pretrained(path, max_shard_size="20KB")',
    'model.save_pretrained(path, max_shard_size="20KB", safe_serialization=False)',
    "model.half().save_pretrained(path)", "model.bfloat16().save_pretrained(path)",
    "model.double().save_pretrained(path)", "model.base_model.save_pretrained(path)"]
LLAMA3 = ('{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, '
          '"original_max_position_embeddings": 32}')
CONFIGS = [
    "GPT2Config(n_inner=80)", "GPT2Config(layer_norm_epsilon=1e-3)",
    'GPT2Config(activation_function="gelu_pytorch_tanh")', 'GPT2Config(activation_function="gelu")',
    'GPT2Config(activation_function="relu")', "GPT2Config(scale_attn_weights=False)",
    "GPT2Config(scale_attn_by_inverse_layer_idx=True)", "GPT2Config(reorder_and_upcast_attn=True)",
    "GPT2Config(tie_word_embeddings=False)", "GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0)",
    "LlamaConfig(tie_word_embeddings=True)", "LlamaConfig(num_key_value_heads=1)",
    "LlamaConfig(num_key_value_heads=4)", "LlamaConfig(rms_norm_eps=1e-3)",
    "LlamaConfig(rope_theta=1e6)", f"LlamaConfig(rope_scaling={LLAMA3})",
    'LlamaConfig(rope_scaling={"rope_type": "linear", "factor": 2.0})',
    'LlamaConfig(rope_scaling={"rope_type": "dynamic", "factor": 2.0})',
    'LlamaConfig(rope_scaling={"rope_type": "yarn", "factor": 2.0})',
    "LlamaConfig(attention_bias=True)", "LlamaConfig(mlp_bias=True)", "LlamaConfig(head_dim=16)",
    'LlamaConfig(hidden_act="gelu")', "LlamaConfig(pretraining_tp=2, vocab_size=98)",
    "Qwen2Config()", "Qwen2Config(rope_theta=1e6)",
    "Qwen2Config(use_sliding_window=True, sliding_window=8, max_window_layers=1)",
    "MistralConfig()", "MistralConfig(sliding_window=8)", "MistralConfig(sliding_window=None, head_dim=16)",
    "Qwen3Config()", "Qwen3Config(head_dim=16, tie_word_embeddings=True, rope_theta=1e6)",
    "Qwen3Config(use_sliding_window=True, sliding_window=8, max_window_layers=1)",
    "SmolLM3Config()", "SmolLM3Config(no_rope_layer_interval=2, rope_theta=5e6)",
    "SmolLM3Config(no_rope_layers=[0, 1])", "Gemma3TextConfig()",
    "Gemma3TextConfig(sliding_window=8, sliding_window_pattern=2, rope_local_base_freq=100.0)",
    'Gemma3TextConfig(rope_scaling={"rope_type": "linear", "factor": 8.0})',
    "Gemma3TextConfig(final_logit_softcapping=30.0)", "Gemma3TextConfig(query_pre_attn_scalar=16)",
    "GemmaConfig()", "MixtralConfig()", "PhiConfig()",
    "GPTNeoXConfig()", "OPTConfig()", "BloomConfig()"]
MODELS = [(config, save) for config in BASES.values() for save in SAVES] + [
    (config, SAVE) for config in CONFIGS]

# torch and safetensors: how the tensors of a model are saved; its config.json is transformers'
STATE = "state = model.state_dict(); "
TORCH = [
    STATE + 'torch.save(state, f"{path}/pytorch_model.bin")',
    'torch.save({n: p.data for n, p in model.named_parameters()}, f"{path}/pytorch_model.bin")',
    'torch.save(dict(model.named_parameters()), f"{path}/pytorch_model.bin")',
    STATE + 'torch.save(state, f"{path}/pytorch_model.bin", pickle_protocol=4)',
    STATE + 'torch.save(state, f"{path}/pytorch_model.bin", _use_new_zipfile_serialization=False)',
    STATE + 'torch.save({"state_dict": state}, f"{path}/pytorch_model.bin")',
    'torch.save(model, f"{path}/pytorch_model.bin")']
SAFETENSORS = [
    'save_model(model, f"{path}/model.safetensors")',
    STATE + 'save_file({n: t.clone() for n, t in state.items()}, f"{path}/model.safetensors")',
    STATE + 'save_file({n: t.clone() for n, t in state.items()}, f"{path}/model.safetensors", '
            '{"made by": "hand"})',
    STATE + 'save_file({n: t.half() for n, t in state.items()}, f"{path}/model.safetensors")',
    STATE + 'save_file({f"module.{n}": t.clone() for n, t in state.items()}, '
            'f"{path}/model.safetensors")']

# PEFT: (config, how it is saved), on GPT-2 and Llama
ADAPTERS = [
    ("LoraConfig()", SAVE), ("LoraConfig()", "model.save_pretrained(path, safe_serialization=False)"),
    ("LoraConfig()", "model.half().save_pretrained(path)"),
    ("LoraConfig()", "model.bfloat16().save_pretrained(path)"),
    ("LoraConfig()", "model.save_pretrained(path, save_embedding_layers=True)"),
    ("LoraConfig()", "model.merge_and_unload().save_pretrained(path)"),
    ("LoraConfig()", "torch.save(get_peft_model_state_dict(model), f'{path}/adapter_model.bin'); "
                     "model.peft_config['default'].save_pretrained(path)"),
    ("LoraConfig(task_type=None)", SAVE), ("LoraConfig(r=4, lora_alpha=32, lora_dropout=0.1)", SAVE),
    ("LoraConfig(r=64)", SAVE), ('LoraConfig(target_modules="all-linear")', SAVE),
    ("LoraConfig(init_lora_weights=False)", SAVE), ('LoraConfig(init_lora_weights="gaussian")', SAVE),
    ('LoraConfig(init_lora_weights="orthogonal")', SAVE), ('LoraConfig(init_lora_weights="pissa")', SAVE),
    ('LoraConfig(init_lora_weights="olora")', SAVE), ("LoraConfig(layers_to_transform=[1])", SAVE),
    ("LoraConfig(use_rslora=True)", SAVE), ("LoraConfig(use_dora=True)", SAVE),
    ('LoraConfig(bias="all")', SAVE), ('LoraConfig(bias="lora_only")', SAVE),
    ("LoraConfig(lora_bias=True)", SAVE), ('LoraConfig(modules_to_save=["lm_head"])', SAVE),
    ("LoraConfig(trainable_token_indices=[3, 4])", SAVE),
    ("PromptTuningConfig(num_virtual_tokens=5)", SAVE),
    ("PromptTuningConfig(num_virtual_tokens=5)", "model.save_pretrained(path, safe_serialization=False)"),
    ("PrefixTuningConfig(num_virtual_tokens=5)", SAVE),
    ("PrefixTuningConfig(num_virtual_tokens=5)", "model.save_pretrained(path, safe_serialization=False)"),
    ("PrefixTuningConfig(num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=16)", SAVE),
    ("PromptEncoderConfig(num_virtual_tokens=5, encoder_hidden_size=16)", SAVE),
    ("MultitaskPromptTuningConfig(num_virtual_tokens=5, num_tasks=2)", SAVE),
    ("IA3Config()", SAVE), ("IA3Config()", "model.save_pretrained(path, safe_serialization=False)"),
    ("AdaLoraConfig(total_step=10)", SAVE), ("VeraConfig()", SAVE), ("LNTuningConfig()", SAVE),
    ("FourierFTConfig(n_frequency=8)", SAVE)]
QV = 'LoraConfig(target_modules=["q_proj", "v_proj"]{})'
OF_BASE = {
    "Qwen2": [
        *((QV.format(""), save) for _, save in ADAPTERS[:6]), (QV.format(", use_dora=True"), SAVE),
        ('LoraConfig(target_modules="all-linear")', SAVE), *ADAPTERS[24:30],
        ('IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])', SAVE)],
    "GPT-2": [*ADAPTERS,
        ('LoraConfig(target_modules=["c_attn", "c_proj"])', SAVE),
        ('LoraConfig(target_modules=["attn.c_proj", "c_fc"])', SAVE),
        (r'LoraConfig(target_modules=r".*\.(attn|mlp)\.c_proj")', SAVE),
        ('LoraConfig(rank_pattern={"h.1.attn.c_attn": 2})', SAVE),
        ('IA3Config(target_modules=["c_attn"], feedforward_modules=[])', SAVE)],
    "Llama": [*ADAPTERS,
        ('LoraConfig(target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])', SAVE),
        ('LoraConfig(target_modules=["gate_proj", "mlp.down_proj"])', SAVE),
        (r'LoraConfig(target_modules=r".*\.self_attn\.(q|v)_proj")', SAVE),
        ('LoraConfig(target_modules=["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"])', SAVE),
        ('LoraConfig(target_modules=["layers.0.self_attn.q_proj"])', SAVE),
        ('LoraConfig(alpha_pattern={"q_proj": 32})', SAVE),
        ('LoraConfig(target_modules=["embed_tokens", "q_proj"])', SAVE),
        ('LoraConfig(target_modules=["q_proj", "lm_head"])', SAVE),
        ('LoraConfig(target_modules="all-linear", exclude_modules=["o_proj"])', SAVE),
        ('IA3Config(target_modules=["k_proj", "v_proj"], feedforward_modules=[])', SAVE),
        ("AdaptionPromptConfig(adapter_len=4, adapter_layers=2)", SAVE),
        ("AdaptionPromptConfig(adapter_len=4, adapter_layers=1)", SAVE),
        ('LoHaConfig(target_modules=["q_proj"])', SAVE), ('LoKrConfig(target_modules=["q_proj"])', SAVE),
        ('OFTConfig(target_modules=["q_proj"])', SAVE), ('BOFTConfig(target_modules=["q_proj"])', SAVE),
        ('HRAConfig(target_modules=["q_proj"])', SAVE), ('BoneConfig(target_modules=["q_proj"])', SAVE)]}

# tables: (texts, the line that saves them, the file's ending)
PLAIN = [("where is it", "north"), ("say 你好", "hello 😀"), ("NA", "none"), ("3", "007")]
MARKED = [*PLAIN, ('say "so", please', "so; yes"), ("two\nlines", ' "quoted" '), ("it's | a", "\u2028 it"),
          ("a\\nb\\", 'ends "so"')]
TEXTS = {"plain": PLAIN, "with marks": MARKED, "with an empty input": [*PLAIN, ("", "nothing")],
         "with a missing input": [*PLAIN, (None, "nothing")],
         "with tabs": [*PLAIN, ("a\tb", "c")]}
PANDAS = [
    ("plain", "df.to_csv(path, index=False)", "csv"), ("with marks", "df.to_csv(path, index=False)", "csv"),
    ("with marks", "df.to_csv(path)", "csv"), ("with marks", 'df.to_csv(path, index=False, sep=";")', "csv"),
    ("with marks", 'df.to_csv(path, index=False, sep="|")', "csv"),
    ("with marks", 'df.to_csv(path, index=False, sep="\\t")', "csv"),
    ("with tabs", 'df.to_csv(path, index=False, sep="\\t")', "csv"),
    ("with marks", 'df.to_csv(path, index=False, sep=":")', "csv"),
    ("with marks", "df.to_csv(path, index=False, quoting=csv.QUOTE_ALL)", "csv"),
    ("with marks", "df.to_csv(path, quoting=csv.QUOTE_NONNUMERIC)", "csv"),
    ("with marks", 'df.to_csv(path, index=False, quoting=csv.QUOTE_NONE, escapechar="\\\\")', "csv"),
    ("with marks", 'df.to_csv(path, index=False, doublequote=False, escapechar="\\\\")', "csv"),
    ("with marks", """df.to_csv(path, index=False, quotechar="'")""", "csv"),
    ("with marks", 'df.to_csv(path, index=False, encoding="utf-8-sig")', "csv"),
    ("with marks", 'df.to_csv(path, index=False, encoding="utf-16")', "csv"),
    ("with marks", 'df.to_csv(path, index=False, lineterminator="\\r\\n")', "csv"),
    ("plain", 'df.to_csv(path, index=False, lineterminator="\\r")', "csv"),
    ("with marks", 'df.to_csv(path, index=False, lineterminator="\\r")', "csv"),
    ("with marks", "df.to_csv(path, index=False, header=False)", "csv"),
    ("with an empty input", "df.to_csv(path, index=False)", "csv"),
    ("with a missing input", "df.to_csv(path, index=False)", "csv"),
    ("plain", 'df.to_csv(path, index=False, sep="\\t")', "tsv"),
    ("with marks", 'df.to_csv(path, index=False, sep="\\t")', "tsv"),
    ("plain", 'df.to_csv(path, index=False, sep="\\t", quoting=csv.QUOTE_ALL)', "tsv"),
    ("plain", "df.to_csv(path, index=False)", "tsv"),
    ("plain", 'df.to_csv(path, index=False, compression="gzip")', "csv.gz"),
    *(("with marks", f'df.to_json(path, orient="{orient}")', "json")
      for orient in ("records", "columns", "index", "split", "table", "values")),
    ("with marks", 'df.to_json(path, orient="records", lines=True)', "json"),
    ("with marks", 'df.to_json(path, orient="records", lines=True)', "jsonl"),
    ("with marks", 'df.to_json(path, orient="records", lines=True, force_ascii=False)', "jsonl"),
    ("with marks", 'df.to_json(path, orient="records", indent=2)', "json"),
    ("with marks", 'df.to_json(path, orient="records")', "jsonl"),
    ("with an empty input", 'df.to_json(path, orient="records")', "json"),
    ("with a missing input", 'df.to_json(path, orient="records")', "json"),
    ("with marks", "df.to_pickle(path)", "pkl")]
EXCEL = 'f = open(path, "w", encoding="{}", newline=""); csv.writer(f, "excel"{}).writerows(rows)'
PYTHON = [  # Excel's "CSV UTF-8" begins with a BOM; its delimiter is the locale's; lines end with CRLF
    ("with marks", EXCEL.format("utf-8-sig", ""), "csv"),
    ("with marks", EXCEL.format("utf-8-sig", ', delimiter=";"'), "csv"),
    ("with marks", EXCEL.format("utf-16", ', delimiter="\\t"'), "tsv"),
    ("plain", EXCEL.format("utf-8", ', delimiter="\\t"'), "tsv"),
    ("with marks", EXCEL.format("utf-8", ', quoting=csv.QUOTE_ALL, delimiter=";"'), "csv"),
    ("with marks", 'json.dump(objects, open(path, "w"))', "json"),
    ("with marks", 'json.dump(objects, open(path, "w", encoding="utf-8"), ensure_ascii=False, indent=4)', "json"),
    ("with marks", 'open(path, "w").write("".join(json.dumps(o) + "\\n" for o in objects))', "jsonl"),
    ("with marks", 'json.dump({"data": objects}, open(path, "w"))', "json"),
    ("with a missing input", 'json.dump(objects, open(path, "w"))', "json")]

# tokenizers: (how it is made, how it is saved)
CHATML = ("{% for m in messages %}<|im_start|>{{ m.role }}\\n{{ m.content }}<|im_end|>\\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\\n{% endif %}")
FAST = 'PreTrainedTokenizerFast(tokenizer_object={}, bos_token="<s>", eos_token="</s>"{})'
TOKENIZERS = [
    (FAST.format("bpe()", ""), "tokenizer.save_pretrained(path)"),
    (FAST.format("bpe()", ', additional_special_tokens=["<|im_end|>"]'), "tokenizer.save_pretrained(path)"),
    (FAST.format("bpe()", ""), 'tokenizer.add_tokens(["<extra>"]); tokenizer.save_pretrained(path)'),
    (FAST.format("bpe()", ', chat_template=CHATML'), "tokenizer.save_pretrained(path)"),
    (FAST.format("begun(bpe())", ""), "tokenizer.save_pretrained(path)"),
    (FAST.format("unigram()", ""), "tokenizer.save_pretrained(path)"),
    (FAST.format("wordpiece()", ""), "tokenizer.save_pretrained(path)"),
    (FAST.format("bpe()", ""), "tokenizer.save_pretrained(path, legacy_format=False)"),
    (FAST.format("bpe()", ""), 'tokenizer.backend_tokenizer.save(f"{path}/tokenizer.json")'),
    ('GPT2Tokenizer(vocab=f"{path}/vocab.json", merges=f"{path}/merges.txt")', "tokenizer.save_pretrained(path)"),
    ('GPT2TokenizerFast(f"{path}/vocab.json", f"{path}/merges.txt")', "tokenizer.save_pretrained(path)"),
    ('GPT2Tokenizer(f"{path}/vocab.json", f"{path}/merges.txt")', "tokenizer.save_pretrained(path)")]
CHAT = [{"role": "user", "content": "say <b>"}, {"role": "assistant", "content": "so"},
        {"role": "user", "content": "again"}]
SENTENCES = ["some words, to learn from", " naïve 你好 😀", "</s> a <extra><|im_end|>\n"]


class Written:
    """The list of files that were written, and the folder they are in."""

    def __init__(self, folder: Path, only: list):
        self.folder, self.only, self.files, self.not_written = folder, only, [], []

    @contextlib.contextmanager
    def file(self, program: str, on: str, holds: str, saved: str, ending: str = ""):
        """Yield (path, what a reader must find there: to be filled in); skip what cannot be written."""
        row = {"program": program, "version": version(program), "on": on, "holds": holds, "saved": saved}
        path = self.folder / f"{len(self.files) + len(self.not_written):03}{ending}"
        if not ending:
            path.mkdir()
        expected = {}
        try:
            yield path, expected
        except Exception as e:
            reason = " ".join(str(e).split())
            self.not_written.append(row | {"why": f"{type(e).__name__}: {reason}"[:200]})
        else:
            import torch

            torch.save(expected, self.folder / f"{path.name}.expected")
            self.files.append(row | {"ending": ending, "path": path.name})

    def wants(self, *texts: str) -> bool:
        return any(text in " ".join(texts) for text in self.only)


def version(program: str) -> "str | None":
    if program == "Python":
        return platform.python_version()
    try:
        return importlib.metadata.version(program.lower())
    except importlib.metadata.PackageNotFoundError:
        return None


def config_of(text: str):
    """The config of a line such as LlamaConfig(rope_theta=1e6), in small sizes."""
    import transformers

    name = text.partition("(")[0]
    sizes = dict(vocab_size=97) | SIZES.get(name, LLAMA_SIZES)
    if name in ("LlamaConfig", "Qwen2Config", "MistralConfig", "Qwen3Config", "SmolLM3Config", "Gemma3TextConfig",
                "MixtralConfig"):
        sizes |= GROUPED
    given = eval(text, {name: dict})  # what the line gives goes before the sizes
    return getattr(transformers, name)(**sizes | given)


def model_of(config: str):
    """A model of this config with large random weights, in eval mode."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(config))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model.eval()


def rounded(model, save: str):
    """The model with its trained parameters as a line that halves them saves them."""
    import torch

    for name in ("half", "bfloat16"):
        if f".{name}()" in save:  # of the whole model this would round rotary frequencies too
            with torch.no_grad():
                for p in model.parameters():
                    if p.requires_grad:
                        p.copy_(getattr(p, name)())
    return model


def logits(model, **given):
    """Logits of 20 tokens in float32, without those of virtual tokens."""
    import torch

    with torch.no_grad():
        model = model if model.dtype == torch.float32 else model.float()
        return model(torch.arange(5, 25)[None], **given).logits[:, -20:]


def write_models(out: Written) -> None:
    import safetensors.torch
    import torch

    lines = [("transformers", config, save) for config, save in MODELS]
    for config in BASES.values():
        lines += [("torch", config, save) for save in TORCH]
        lines += [("safetensors", config, save) for save in SAFETENSORS]
    for program, config, save in lines:
        if not out.wants(program, config, save):
            continue
        with out.file(program, "", config, save) as (path, expected):
            model = model_of(config)
            if program != "transformers":
                model.config.save_pretrained(path)
            exec(save, {"model": copy.deepcopy(model), "path": path, "torch": torch, **vars(safetensors.torch)})
            expected["logits"] = logits(rounded(model, save))


def write_adapters(out: Written) -> None:
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    for name, config in BASES.items():
        folder = out.folder / name
        model_of(config).save_pretrained(folder)
        for line, save in OF_BASE[name]:
            if not out.wants("PEFT", name, line, save):
                continue
            with out.file("PEFT", name, line, save) as (path, expected):
                kind = line.partition("(")[0]
                made = functools.partial(getattr(peft, kind), task_type="CAUSAL_LM")
                torch.manual_seed(1)
                base = AutoModelForCausalLM.from_pretrained(folder)
                model = peft.get_peft_model(base, eval(line, {kind: made}))
                with torch.no_grad():
                    for p in model.parameters():
                        if p.requires_grad:
                            p.add_(0.3 * torch.randn_like(p))
                model.eval()
                given = {"task_ids": torch.zeros(1, dtype=torch.long)} if "Multitask" in line else {}
                exec(save, {"model": copy.deepcopy(model), "path": path, "torch": torch, **vars(peft)})
                expected["logits"] = logits(rounded(model, save), **given)


def write_native(out: Written) -> None:
    """An adapter that transformers itself saves, by its own integration of PEFT."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    for name in BASES:
        add = "model.add_adapter(LoraConfig())"
        if not out.wants("transformers", name, add):
            continue
        with out.file("transformers", name, add, SAVE) as (path, expected):
            model = AutoModelForCausalLM.from_pretrained(out.folder / name)
            exec(add, {"model": model, "LoraConfig": peft.LoraConfig})
            with torch.no_grad():
                for n, p in model.named_parameters():
                    if "lora" in n:
                        p.add_(0.3 * torch.randn_like(p))
            model.eval()
            exec(SAVE, {"model": model, "path": path})
            expected["logits"] = logits(model)


def write_tables(out: Written) -> None:
    lines = [("Python", *line) for line in PYTHON]
    lines += [("pandas", *line) for line in PANDAS] if version("pandas") else []
    for program, texts, save, ending in lines:
        if not out.wants(program, texts, save, ending):
            continue
        with out.file(program, "", texts, save, f".{ending}") as (path, expected):
            rows = [("input", "target"), *TEXTS[texts]]
            scope = {"path": path, "csv": csv, "json": json, "rows": rows, "open": open}
            scope["objects"] = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
            if program == "pandas":
                import pandas

                scope["df"] = pandas.DataFrame(scope["objects"])
            exec(save, scope)
            if "f" in scope:
                scope["f"].close()
            expected["rows"] = [[given or "", target] for given, target in rows[1:]]


def tokenizers_of_our_own() -> dict:
    """Functions that train a small tokenizer each, by the package tokenizers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    text, special = ["some words to learn from"] * 9, ["<s>", "</s>", "<unk>", "<|im_start|>"]

    def trained(model, pre, decoder, trainer):
        made = Tokenizer(model)
        made.pre_tokenizer, made.decoder = pre, decoder
        made.train_from_iterator(text, trainer)
        return made

    def bpe():
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        return trained(models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel(),
                       trainers.BpeTrainer(vocab_size=290, special_tokens=special, initial_alphabet=alphabet))

    def unigram():
        return trained(models.Unigram(), pre_tokenizers.Metaspace(), decoders.Metaspace(),
                       trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>"))

    def wordpiece():
        return trained(models.WordPiece(unk_token="<unk>"), pre_tokenizers.Whitespace(), decoders.WordPiece(),
                       trainers.WordPieceTrainer(vocab_size=80, special_tokens=special))

    def begun(tokenizer):
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 0)])
        return tokenizer

    return {"bpe": bpe, "unigram": unigram, "wordpiece": wordpiece, "begun": begun,
            "CHATML": CHATML.replace("\\n", "\n")}


def write_tokenizers(out: Written) -> None:
    import transformers

    made = tokenizers_of_our_own()
    for line, save in TOKENIZERS:
        if not out.wants("tokenizer", line, save):
            continue
        with out.file("transformers", "tokenizer", line, save) as (path, expected):
            source = out.folder / f"{path.name}-vocabulary"
            source.mkdir()
            made["bpe"]().model.save(str(source))
            kind = line.partition("(")[0]
            scope = {"path": source, kind: getattr(transformers, kind), **made}
            tokenizer = eval(line, scope)
            exec(save, {"tokenizer": tokenizer, "path": path})
            expected["ids"] = [tokenizer(s, add_special_tokens=False)["input_ids"] for s in SENTENCES]
            expected["end"] = tokenizer.eos_token_id
            begun = tokenizer("words")["input_ids"]
            expected["begin"] = begun[: len(begun) - len(tokenizer("words", add_special_tokens=False)["input_ids"])]
            if tokenizer.chat_template:
                expected["chat"] = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)


def write_gguf(out: Written) -> None:
    """Llama as GGUF, by llama.cpp's package; and what transformers makes of such a file."""
    import gguf
    import numpy as np
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
             "model.layers": "blk", "model.embed_tokens": "token_embd", "model.norm": "output_norm",
             "lm_head": "output"}

    def write(file: Path, kind: str):
        model = model_of("LlamaConfig()")
        c, w = model.config, gguf.GGUFWriter(file, "llama")
        w.add_name("small")
        w.add_context_length(c.max_position_embeddings)
        w.add_embedding_length(c.hidden_size)
        w.add_block_count(c.num_hidden_layers)
        w.add_feed_forward_length(c.intermediate_size)
        w.add_head_count(c.num_attention_heads)
        w.add_head_count_kv(c.num_key_value_heads)
        w.add_layer_norm_rms_eps(c.rms_norm_eps)
        w.add_rope_freq_base(10000.0)
        w.add_vocab_size(c.vocab_size)
        w.add_tokenizer_model("llama")
        w.add_token_list([f"t{i}" for i in range(c.vocab_size)])
        w.add_token_scores([0.0] * c.vocab_size)
        w.add_token_types([1] * c.vocab_size)
        for name, t in model.state_dict().items():
            a = t.numpy()
            for heads, part in ((c.num_attention_heads, "q_proj"), (c.num_key_value_heads, "k_proj")):
                if part in name:  # llama.cpp's order of the rotated channels
                    a = a.reshape(heads, 2, -1, a.shape[1]).swapaxes(1, 2).reshape(a.shape)
            for theirs, ours in names.items():
                name = name.replace(theirs, ours)
            quantised = kind != "F32" and a.ndim == 2
            a = np.ascontiguousarray(a)
            if quantised:
                q = gguf.GGMLQuantizationType[kind]
                w.add_tensor(name, gguf.quants.quantize(a, q), raw_dtype=q)
            else:
                w.add_tensor(name, a)
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()
        return model

    for kind in ("F32", "F16", "Q8_0", "Q4_0"):
        holds = f"LlamaConfig(), {kind}"
        if out.wants("gguf", holds, "GGUFWriter"):
            with out.file("gguf", "", holds, 'GGUFWriter(f"{path}/model.gguf", "llama")') as (path, expected):
                expected["logits"] = logits(write(path / "model.gguf", kind))
        read = 'model = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf"); '
        for save in (SAVE, STATE + 'model.config.save_pretrained(path); save_file(state, f"{path}/model.safetensors")'):
            if not out.wants("transformers gguf", holds, read + save):
                continue
            with out.file("transformers", "gguf", holds, read + save) as (path, expected):
                folder = out.folder / f"{path.name}-gguf"
                folder.mkdir()
                write(folder / "model.gguf", kind)
                scope = {"AutoModelForCausalLM": AutoModelForCausalLM, "folder": folder, "path": path}
                scope["save_file"] = save_file
                exec(read + save, scope)
                expected["logits"] = logits(scope["model"].eval())


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("folder", type=Path)
    p.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="only lines with one of these")
    args = p.parse_args()
    warnings.filterwarnings("ignore")
    args.folder.mkdir(parents=True, exist_ok=True)
    out = Written(args.folder, args.only)
    if version("transformers"):
        import transformers

        transformers.logging.set_verbosity_error()
        write_models(out)
        write_tokenizers(out)
        if version("peft"):
            write_adapters(out)
            write_native(out)
        if version("gguf"):
            write_gguf(out)
    write_tables(out)
    programs = ("torch", "transformers", "peft", "safetensors", "tokenizers", "pandas", "gguf")
    versions = {name: found for name in programs if (found := version(name))} | {"python": version("Python")}
    written = {"versions": versions, "files": out.files, "not_written": out.not_written}
    (args.folder / "written.json").write_text(json.dumps(written), encoding="utf-8")


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()):
        sys.exit(main())
