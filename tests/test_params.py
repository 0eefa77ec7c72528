"""The presets and the math that `bench.py params` prints, held against transformers, PEFT and published totals."""

import contextlib
import io
import json
import math
from dataclasses import replace

import pytest
import torch
from conftest import TYPICAL, in_shape, quick

import bench
from minipeft import METHODS, PRESETS, Error, GPTConfig, accounting
from minipeft.accounting.shapes import SHAPES, T5Shape
from minipeft.bench import params
from minipeft.bench.params import shape_of
from minipeft.config import linears
from minipeft.training.flags import Flag

LLAMA = ["llama-7b", "llama-13b", "llama-30b", "llama-65b"]


@pytest.mark.parametrize(
    "preset, published",
    [  # Lester et al. 2021 (2104.08691), table 4: total parameters less the prompt's, for a prompt of one token
        ("t5-small", 76_961_664 - 512),
        ("t5-base", 247_578_624 - 768),
        ("t5-large", 783_151_104 - 1_024),
        ("t5-xl", 2_849_759_232 - 2_048),
        ("t5-xxl", 11_135_336_448 - 4_096),
        # less what LoRA added: the line that PEFT printed for Alpaca-LoRA
        ("llama-7b", 6_742_609_920 - 4_194_304),
    ],
)
def test_published_totals(preset, published):
    assert accounting.base_parameters((PRESETS | SHAPES)[preset]) == published


@pytest.mark.parametrize("preset", LLAMA)
def test_llamas_totals_are_those_of_transformers(preset):
    transformers = pytest.importorskip("transformers")
    c = PRESETS[preset]
    config = transformers.LlamaConfig(
        vocab_size=32000, num_hidden_layers=c.n_layer, max_position_embeddings=2048, tie_word_embeddings=False,
        hidden_size=c.n_embd, intermediate_size=c.n_inner, num_attention_heads=c.n_head,
        rms_norm_eps=c.layer_norm_epsilon)
    with torch.device("meta"):
        theirs = transformers.LlamaForCausalLM(config)
    assert accounting.base_parameters(c) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("preset", SHAPES)
def test_t5s_totals_are_those_of_transformers(preset):
    transformers = pytest.importorskip("transformers")
    c = SHAPES[preset]
    config = transformers.T5Config(
        vocab_size=c.vocab_size,
        d_model=c.n_embd,
        d_kv=c.head_size,
        d_ff=c.n_inner,
        num_layers=c.n_layer,
        num_heads=c.n_head,
        feed_forward_proj="gated-gelu",
    )
    with torch.device("meta"):
        theirs = transformers.T5ForConditionalGeneration(config)
    # the head of v1.1 is a second table; transformers 5 ties it
    tied = theirs.lm_head.weight is theirs.shared.weight
    own = theirs.lm_head.weight.numel() if tied else 0
    assert accounting.base_parameters(c) == sum(p.numel() for p in theirs.parameters()) + own


def test_llama_adapter_takes_its_papers_share_of_layers():
    shapes = [replace(PRESETS["gpt2"], n_layer=n) for n in (1, 32, *(PRESETS[name].n_layer for name in LLAMA))]
    assert [METHODS["llama-adapter"].defaults(c)["adapter_layers"] for c in shapes] == [1, 30, 30, 38, 56, 75]


def test_what_means_nothing_on_an_encoder_decoder_is_refused():
    line = "'lora' needs a GPT's blocks: an encoder-decoder can be counted with full, hard-prompt, prompt"
    with pytest.raises(Error, match=f"^{line}$"):
        accounting.count(SHAPES["t5-small"], "lora")
    with pytest.raises(Error, match="n_layer must be a whole number of at least 1, not 0"):
        T5Shape(n_layer=0, n_head=1, n_embd=8, n_inner=8)


BASES = PRESETS | SHAPES | {"swiglu with biases": replace(PRESETS["qwen2.5-0.5b"], bias="all"),
                            "gelu": replace(PRESETS["gpt2"], norm="rms")}
SETTINGS = [  # typical ones, defaults, and LoRA on every linear
    *TYPICAL,
    *((name, {}) for name in METHODS if (name, {}) not in TYPICAL),
    ("prefix", dict(prefix_projection=True, space="hidden", encoder_hidden_size=33)),
    ("lora", dict(r=2, target_modules=("attn", "mlp"))),
]


def worked_out(text: str, known: dict) -> float:
    """The value of a line as it is printed."""
    return eval(text.replace(",", "").replace("·", "*"), {"log10": math.log10}, known)


