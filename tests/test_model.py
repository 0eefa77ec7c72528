"""The GPT against transformers' GPT-2, and its two slots."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import one_shape, read_behind, tiny

from minipeft import GPT, Error, GPTConfig, Prefix, prefix_from_prompt, prompt_from_tokens
from minipeft.adapters import fingerprint
from minipeft.config import LLAMA, RopeScaling, hookable_modules, linears

HF_SHAPES = [  # vocab_size, block_size, n_layer, n_head, n_embd
    (97, 32, 1, 1, 16),
    (257, 64, 3, 4, 48),
    (1000, 128, 4, 2, 64),
]


def hf_gpt2(shape, seed=0):
    transformers = pytest.importorskip("transformers")
    V, block, L, nh, C = shape
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=V, n_positions=block, n_layer=L, n_head=nh, n_embd=C, initializer_range=0.2
    )
    return transformers.GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("shape", HF_SHAPES)
def test_logits_equal_transformers_in_both_directions(shape, safe, tmp_path):
    theirs = hf_gpt2(shape)
    if safe:
        theirs.save_pretrained(tmp_path / "theirs")
    else:  # the older format, which transformers reads but no longer writes
        theirs.config.save_pretrained(tmp_path / "theirs")
        torch.save(theirs.state_dict(), tmp_path / "theirs" / "pytorch_model.bin")
    ours = GPT.from_pretrained(tmp_path / "theirs")
    idx = torch.randint(shape[0], (2, shape[1]))
    with torch.no_grad():
        want = theirs(idx).logits
        torch.testing.assert_close(ours(idx), want, rtol=0, atol=1e-4)
        assert want.std() > 0.1

        ours.save_pretrained(tmp_path / "ours", safe_serialization=safe)
        assert (tmp_path / "ours" / ("model.safetensors" if safe else "pytorch_model.bin")).exists()
        back = type(theirs).from_pretrained(tmp_path / "ours")
        torch.testing.assert_close(back(idx).logits, want, rtol=0, atol=1e-6)


def test_the_layout_of_the_released_gpt2_files_is_read(tmp_path):
    """They name their tensors without "transformer.", hold each block's mask, and sometimes the tied head once more."""
    base = tiny("learned")
    base.save_pretrained(tmp_path, safe_serialization=False)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["minipeft"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    state = {
        k.removeprefix("transformer."): t
        for k, t in torch.load(tmp_path / "pytorch_model.bin", weights_only=True).items()
    }
    state |= {
        "lm_head.weight": state["wte.weight"].clone(),
        "h.0.attn.bias": torch.ones(1, 1, 48, 48),
        "h.0.attn.masked_bias": torch.ones(()),
    }
    torch.save(state, tmp_path / "pytorch_model.bin")
    again = GPT.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(t, again[name]) for name, t in base.state_dict().items())

    state["lm_head.weight"][0] += 1
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(Error, match="head is tied"):
        GPT.from_pretrained(tmp_path)


