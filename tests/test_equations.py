"""Methods against their equations, written out: prefix, LoRA, bottleneck adapter, LLaMA-Adapter, hard prompt."""

import pytest
import torch
from conftest import FROZEN, SHAPES, in_shape, moved, one_shape, quick, read_behind

from minipeft import adapt, hidden_from_prompt, load_adapter, prefix_from_hidden, prompt_from_tokens
from minipeft.config import linears
from minipeft.files.tensors import StoredTensors
from minipeft.training.prompt_search import search


@pytest.mark.parametrize("name, h", [("prompt", {}), ("prefix", {}), ("prefix", dict(space="hidden"))])
def test_starting_from_a_text_answers_as_if_the_text_were_read(name, h, base, idx):
    text = torch.tensor([3, 1, 4])
    model = adapt(base, name, num_virtual_tokens=5, init=text, **h)
    repeated = torch.tensor([3, 1, 4, 3, 1])
    read = read_behind(base, repeated, idx)
    torch.testing.assert_close(model(idx), read, rtol=0, atol=2e-5)


def test_starting_from_the_vocabulary_takes_rows_of_the_embedding(base):
    rows = adapt(base, "prompt", num_virtual_tokens=4, init="vocab").method.prompt_embeddings
    assert all((base.embed(torch.arange(97)) == row).all(dim=1).any() for row in rows)


def test_the_hidden_space_is_the_literal_hidden_prefix(base, idx):
    model = adapt(base, "prefix", num_virtual_tokens=4, space="hidden")
    hidden = model.method.prompt_embeddings.view(4, 3, 32).transpose(0, 1).unsqueeze(1)
    torch.testing.assert_close(model(idx), base(idx, prefix=prefix_from_hidden(base, hidden)))
    prompt = prompt_from_tokens(base, torch.tensor([5, 6, 7, 8]))
    with torch.no_grad():
        model.method.prompt_embeddings.copy_(hidden_from_prompt(base, prompt)[:, 0].transpose(0, 1).reshape(4, -1))
    torch.testing.assert_close(model(idx), base(idx, prompt=prompt), rtol=0, atol=2e-5)


def test_the_projection_is_li_and_liangs_mlp(base):
    method = adapt(base, "prefix", num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=7).method
    w1, b1, w2, b2 = (
        method.transform[0].weight,
        method.transform[0].bias,
        method.transform[2].weight,
        method.transform[2].bias,
    )
    torch.testing.assert_close(method.rows(), torch.tanh(method.embedding @ w1.T + b1) @ w2.T + b2)


@pytest.mark.parametrize("h", [h for name, h in FROZEN if name == "lora"])
def test_lora_changes_weights_by_matrices_of_low_rank(h, base):
    """As large as test_methods.py holds them to."""
    model = moved(adapt(base, "lora", **in_shape(base.config, h)))
    assert {int(torch.linalg.matrix_rank(change)) for change in model.method.weight_changes(base).values()} == {h["r"]}


@one_shape
def test_lora_drops_out_in_training_alone(base, idx, tmp_path):
    model = moved(adapt(base, "lora", lora_dropout=0.5))
    assert not torch.equal(model(idx), model(idx))
    model.gradient_checkpointing(True)  # the second run of a block must drop the same
    torch.manual_seed(1)
    loss = model.loss(idx, idx)
    kept = torch.autograd.grad(loss, list(model.trainable_parameters()))
    model.gradient_checkpointing(False)
    torch.manual_seed(1)
    for a, b in zip(kept, torch.autograd.grad(model.loss(idx, idx), list(model.trainable_parameters())), strict=True):
        torch.testing.assert_close(a, b)
    model.save(tmp_path)
    loaded = load_adapter(base, tmp_path)  # to be used, until somebody trains it
    assert not loaded.training and torch.equal(loaded(idx), loaded(idx))
    model.eval()
    plain = moved(adapt(base, "lora"))
    plain.method.load_state_dict(model.method.state_dict())
    assert torch.equal(model(idx), plain(idx))