# sizes alone make no other formula than that of such a form of a base
FORMS = ["gpt2", "llama-3.2-1b", "gemma-3-270m", "t5-xxl"]
OTHERS = [name for name in BASES if name not in FORMS]


@pytest.mark.parametrize("method, h", SETTINGS)
@pytest.mark.parametrize("names", quick([FORMS, OTHERS], FORMS), ids=["forms", "others"])
def test_every_line_of_a_derivation_comes_out_as_it_says(names, method, h):
    for name, c in ((name, BASES[name]) for name in names):
        if isinstance(c, T5Shape) and method not in accounting.parameters.encoder_decoder():
            continue
        if h.get("target_modules") == ("attn", "mlp"):
            h = h | {"target_modules": list(linears(c))}
        try:
            sizes = in_shape(c, h) if isinstance(c, GPTConfig) else h
            accounting.count(c, method, **sizes)
        except Error:  # a method may refuse a shape, but not GPT-2's
            assert name != "gpt2"
            continue
        found = params.derivation(params.ParamsSettings(name, method, sizes, tasks=7, batch_size=2, seq_len=16), c)
        steps = {x["name"]: x["value"] for x in found["steps"]}
        counted = (accounting.base_parameters(c), *accounting.count(c, method, **sizes))
        assert (steps["base"], steps["trained"], steps["stored for one task"]) == counted
        for x in found["steps"]:
            value = x["value"] if isinstance(x["value"], int) else pytest.approx(x["value"])
            assert worked_out(x["numbers"], {}) == value, (name, x)
        for x in found["steps"][:3]:
            assert worked_out(x["formula"], found["symbols"] | {"base": steps["base"]}) == x["value"], (name, x)