def test_a_prefix_is_transformers_past_key_values(tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = hf_gpt2(HF_SHAPES[1])
    theirs.save_pretrained(tmp_path)
    ours = GPT.from_pretrained(tmp_path)
    B, P, T = 2, 5, 9
    prefix = torch.randn(3, 2, B, 4, P, 12)
    cache = transformers.DynamicCache()
    for layer in range(3):
        cache.update(prefix[layer, 0], prefix[layer, 1], layer)
    idx = torch.randint(257, (B, T))
    with torch.no_grad():
        want = theirs(idx, past_key_values=cache, position_ids=torch.arange(P, P + T).expand(B, T)).logits
        torch.testing.assert_close(ours(idx, prefix=prefix), want, rtol=0, atol=1e-4)


def test_rotary_equals_transformers_llama_rotation():
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    from minipeft.parts.block import rotary_tables, rotate

    q, k = torch.randn(2, 4, 9, 16), torch.randn(2, 4, 9, 16)
    rope = rotary_tables(torch.arange(3, 12), 16, 10000.0, torch.float32)
    cos, sin = (table[:, 0] for table in rope)  # (1, T, hs)
    torch.testing.assert_close((rotate(q, rope), rotate(k, rope)), llama.apply_rotary_pos_emb(q, k, cos, sin))
    angle = torch.arange(3, 12)[:, None] / 10000 ** (torch.arange(0, 16, 2) / 16)
    torch.testing.assert_close(cos[0, :, :8], angle.cos())
    torch.testing.assert_close(cos[0, :, 8:], angle.cos())
    torch.testing.assert_close(sin[0], torch.cat([angle, angle], dim=1).sin())
    each = rotary_tables(
        torch.stack([torch.arange(3, 12), torch.arange(9)]), 16, 10000.0, torch.float32
    )  # positions of each row
    torch.testing.assert_close(each[0][0], rope[0][0])
    want = llama.apply_rotary_pos_emb(q, k, each[0][:, 0], each[1][:, 0])
    torch.testing.assert_close((rotate(q, each), rotate(k, each)), want)


def test_far_positions_keep_their_angles_in_a_bfloat16_base():
    _, ((cos, sin), *_) = tiny("rotary", torch.bfloat16).add_positions(torch.zeros(1, 47, 32, dtype=torch.bfloat16))
    assert cos.dtype == torch.float32
    torch.testing.assert_close(sin[0, 0, 46, 0], torch.tensor(46.0).sin())


def test_hooks_name_modules(base, idx):
    def double(x, y):
        return 2 * y

    layers = [{"mlp": double}] * 3
    assert (base(idx, hooks=layers) - base(idx)).abs().max() > 0.1
    first, *_ = places = hookable_modules(base.config)
    assert {"attn.heads", "attn", "mlp.act", "mlp"} == set(places) - set(linears(base.config))
    for wrong in (layers[:2], [{first.removeprefix("attn."): double}] * 3):
        with pytest.raises(Error, match=f"each of 3 layers, with names of {', '.join(places)}$"):
            base(idx, hooks=wrong)


@pytest.mark.parametrize(
    "shape, adds", [({}, ("c_proj",)), (LLAMA | {"bias": "qkv", "tied": False}, ("o_proj", "down_proj"))]
)
def test_initial_weights_are_gpt2s(shape, adds):
    """N(0, 0.02²), and 0.02/sqrt(2L) where a block adds to the residual stream (Radford et al. 2019 §2.3)."""
    torch.manual_seed(0)
    for name, p in GPT(
        GPTConfig(vocab_size=500, block_size=64, n_layer=8, n_head=4, n_embd=128, **shape)
    ).named_parameters():
        if p.dim() == 2:
            assert p.std().item() == pytest.approx(
                0.02 / 4 if any(place in name for place in adds) else 0.02, rel=0.05
            ), name
        else:
            assert torch.equal(p, torch.ones_like(p) if "ln" in name and "weight" in name else torch.zeros_like(p)), (
                name
            )


@pytest.mark.parametrize("shape", ["rotary", "llama", "smollm3", "gemma3"])
def test_rotary_logits_do_not_depend_on_where_the_text_stands(shape, idx):
    base = tiny(shape, torch.float64)
    gated = Prefix(*torch.randn(2, 3, 1, base.config.n_kv, 5, base.config.head_size).double(), gate=torch.zeros(3, 4))
    x, ropes = base.add_positions(base.embed(idx), first=17)
    for block, rope in zip(base.h, ropes, strict=True):
        x = block(x, rope)
    torch.testing.assert_close(base.ln_f(x) @ base.head.T, base(idx))
    torch.testing.assert_close(base(idx, prefix=gated), base(idx))


def test_a_gated_prefix_takes_no_positions(base, idx):
    """With its gate at zero it is exactly absent, also where positions are a learned table."""
    prefix = Prefix(*torch.randn(2, 3, 1, base.config.n_kv, 5, base.config.head_size), gate=torch.zeros(3, 4))
    torch.testing.assert_close(base(idx, prefix=prefix), base(idx))
    outputs = [base(idx)]
    for layer in range(3):  # every layer has its own
        gate = torch.zeros(3, 4)
        gate[layer] = 1
        outputs.append(base(idx, prefix=prefix._replace(gate=gate)))
    for i, a in enumerate(outputs):
        for b in outputs[:i]:
            assert (a - b).abs().max() > 0.1


def test_a_prefix_and_a_prompt_stand_in_this_order(base, idx):
    """The prefix of one text and the soft prompt of another: the same as both read one after the other."""
    prefix = prefix_from_prompt(base, prompt_from_tokens(base, torch.tensor([5, 6, 7])))
    prompt = prompt_from_tokens(base, torch.tensor([8, 9]))
    read = read_behind(base, torch.tensor([5, 6, 7, 8, 9]), idx)
    torch.testing.assert_close(base(idx, prompt=prompt, prefix=prefix), read, rtol=0, atol=2e-5)
    with pytest.raises(Error, match="39 virtual"):
        base(idx, prompt=torch.zeros(1, 36, 32), prefix=prefix)


@one_shape
def test_no_real_token_no_logits(base):
    assert base(torch.zeros(2, 0, dtype=torch.int64), prompt=torch.zeros(1, 3, 32)).shape == (2, 0, 97)


def test_one_prompt_and_prefix_for_the_batch_or_one_a_row(base, idx):
    prompt, prefix = torch.randn(3, 4, 32), torch.randn(3, 2, 3, base.config.n_kv, 5, base.config.head_size)
    together = base(idx, prompt=prompt, prefix=prefix)
    assert together.shape == (3, 11, 97)
    for row in range(3):
        alone = base(idx[row : row + 1], prompt=prompt[row : row + 1], prefix=prefix[:, :, row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=2e-5)


def test_no_real_token_sees_a_later_one(base, idx):
    changed = idx.clone()
    changed[:, 7] = (idx[:, 7] + 1) % 97
    prefix = torch.randn(3, 2, 1, base.config.n_kv, 5, base.config.head_size)
    a, b = base(idx, prefix=prefix), base(changed, prefix=prefix)
    torch.testing.assert_close(a[:, :7], b[:, :7])
    assert (a[:, 7:] - b[:, 7:]).abs().amax(dim=(0, 2)).min() > 1e-3


@pytest.mark.parametrize("P", [37, 38])
@one_shape
def test_virtual_and_real_tokens_must_fit_the_block_size(base, idx, P):
    prompt, prefix = torch.randn(1, P, 32), torch.randn(3, 2, 1, base.config.n_kv, P, base.config.head_size)
    if P + 11 <= 48:
        assert base(idx, prompt=prompt).shape == base(idx, prefix=prefix).shape == (3, 11, 97)
    else:
        for slot in (dict(prompt=prompt), dict(prefix=prefix)):
            with pytest.raises(Error, match="38 virtual [+] 11 real tokens .* 48"):
                base(idx, **slot)


@pytest.mark.parametrize(
    "slot, message",  # n: heads of keys and values
    [
        (lambda n, hs: dict(prompt=torch.zeros(1, 4, 31)), r"\(1\|B, P, 32\)"),
        (lambda n, hs: dict(prompt=torch.zeros(4, 32)), r"prompt \(4, 32\)"),
        (lambda n, hs: dict(prompt=torch.zeros(2, 4, 32)), "with B 3"),
        (lambda n, hs: dict(prefix=torch.zeros(4, 2, 1, n, 5, hs)), r"\(3, 1\|B, {n}, P, {hs}\)"),
        (lambda n, hs: dict(prefix=torch.zeros(3, 2, 1, n, 5, hs - 1)), r"\(3, 1\|B, {n}, P, {hs}\)"),
        (lambda n, hs: dict(prefix=torch.zeros(3, 2, 1, n + 2, 5, hs)), r"\(3, 1\|B, {n}, P, {hs}\)"),
        (lambda n, hs: dict(prefix=torch.zeros(3, 2, 2, n, 5, hs)), "with B 3"),
        (lambda n, hs: dict(prefix=torch.zeros(3, 3, 1, n, 5, hs)), r"\(L, 2, 1\|B"),
        (lambda n, hs: dict(prefix=torch.zeros(3, 1, n, 5, hs)), r"\(L, 2, 1\|B"),
        (lambda n, hs: dict(prefix=Prefix(*(torch.zeros(x, 1, n, 5, hs) for x in (3, 4)))), "keys and values"),
        (lambda n, hs: dict(prefix=Prefix(*torch.zeros(2, 3, 1, n, 5, hs), torch.zeros(1, 4))), "gate"),
    ],
)
@one_shape
def test_slots_of_another_shape_are_refused(slot, message, base, idx):
    n, hs = base.config.n_kv, base.config.head_size
    with pytest.raises(Error, match=message.replace("{n}", str(n)).replace("{hs}", str(hs))):
        base(idx, **slot(n, hs))
    with pytest.raises(Error, match="idx"):
        base(idx[0])


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(n_embd=30, n_head=4), "does not divide"),
        (dict(n_layer=0), "n_layer must be"),
        (dict(position="alibi"), "'learned' or 'rotary'"),
        (dict(n_embd=12, n_head=4, position="rotary"), "must be even"),
        (dict(n_kv_head=5), "n_head 12 does not divide into groups over n_kv_head 5"),
        (dict(n_kv_head=0), "n_kv_head must be"),
        (dict(n_inner=0), "n_inner must be"),
        (dict(norm="batch"), "'layer' or 'rms'"),
        (dict(bias=True), "'all' or 'qkv' or 'none'"),
        (dict(rope_scaling=8.0), "must be a RopeScaling or None"),
        (dict(rope_scaling=RopeScaling(0.0, 1.0, 4.0, 16)), "rope_scaling's factor must be a positive number"),
        (dict(rope_scaling=RopeScaling(8.0, 4.0, 4.0, 16)), "below its high_freq_factor"),
    ],
)
def test_a_config_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(Error, match=message):
        GPTConfig(**wrong)


def test_a_gpt_is_made_of_a_config():
    for wrong in ("nano", {"n_layer": 2}):
        with pytest.raises(Error, match="a GPT is made of a GPTConfig, not .*: GPT.from_pretrained opens one by name"):
            GPT(wrong)


def test_fields_that_learned_positions_do_not_read_make_no_other_model(tmp_path):
    plain = GPTConfig(97, 32, n_layer=2, n_head=2, n_embd=16)
    for other in (replace(plain, rope_theta=500.0), replace(plain, rope_scaling=RopeScaling(2.0, 1.0, 4.0, 16))):
        base = GPT(other)
        base.save_pretrained(tmp_path)
        again = GPT.from_pretrained(tmp_path)
        assert other.resolved() == again.config.resolved() == plain.resolved()
        assert fingerprint(base) == fingerprint(again)
