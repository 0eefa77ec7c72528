"""Choices of the config: the page's lines, totals of published models, and windows beside virtual tokens."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from conftest import tiny
from families import base_of, opened_by_transformers

from minipeft import GPT, PRESETS, Error, GPTConfig, Prefix, adapt, generate, prefix_from_prompt, prompt_from_tokens
from minipeft.__main__ import nearest_tokens
from minipeft.bench import params
from minipeft.config import BY_LAYER, CHOICES, GEMMA3, LLAMA, RopeScaling
from minipeft.files.families import FAMILIES, architecture, config_from_json, config_to_json
from minipeft.inference.generation import allocate_cache

ROOT = Path(__file__).parents[1]
PAGES = ["docs/architectures.md", "docs/zh-CN/architectures.md"]


FAMILIES_TABLE, CHOICES_TABLE = 0, 1


def rows(page: str, table: int) -> list[list[str]]:
    """The cells of a table of a page, without its head."""
    text = re.findall(r"(?:^\|.*\n)+", (ROOT / page).read_text(encoding="utf-8"), re.M)[table]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines()[2:]]


@pytest.mark.parametrize("page", PAGES)
def test_every_choice_is_on_the_page_with_a_line_that_is_there(page):
    found = {field.strip("`"): (file, line.strip("`").replace("\\|", "|"))
             for field, _, file, line in rows(page, CHOICES_TABLE)}
    told = {*CHOICES, *BY_LAYER, "n_kv_head", "head_dim", "rope_scaling"}
    assert set(found) == told and told <= {f.name for f in fields(GPTConfig)}
    for field, (file, line) in found.items():
        lines = (ROOT / "minipeft" / file).read_text(encoding="utf-8").splitlines()
        assert any(line == x.strip().partition("  # ")[0] for x in lines), (field, line)


@pytest.mark.parametrize("page", PAGES)
def test_the_page_has_every_family_with_what_it_chose(page):
    table = {cells[0].strip("`"): cells[1:] for cells in rows(page, FAMILIES_TABLE)}
    assert list(table) == list(FAMILIES)
    for kind, (_, _, norm, mlp, _, by_layer) in table.items():
        choices, layers = FAMILIES[kind]
        config = GPTConfig(**choices)
        assert mlp == {"gelu": "GELU", "swiglu": "SwiGLU", "geglu": "GEGLU"}[config.mlp]
        assert ("1 + w" in norm) == (config.norm == "rms1p") and ("RMSNorm" in norm) == (config.norm != "layer")
        assert ("q" in norm) == config.qk_norm and (by_layer == "-") == (not layers)


SHARED = dict(pad_token_id=None, bos_token_id=None, eos_token_id=None)
PUBLISHED = {  # transformers' class, the model's config.json as far as sizes and choices go, and its total
    "gpt2": ("GPT2", {}, 124_439_808),
    "smollm2-135m": ("Llama", dict(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, rms_norm_eps=1e-5, rope_theta=100000,
        tie_word_embeddings=True), 134_515_008),
    "tinyllama-1.1b": ("Llama", dict(
        hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
        num_key_value_heads=4, max_position_embeddings=2048, rms_norm_eps=1e-5), 1_100_048_384),
    "llama-3.2-1b": ("Llama", dict(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, max_position_embeddings=131072, rms_norm_eps=1e-5, rope_theta=500000.0,
        rope_scaling={"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "rope_type": "llama3",
                      "original_max_position_embeddings": 8192}, tie_word_embeddings=True), 1_235_814_400),
    "qwen2.5-0.5b": ("Qwen2", dict(
        hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
        max_position_embeddings=32768, rope_theta=1000000.0, tie_word_embeddings=True), 494_032_768),
    "qwen3-0.6b": ("Qwen3", dict(
        hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
        head_dim=128, max_position_embeddings=40960, rope_theta=1000000, tie_word_embeddings=True), 596_049_920),
    "smollm3-3b": ("SmolLM3", dict(max_position_embeddings=65536, rope_theta=5000000.0), 3_075_098_624),
    "gemma-3-270m": ("Gemma3", dict(
        vocab_size=262144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18, num_attention_heads=4,
        num_key_value_heads=1, head_dim=256, max_position_embeddings=32768, sliding_window=512), 268_098_176),
    "gemma-3-1b": ("Gemma3", dict(
        vocab_size=262144, hidden_size=1152, intermediate_size=6912, num_hidden_layers=26, num_attention_heads=4,
        num_key_value_heads=1, head_dim=256, max_position_embeddings=32768, sliding_window=512), 999_885_952),
    "mistral-7b": ("Mistral", dict(max_position_embeddings=32768, rms_norm_eps=1e-5, sliding_window=4096),
                   7_241_732_096),
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_totals_of_published_models_are_those_of_transformers_and_of_their_files(preset):
    transformers = pytest.importorskip("transformers")
    name, sizes, total = PUBLISHED[preset]
    config = getattr(transformers, f"{name}Text{'Config'}" if name == "Gemma3" else f"{name}Config")(**sizes, **SHARED)
    with torch.device("meta"):
        theirs = getattr(transformers, "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM")(config)
    settings = params.ParamsSettings(preset, None, {}, tasks=1, batch_size=1, seq_len=8)
    assert params.run(settings)["base_parameters"] == theirs.num_parameters() == total
    assert config_from_json(config.to_dict(), ROOT).resolved() == PRESETS[preset].resolved()
    assert config_from_json(config_to_json(PRESETS[preset]), ROOT).resolved() == PRESETS[preset].resolved()


def test_a_window_that_a_file_does_not_name_is_transformers_own():
    transformers = pytest.importorskip("transformers")
    for config in (transformers.MistralConfig(), transformers.Gemma3TextConfig()):
        given = config.to_dict()
        told = config_from_json(given, ROOT)
        for name in ("sliding_window", "sliding_window_pattern", "layer_types"):
            given.pop(name, None)
        assert config_from_json(given, ROOT) == told and told.sliding_window == config.sliding_window == 4096


def test_configs_that_describe_one_model_are_one_when_resolved():
    gemma = GPTConfig(n_layer=4, sliding_window=8, rope_theta=50.0, **GEMMA3)
    same = [dict(sliding_window_pattern=5), dict(rope_local_base_freq=50.0), dict(head_dim=64, n_kv_head=12)]
    for change in same:
        assert GPTConfig(**vars(gemma) | change).resolved() == gemma.resolved(), change
    full = GPTConfig(n_layer=4, rope_theta=50.0, **GEMMA3)
    window = dict(sliding_window_pattern=1, rope_local_base_freq=7.0)
    assert GPTConfig(**vars(gemma) | window).resolved() == full.resolved() != gemma.resolved()
    rare = GPTConfig(n_layer=4, no_rope_layer_interval=5, **LLAMA)
    assert rare.resolved() == GPTConfig(n_layer=4, **LLAMA).resolved()


@pytest.mark.parametrize("choices", [
    dict(norm="rms1p", sandwich_norm=True, qk_norm=True, sliding_window=5, sliding_window_pattern=2,
         position="rotary", rope_local_base_freq=9.0),
    dict(head_dim=None, n_head=4, n_kv_head=2),  # GPT-2's choices, which has no grouped heads
    dict(sliding_window=5, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 16), **GEMMA3)])  # whose windows are not scaled
def test_a_mixture_that_no_family_has_keeps_its_choices_in_a_file(choices, tmp_path):
    c = GPTConfig(97, 48, **dict(n_layer=3, n_head=3, n_embd=32, head_dim=8) | choices)
    assert architecture(c) == "minipeft"
    base = GPT(c)
    base.save_pretrained(tmp_path)
    again = GPT.from_pretrained(tmp_path)
    idx = torch.randint(97, (2, 11))
    assert again.config == c and torch.equal(again(idx), base(idx))


@pytest.mark.parametrize("wrong, message", [
    (dict(head_dim=0), "^head_dim must be a whole number of at least 1, not 0$"),
    (dict(head_dim=7, position="rotary"), "^rotary positions turn pairs of channels: head size 7 must be even$"),
    (dict(qk_norm=2), "^qk_norm must be False or True, not 2$"),
    (dict(mlp="reglu"), "^mlp must be 'gelu' or 'swiglu' or 'geglu', not 'reglu'$"),
    (dict(sliding_window=0), "^sliding_window must be a whole number of at least 1, not 0$"),
    (dict(sliding_window_pattern=6), "^sliding_window_pattern and rope_local_base_freq need a sliding_window$"),
    (dict(rope_local_base_freq=-1.0), "^rope_local_base_freq must be a positive number, not -1.0$"),
    (dict(sliding_window=4, no_rope_layer_interval=4), "cannot be combined: layers are of two kinds at most$"),
])
def test_choices_that_cannot_be_are_refused_in_one_line(wrong, message):
    with pytest.raises(Error, match=message):
        GPTConfig(**wrong)


@pytest.mark.parametrize("P", [3, 8])
def test_virtual_tokens_stay_visible_beyond_the_window(P, idx):
    """Each of them moves the last position, by a prompt and by the prefix made of it, which agree exactly."""
    base = tiny("gemma3", torch.float64)
    prompt = torch.randn(1, P, 32, dtype=torch.float64, requires_grad=True)
    assert idx.size(1) > 2 * base.config.sliding_window
    by_prompt, prefix = base(idx, prompt=prompt), prefix_from_prompt(base, prompt)
    torch.testing.assert_close(base(idx, prefix=prefix), by_prompt, rtol=0, atol=1e-11)
    gradient, = torch.autograd.grad(by_prompt[:, -1].sin().sum(), prompt)
    assert (gradient.abs().amax(dim=(0, 2)) > 1e-6).all()
    far = base(idx.clone().index_fill_(1, torch.tensor([0]), 5), prompt=prompt)  # in one layer of windows alone
    assert base.config.window(0) == 5 and base.config.window(1) is None and not torch.equal(far, by_prompt)


@torch.no_grad()
def test_a_window_in_every_layer_hides_what_is_far_and_no_virtual_token():
    c = GPTConfig(97, 48, n_layer=1, n_head=4, n_embd=32, sliding_window=4, **LLAMA)
    torch.manual_seed(0)
    base, idx = GPT(c), torch.randint(97, (1, 12))
    prompt = torch.randn(1, 5, 32)
    plain = base(idx, prompt=prompt)
    for t in range(12):
        changed = base(idx.clone().index_fill_(1, torch.tensor([t]), (idx[0, t].item() + 1) % 97), prompt=prompt)
        moved = (changed - plain).abs().amax(dim=(0, 2)) > 0
        assert moved.tolist() == [t <= i < t + 4 for i in range(12)]
    for p in range(5):
        other = prompt.clone()
        other[:, p] += 1
        assert ((base(idx, prompt=other) - plain).abs().amax(dim=(0, 2)) > 0).all()


@pytest.mark.parametrize("shape", ["gemma3", "mistral"])
@pytest.mark.parametrize("method", ["prompt", "prefix"])
@torch.no_grad()
def test_in_peft_virtual_tokens_slide_out_of_the_window(shape, method, tmp_path):
    """Equal as far as no window cuts; beyond that PEFT hides virtual tokens, and they stay visible here."""
    peft = pytest.importorskip("peft")
    base, P = base_of(shape), 3
    base.save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    model = adapt(base, method, num_virtual_tokens=P)
    for p in model.trainable_parameters():
        p.normal_()
    model.save(tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(opened_by_transformers(tmp_path / "base"), tmp_path / "adapter").eval()
    window, idx = base.config.sliding_window, torch.randint(97, (2, 12))
    differs = (model(idx) - theirs(idx).logits[:, -12:]).abs().amax(dim=(0, 2))
    assert window == 6 and (differs[: window - P] < 1e-4).all() and (differs[window - P :] > 1e-3).all()


@pytest.mark.parametrize("B", [1, 2])  # a single row has its prefix in the cache
@pytest.mark.parametrize("method, h", [("prompt", {}), ("prefix", {}), ("prefix", {"positions": 20}),
                                       ("prefix", {"key_bias": True}), ("llama-adapter", {})])
@pytest.mark.parametrize("shape", ["mistral", "gemma3"])
@torch.no_grad()
def test_a_cache_sees_through_the_window_what_one_pass_sees(shape, method, h, B):
    """Token by token, far beyond the window: the states of each are those of a pass over the whole text."""
    base, idx = base_of(shape), torch.randint(97, (B, 20))
    model = adapt(base, method, **h)
    for p in model.trainable_parameters():
        p.normal_()
    want = base.hidden(idx, *model.slots())
    cache, slots = allocate_cache(base, model.slots(), B, 20)
    first, found = 3, []
    for start, stop in [(0, first), *((t, t + 1) for t in range(first, 20))]:
        found.append(base.hidden(idx[:, start:stop], *slots, cache=cache))
        cache = cache.after(stop - start + (0 if slots.prompt is None else slots.prompt.size(1)))
        slots = slots._replace(prompt=None)
    torch.testing.assert_close(torch.cat(found, dim=1), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", ["mistral", "gemma3"])
@torch.no_grad()
def test_rows_of_different_lengths_have_the_window_of_their_own_text(shape):
    base = base_of(shape)
    prompt = adapt(base, "prompt", num_virtual_tokens=4)
    for p in prompt.trainable_parameters():
        p.normal_()
    idx, lengths = torch.randint(97, (3, 15)), torch.tensor([15, 2, 9])
    for model in (base, prompt):
        together = generate(model, idx, 8, lengths=lengths)
        for row, n in enumerate(lengths.tolist()):
            alone = generate(model, idx[row : row + 1, :n], 8)
            assert torch.equal(together[row, : n + 8], alone[0]), (row, n)


@torch.no_grad()
def test_a_soft_prompt_lives_behind_the_scaling_of_embeddings():
    base = tiny("gemma3")
    prompt = prompt_from_tokens(base, torch.tensor([5, 6]))
    torch.testing.assert_close(prompt[0], base.wte.weight[[5, 6]] * 32**0.5)
    for token, (best, *_) in zip((5, 6), nearest_tokens(base, prompt[0]), strict=True):
        assert best[0] == token and best[2] < 0.01
    torch.manual_seed(0)
    random = adapt(base, "prompt", num_virtual_tokens=40).method.prompt_embeddings
    assert random.std().item() == pytest.approx(prompt_from_tokens(base, torch.arange(97)).std().item(), rel=0.1)
    low = tiny("gemma3", torch.bfloat16)  # sqrt(32) = 5.657 is 5.65625 there, in transformers too
    assert low.embedding_scale == 5.65625


@torch.no_grad()
def test_a_gated_prefix_under_a_window_has_all_its_keys():
    base, idx = base_of("mistral"), torch.randint(97, (2, 15))
    c = base.config
    k, v = torch.randn(2, 3, 1, c.n_kv, 5, c.head_size)
    plain = base(idx, prefix=Prefix(k, v, torch.ones(3, c.n_head)))
    for p in range(5):
        other = v.clone()
        other[:, :, :, p] += 1
        assert ((base(idx, prefix=Prefix(k, other, torch.ones(3, c.n_head))) - plain).abs().amax(dim=(0, 2)) > 0).all()