def test_adapters_are_houlsbys_equation(base, idx):
    model = moved(adapt(base, "adapter", bottleneck_size=5))
    x, ropes = base.add_positions(base.embed(idx))
    for block, rope, layer in zip(base.h, ropes, model.method.layers, strict=True):

        def adapter(y, a):
            return y + torch.nn.functional.gelu(y @ a.down.T + a.b_down) @ a.up.T + a.b_up

        x = x + adapter(block.ln_1_post(block.attn(block.ln_1(x), rope)), layer["attn"])
        x = x + adapter(block.ln_2_post(block.mlp(block.ln_2(x))), layer["mlp"])
    torch.testing.assert_close(model(idx), base.ln_f(x) @ base.head.T, rtol=0, atol=1e-5)


def test_llama_adapter_is_its_equation(base, idx):
    """Beside every softmax over the text one over the prompts, times the head's gate; the lowest layer goes without."""
    model = moved(adapt(base, "llama-adapter", adapter_len=4, adapter_layers=2), by=0.5)
    x, ropes = base.add_positions(base.embed(idx))
    for i, (block, rope) in enumerate(zip(base.h, ropes, strict=True)):
        a = block.ln_1(x)
        y = block.attn(a, rope)
        if i > 0:
            prompt, gate = model.method.adaption_prompt[i - 1], model.method.adaption_gate[i - 1]
            if "attn.c_attn" in linears(base.config):
                k, v = (prompt @ block.attn.c_attn.weight.T + block.attn.c_attn.bias)[:, 32:].chunk(2, dim=1)
                out = block.attn.c_proj.weight
            else:
                k, v = prompt @ block.attn.k_proj.weight.T, prompt @ block.attn.v_proj.weight.T
                out = block.attn.o_proj.weight
            n_kv, hs = base.config.n_kv, base.config.head_size  # each for nh / n_kv heads of queries
            k, v = (z.view(4, n_kv, hs) for z in (k, v))
            k, v = (
                z.transpose(0, 1).repeat_interleave(4 // n_kv, dim=0) for z in (block.attn.k_norm(k), v)
            )  # (nh, K, hs)
            q, _, _ = block.attn.qkv(a, rope)
            o = gate.view(4, 1, 1) * ((q @ k.mT / hs**0.5).softmax(-1) @ v)
            y = y + o.transpose(1, 2).reshape(*x.shape[:2], -1) @ out.T
        x = x + block.ln_1_post(y)
        x = x + block.ln_2_post(block.mlp(block.ln_2(x)))
    torch.testing.assert_close(model(idx), base.ln_f(x) @ base.head.T, rtol=0, atol=1e-5)


def test_a_hard_prompt_is_its_text_and_trains_nothing(base, idx, tmp_path):
    model = adapt(base, "hard-prompt", tokens=torch.tensor([5, 6, 7]))
    read = read_behind(base, torch.tensor([5, 6, 7]), idx)
    torch.testing.assert_close(model(idx), read, rtol=0, atol=2e-5)
    assert list(model.trainable_parameters()) == [] and "trainable params: 0 ||" in model.trainable_summary()
    model.save(tmp_path)
    assert {k: t.tolist() for k, t in dict(StoredTensors(tmp_path, "adapter_model", {})).items()} == {
        "prompt_tokens": [5, 6, 7]
    }
    torch.testing.assert_close(load_adapter(base, tmp_path)(idx), model(idx), rtol=0, atol=0)


@pytest.mark.parametrize("shape", quick(list(SHAPES), "llama"))
def test_the_search_follows_the_gradient_to_a_better_prompt(base):
    """On a fixed batch no step raises the loss, and the search beats as many random prompts as it had passes."""
    idx = torch.randint(97, (8, 9))
    batch = idx, idx.roll(-1, 1)

    def loss(tokens):
        with torch.no_grad():
            return adapt(base, "hard-prompt", tokens=tokens).loss(*batch).item()

    start = torch.randint(97, (4,))
    losses = [loss(start)]
    tokens = start
    for _ in range(6):
        tokens = search(base, tokens, lambda step: batch, steps=2)
        losses.append(loss(tokens))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < min(loss(torch.randint(97, (4,))) for _ in range(12 * 10))
    assert tokens.shape == start.shape and tokens.dtype == torch.int64