def call(argv: str) -> tuple[list[str], dict]:
    """bench.py params as a person calls it: the lines of its text, and its document."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        bench.main(["params", *argv.split()])
    *text, document = out.getvalue().splitlines()
    return text, json.loads(document)


def test_the_articles_derivation():
    text, document = call("--model t5-xxl --method prompt --num-virtual-tokens 5")
    text = "\n".join(" ".join(line.split()) for line in text)
    for line in (
        "= 11,135,332,352 parameters",
        "trained P·C\n= 5·4,096\n= 20,480 parameters",
        "= log10(11,135,332,352 / 20,480)\n= 5.74",
        "1,000 whole models 4·tasks·base\n= 4·1,000·11,135,332,352\n= 44,541,329,408,000 bytes = 44.5 TB",
        "= 4·1,000·20,480\n= 81,920,000 bytes = 81.9 MB",
        "one base and 1,000 tasks 4·tasks·stored + 4·base\n= 4·1,000·20,480 + 4·11,135,332,352\n"
        "= 44,623,249,408 bytes = 44.6 GB",
    ):
        assert line in text, line
    assert document["steps"][1] == {"name": "trained", "formula": "P·C", "numbers": "5·4,096", "value": 20_480,
                                    "unit": "parameters"}


@pytest.mark.parametrize("model", ["gpt2", "smollm2-135m", "t5-small"])
def test_the_table_has_a_row_a_method_and_the_ledgers_numbers(model):
    text, document = call(f"--model {model} --num-virtual-tokens 20 --r 4 --tasks 10")
    c = shape_of(model)
    for r, line in zip(document["rows"], text[-len(document["rows"]) :], strict=True):
        h = {name: r[name] for name in accounting.depends_on(r["method"])}
        assert (r["trained"], r["stored"]) == accounting.count(c, r["method"], **h)
        assert line.startswith(r["method"]) and f" {r['stored']:,} " in line
        assert r["percent"] == 100 * r["stored"] / accounting.base_parameters(c)
        if model != "t5-small":
            assert r.items() >= accounting.ledger(c, r["method"], 8, 128, **h).items()
            assert r["tasks_bytes"] == accounting.storage_bytes(c, r["method"], 10, **h)
            held = params.in_units(sum(accounting.train_bytes(c, r["method"], 8, 128, **h)))
            step, full = (sum(accounting.flops(c, m, 8, 128, **of)) for m, of in ((r["method"], h), ("full", {})))
            cells = (held, f"{step / 1e9:,.1f}", f"{step / full:.2f}", params.in_units(r["wire_2"]))
            assert not METHODS[r["method"]].trains() or all(f" {cell} " in line for cell in cells)
    refused = {"smollm2-135m": {"bitfit"}}.get(model, set())  # no biases
    methods = accounting.parameters.encoder_decoder() if model == "t5-small" else METHODS
    assert {r["method"] for r in document["rows"]} == set(methods) - refused
    left_out = [method for method in METHODS if method not in methods or method in refused]
    line = f"left out, not possible on this base (--method says why): {', '.join(left_out)}"
    assert document["left_out"] == left_out and (line in text) == bool(left_out)


@pytest.mark.parametrize("name", ["out", "seq_len"])
def test_a_cost_that_depends_on_a_name_of_the_scripts_own_flags_is_refused(monkeypatch, name):
    monkeypatch.setattr(params, "SIZE_FLAGS", {name: ["lora"]})
    monkeypatch.setattr(params, "ALL_FLAGS", {name: Flag(name, {"type": int})})
    with pytest.raises(Error, match=f"^--{name.replace('_', '-')} is a flag of the script itself: .* needs another"):
        call("--model gpt2")


def test_of_a_folder_only_its_config_is_read(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, '
        '"num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6}'
    )
    assert shape_of(str(tmp_path)).resolved() == PRESETS["llama-7b"].resolved()
    assert call(f"--model {tmp_path} --method lora")[1]["base_parameters"] == 6_738_415_616


@pytest.mark.parametrize("argv", ["--model nano --method adapter --bottleneck-size 1000",
                                  "--model t5-small --method prompt --num-virtual-tokens 200000"])
def test_an_adapter_may_be_larger_than_the_base(argv):
    result = call(argv)[1]
    value = {step["name"]: step["value"] for step in result["steps"]}
    assert value["stored for one task"] > value["base"] and value["of the base"] > 100
    assert value["orders of magnitude"] == pytest.approx(-math.log10(value["of the base"] / 100))
    assert all(math.isfinite(float(text.replace(",", ""))) for text in map(params.rounded, (-0.123, 0.0, 12.5, 1234.5)))
    assert params.table(result)


@pytest.mark.parametrize(
    "argv, message",
    [
        ("--model gpt5", "--model must be a Hugging Face folder or one of nano, gpt2"),
        ("--model .", ". holds no config.json: a base is a Hugging Face model folder"),
        ("--method magic", "--method must be one of full, hard-prompt"),
        ("--method prompt --r 4", "the cost of 'prompt' depends on num_virtual_tokens, not on 'r'"),
        ("--method prompt --num-virtual-tokens 1000", "1000 virtual + 128 real tokens do not fit the block size of "),
        ("--seq-len 1024", "8 virtual + 1024 real tokens do not fit the block size of 1024"),  # by default
        ("--model t5-xxl --seq-len 512", "of t5-xxl only parameters are counted"),
        ("--method hard-prompt --base-dtype nf4", "is of the memory to train, and hard-prompt trains nothing"),
        ("--method full --base-dtype nf4", "--base-dtype nf4 is for a frozen base: full trains every weight"),
        ("--num-virtual-tokens 1000", "1000 virtual + 128 real tokens do not fit the block size of 1024"),
        ("--method prefix --num-virtual-tokens 0", "num_virtual_tokens must be a whole number of at least 1, not 0"),
        ("--model t5-xxl --method lora", "'lora' needs a GPT's blocks"),
        ("--tasks 0", "tasks must be a whole number of at least 1, not 0"),
        ("--seq-len 0", "--seq-len must be at least 1, not 0"),
        ("--space keys", "argument --space: invalid choice: 'keys' (choose from"),
    ],
)
def test_what_cannot_be_answered_is_one_line(argv, message):
    with pytest.raises(Error) as e:
        call(argv)
    assert message in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("call", [
    lambda: accounting.base_parameters("gpt2"), lambda: accounting.base_weight_bytes("gpt2"),
    lambda: accounting.bytes_per_step("gpt2", 10, 2), lambda: accounting.wire_bytes(SHAPES["t5-xxl"], "prompt", 2),
    lambda: accounting.base_weight_bytes(SHAPES["t5-xxl"], "nf4"), lambda: accounting.count(PRESETS["gpt2"], ["lora"]),
    lambda: accounting.train_bytes(PRESETS["gpt2"], "lora", 1, 2, base_bytes=-2),
    lambda: accounting.train_bytes(PRESETS["gpt2"], "lora", 1, 2, base_bytes=torch.bfloat16)])
def test_what_has_no_count_is_refused_in_one_line(call):
    with pytest.raises(Error) as e:
        call()
    assert "\n" not in str(e.value)
