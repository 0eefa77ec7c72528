"""A quantised base: its tables and codes against the papers and bitsandbytes, its linears, files and refusals."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import FROZEN, WITHOUT_CODE, attached, compiling_by, moved, quick, sizes_for, tiny
from torch import nn

import minipeft.model
from minipeft import GPT, METHODS, Error, GPTConfig, TaskBank, accounting, adapt, fingerprint, generate, load_adapter
from minipeft.accounting.base_weights import base_weight_bytes, matrix_bytes
from minipeft.config import LLAMA, linears
from minipeft.files.tensors import digest
from minipeft.parts import quantised as q
from minipeft.parts.quantised_base import quantise_base
from minipeft.runtime.profiling import saved_bytes

ROOT = Path(__file__).parents[1]
SIZES = [(96, 64), (24, 32), (7, 9), (1, 1), (700, 96), (3, 1000)]  # whole blocks, blocks of two rows, an odd number …


def quantised(shape: str, kind: str) -> GPT:
    base = tiny(shape)
    quantise_base(base, kind)
    return base


def whole(tensors: dict, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.cat([rows for _, rows in q.pieces(list(tensors.values()), list(shape), dtype)])


def floats(bits: torch.Tensor) -> torch.Tensor:
    return bits.view(torch.float32)


def test_nf4_has_the_quantiles_of_a_normal_distribution():
    """QLoRA §3, in float64: 8 quantiles for positive values, 7 for negative ones, and zero, scaled to [-1, 1]."""
    norm = pytest.importorskip("scipy.stats").norm
    offset = 0.5 * ((1 - 1 / 30) + (1 - 1 / 32))
    positive = norm.ppf(torch.linspace(offset, 0.5, 9, dtype=torch.float64)[:-1])
    negative = -norm.ppf(torch.linspace(offset, 0.5, 8, dtype=torch.float64)[:-1])
    table = torch.cat([torch.tensor(positive), torch.tensor([0.0]), torch.tensor(negative)]).sort().values
    assert torch.allclose(q.NF4.double(), table / table.abs().max(), atol=3e-7)
    assert q.NF4[7] == 0 and q.NF4[0] == -1 and q.NF4[15] == 1


def test_the_dynamic_floats_are_those_of_their_paper():
    """A sign, e zeros, a one, and the bits left for a fraction in (0.1, 1): 2^f equal steps below 10^-e."""
    known = {0.0, 1.0}
    for e in range(7):
        for i in range(n := 2 ** (6 - e)):
            known |= {s * 10.0**-e * (0.1 + 0.9 * (i + 0.5) / n) for s in (1, -1)}
    assert len(known) == 256 and torch.allclose(q.DYNAMIC.double(), torch.tensor(sorted(known)).double(), rtol=1e-6)


def test_the_tables_are_float32_whatever_the_default():
    code = ("import torch; torch.set_default_dtype({}); from minipeft.parts.quantised import DYNAMIC, NF4, PAIRS; "
            "print(DYNAMIC.dtype, NF4.dtype, len(PAIRS))")
    for dtype in ("torch.float64", "torch.bfloat16"):
        found = subprocess.run([sys.executable, "-c", code.format(dtype)], capture_output=True, text=True, cwd=ROOT)
        assert found.stdout.split() == ["torch.float32", "torch.float32", "256"], found.stderr


@pytest.mark.parametrize("size", SIZES)
def test_every_weight_gets_the_nearest_of_its_16_values(size):
    torch.manual_seed(0)
    weight = 0.02 * torch.randn(size)
    made = q.quantise(weight, "nf4")
    blocks = F.pad(weight.flatten(), (0, -weight.numel() % 64)).view(-1, 64).double()
    scales = blocks.abs().amax(1)
    codes = made["codes"].long()
    codes = torch.stack([codes >> 4, codes & 15], -1).flatten(1)
    scaled = blocks / scales[:, None]
    chosen, best = ((scaled - q.NF4.double()[codes]).abs(), (scaled[..., None] - q.NF4.double()).abs().amin(-1))
    assert torch.allclose(chosen, best, atol=1e-6)
    # their scales: 8 bits around the mean, one more scale for 256 of them
    apart, mean = scales - scales.mean(), scales.mean()
    for i, some in enumerate(apart.split(256)):
        own = some.abs().max()
        assert floats(made["own_scales"])[i] == pytest.approx(float(own), abs=1e-8)
        error = (some - own * q.DYNAMIC.double()[made["scales"].long().split(256)[i]]).abs()
        assert (error <= (some[:, None] - own * q.DYNAMIC.double()).abs().amin(1) + 1e-8).all()
    decoded = q.DYNAMIC[made["scales"].long()].double() * floats(made["own_scales"]).double().repeat_interleave(256)[
        : len(scales)] + float(mean)
    wanted = (q.NF4.double()[codes] * decoded[:, None]).flatten()[: weight.numel()].view(size)
    assert torch.allclose(whole(made, size).double(), wanted, atol=1e-8)
    assert whole(made, size, torch.bfloat16).equal(whole(made, size).bfloat16())


@pytest.mark.parametrize("size", SIZES)
def test_int8_rounds_to_127ths_of_the_largest_of_a_row(size):
    torch.manual_seed(0)
    weight = torch.randn(size)
    scale = weight.double().abs().amax(1, keepdim=True)
    read = whole(q.quantise(weight, "int8"), size).double()
    assert ((read - weight).abs() <= scale / 254 * (1 + 1e-5)).all()
    assert torch.allclose((read * 127 / scale).round(), read * 127 / scale, atol=1e-4)


@pytest.mark.parametrize("kind", q.QUANTISED)
def test_a_row_of_zeros_stays_zero(kind):
    weight = torch.zeros(64, 64)
    weight[1] = 1.0
    assert whole(q.quantise(weight, kind), (64, 64))[2:].abs().max() < (1e-6 if kind == "int8" else 1e-2)


def test_bitsandbytes_makes_the_same_codes_and_weights():
    bnb = pytest.importorskip("bitsandbytes.functional")
    torch.manual_seed(0)
    assert q.NF4.equal(bnb.get_4bit_type("nf4", device="cpu")) and q.DYNAMIC.equal(bnb.create_dynamic_map())
    for size in ((256, 576), (96, 64), (3072, 768)):
        for dtype in (torch.float32, torch.bfloat16):
            weight = (0.02 * torch.randn(size)).to(dtype)
            made = q.quantise(weight, "nf4")
            codes, state = bnb.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
            assert made["codes"].flatten().equal(codes.flatten())
            assert floats(made["own_scales"]).equal(state.state2.absmax) and floats(made["mean"]).item() == state.offset
            # its CPU kernel searches the nearest of 256 values with shortcuts: a few scales are its second nearest
            differ = made["scales"] != state.absmax
            assert differ.float().mean() < 5e-3
            exact = q.nearest_codes(weight.float().view(-1, 64), q.NF4)[1] - state.offset
            own = state.state2.absmax.repeat_interleave(256)[: len(exact)]
            ours, theirs = ((exact - own * q.DYNAMIC[x.long()]).abs() for x in (made["scales"], state.absmax))
            assert (ours[differ] <= theirs[differ]).all()
            state.absmax = made["scales"]
            for state.dtype in (torch.float32, torch.bfloat16):
                assert whole(made, size, state.dtype).equal(bnb.dequantize_4bit(codes, state))
            codes, scales, _ = bnb.int8_vectorwise_quant(weight)
            made = q.quantise(weight, "int8")
            assert made["codes"].equal(codes) and floats(made["scales"]).equal(scales)
            assert torch.allclose(whole(made, size), bnb.int8_vectorwise_dequant(codes, scales), rtol=1e-6)


def linear_of(kind: str, shape=(96, 48), dtype=torch.float64) -> tuple[q.QuantisedLinear, torch.Tensor]:
    """A quantised linear, and its weight dequantised."""
    torch.manual_seed(0)
    tensors = q.quantise(torch.randn(shape), kind)
    bias = nn.Parameter(torch.randn(shape[0], dtype=dtype), requires_grad=False)
    return q.QuantisedLinear(tensors, shape, bias), whole(tensors, shape).to(dtype)


@pytest.mark.parametrize("kind", q.QUANTISED)
@pytest.mark.parametrize("piece", [64, 2**19])
def test_output_and_gradient_are_those_of_the_dequantised_weight(kind, piece, monkeypatch):
    """In pieces of 64 rows as in one: y = x Wᵀ + b and dx = dy W, in float64."""
    linear, weight = linear_of(kind)
    monkeypatch.setattr(q, "PIECE", piece)
    assert len(list(q.pieces([linear.get_parameter(n) for n in linear.names], [96, 48], torch.float64))) == (
        1 if piece == 2**19 else 2)
    x = torch.randn(2, 5, 48, dtype=torch.float64, requires_grad=True)
    y, wanted = linear(x), F.linear(x, weight, linear.bias)
    assert torch.allclose(y, wanted, atol=1e-12)
    dy = torch.randn_like(y)
    (dx,), (dx_wanted,) = torch.autograd.grad(y, x, dy), torch.autograd.grad(wanted, x, dy)
    assert torch.allclose(dx, dx_wanted, atol=1e-12)
    x = x.detach()[:1, :1].requires_grad_()
    assert torch.autograd.gradcheck(linear, x) and torch.autograd.gradgradcheck(linear, x)


@pytest.mark.parametrize("kind", q.QUANTISED)
def test_nothing_is_saved_for_backward(kind):
    """Neither eagerly nor compiled: two linears in a row save the input of the nonlinearity between them, no weight."""
    first, _ = linear_of(kind, (64, 64), torch.float32)
    second = copy.deepcopy(first)
    x = torch.randn(8, 64, requires_grad=True)
    held = [*first.parameters(), *second.parameters()]

    def two(x):
        return second(first(x).relu())

    assert saved_bytes(lambda: two(x).sum(), held) == 8 * 64 * 4  # relu's output
    compiled = torch.compile(two, fullgraph=True, backend=WITHOUT_CODE)
    assert saved_bytes(lambda: compiled(x).sum(), held) <= 8 * 64 * 4  # or a mask
    assert saved_bytes(lambda: first(x).sum(), held) == 0


@pytest.mark.parametrize("kind", q.QUANTISED)
def test_autocast_multiplies_in_its_dtype(kind):
    linear, weight = linear_of(kind, dtype=torch.float32)
    x = torch.randn(4, 48)
    with torch.autocast("cpu", torch.bfloat16):
        y = linear(x)
    assert y.dtype == torch.bfloat16
    assert torch.allclose(y.float(), F.linear(x, weight, linear.bias), atol=0.2)


@pytest.mark.parametrize("kind", q.QUANTISED)
@pytest.mark.parametrize("size", [*SIZES, (768, 3072)])
def test_bytes_of_a_matrix_are_the_closed_form(kind, size):
    made = q.quantise(torch.randn(size), kind)
    assert sum(t.nbytes for t in made.values()) == matrix_bytes(kind, size[1], size[0])
    if size == (768, 3072) and kind == "nf4":
        bits = 8 * (matrix_bytes(kind, size[1], size[0]) - 4) / (size[0] * size[1])  # 4 bytes: the mean of all scales
        assert bits == 4 + 8 / 64 + 32 / (64 * 256) and round(bits, 3) == 4.127


def in_both(shape: str) -> GPTConfig:
    return tiny(shape).config


@pytest.mark.parametrize("kind", q.QUANTISED)
@pytest.mark.parametrize("method, h", quick(FROZEN, *FROZEN[:2], *[f for f in FROZEN if f[0] == "lora"][:1]))
def test_the_ledger_counts_its_bytes(shape, kind, method, h):
    """Weights exactly; saved for backward what the base in bfloat16 saves, to the byte."""
    h = sizes_for(in_both(shape), method, h)
    idx, saved = torch.randint(97, (3, 20)), []
    sizes = {name: value for name, value in h.items() if name in METHODS[method].sizes()}
    for base in (tiny(shape, torch.bfloat16), quantised(shape, kind)):
        model = attached(base, method, h)
        held = [*model.parameters(), *model.buffers()]
        saved.append(saved_bytes(lambda model=model: model.loss(idx, idx.clone()), held))
    said = accounting.train_bytes(base.config, method, 3, 20, base_bytes=2, quantised=kind, **sizes)
    assert said == accounting.train_bytes(base.config, method, 3, 20, quantised=kind, **sizes)
    assert sum(p.nbytes for p in base.parameters()) == base_weight_bytes(base.config, kind)
    assert said.weights == sum(p.nbytes for p in model.parameters())
    assert saved[0] == saved[1]
    like = accounting.train_bytes(base.config, method, 3, 20, base_bytes=2, **sizes)
    assert said[1:] == like[1:] and like.weights - said.weights == base_weight_bytes(
        base.config, "bfloat16") - base_weight_bytes(base.config, kind)


def test_no_ledger_for_a_quantised_base_that_is_trained():
    with pytest.raises(Error, match="^full trains every weight: its base cannot be in 'nf4'$"):
        accounting.train_bytes(tiny().config, "full", 1, 1, quantised="nf4")
    with pytest.raises(Error, match="base_dtype must be 'float32' or 'bfloat16' or 'int8' or 'nf4', not 'fp4'"):
        base_weight_bytes(tiny().config, "fp4")


@pytest.mark.parametrize("kind, worst", [("int8", 0.06), ("nf4", 0.7)])
def test_logits_are_near_those_of_the_base(shape, kind, worst, idx):
    """Those of a base whose matrices are dequantised once, and not far from those of the unquantised one."""
    exact, base = tiny(shape), quantised(shape, kind)
    plain = tiny(shape).to(torch.bfloat16).float()
    for i, block in enumerate(plain.h):
        for name in linears(plain.config):
            made = base.h[i].get_submodule(name)
            tensors = {n: made.get_parameter(n) for n in made.names}
            block.get_submodule(name).weight.data = whole(tensors, made.shape)
    y, wanted = base.float()(idx), exact(idx)
    assert torch.allclose(y, plain(idx), atol=1e-4)
    error = ((y - wanted).norm() / wanted.norm()).item()
    assert 1e-4 < error < worst, error


@pytest.mark.parametrize("kind", q.QUANTISED)
@pytest.mark.parametrize("method, h", quick(FROZEN, *[f for f in FROZEN if f[0] in ("prompt", "lora", "bitfit")]))
def test_every_method_but_full_trains_on_it_and_leaves_it_as_it_is(shape, kind, method, h, idx):
    base = quantised(shape, kind)
    before = digest(base.state_dict())
    model = attached(base, method, h)
    optimizer = torch.optim.AdamW(model.trainable_parameters(), lr=0.03)
    start = [p.detach().clone() for p in model.trainable_parameters()]
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        (loss := model.loss(idx, idx)).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not all(a.equal(b) for a, b in zip(start, model.trainable_parameters(), strict=True))
    assert digest(model.detach().state_dict()) == before


@pytest.mark.parametrize("kind", q.QUANTISED)
def test_compiled_blocks_give_the_same(shape, kind, idx, monkeypatch):
    torch.compiler.reset()  # every shape and kind compiles the same function anew, up to a limit
    monkeypatch.setattr(minipeft.model, "compiled", compiling_by(WITHOUT_CODE))  # fullgraph: one graph, or an error
    base = quantised(shape, kind).float()
    model = moved(adapt(base, ["lora", "prefix"], r=2, num_virtual_tokens=3))
    for any_length in (False, True):  # the latter as train.py compiles
        found = []
        for on in (False, True):
            model.compile_blocks(on, any_length)
            for inputs in (idx, idx[:, :7]):
                model.zero_grad()
                (loss := model.loss(inputs, inputs)).backward()
                found.append([loss.detach(), *(p.grad.clone() for p in model.trainable_parameters())])
        for eager, compiled in zip(found[:2], found[2:], strict=True):
            assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(eager, compiled, strict=True))


@pytest.mark.parametrize("kind", q.QUANTISED)
def test_generation_with_a_cache_takes_the_most_likely_tokens(shape, kind, idx):
    model = moved(adapt(quantised(shape, kind).float(), "prefix", num_virtual_tokens=3))
    out = generate(model, idx, 20)
    logits = model(out)
    for t in range(idx.size(1), out.size(1)):
        chosen = logits[:, t - 1].gather(1, out[:, t : t + 1]).squeeze(1)
        assert torch.allclose(chosen, logits[:, t - 1].amax(1), atol=1e-4)


@pytest.mark.parametrize("kind", q.QUANTISED)
def test_checkpointing_and_a_copy_give_the_same(kind, idx):
    base = quantised("llama", kind)
    one, two = (adapt(b, "prefix", num_virtual_tokens=3) for b in (base, copy.deepcopy(base)))
    two.method.load_state_dict(one.method.state_dict())
    two.gradient_checkpointing()
    for model in (one, two):
        model.loss(idx, idx).backward()
    pairs = zip(one.trainable_parameters(), two.trainable_parameters(), strict=True)
    assert all(a.grad.equal(b.grad) for a, b in pairs)
    assert fingerprint(two.base) == fingerprint(base)


@pytest.mark.parametrize("kind", q.QUANTISED)
def test_another_dtype_leaves_the_codes_as_they_are(kind):
    base = quantised("llama", kind)
    before = {name: t.clone() for name, t in base.state_dict().items() if not t.is_floating_point()}
    base.to(torch.float64).to(torch.float16)
    assert before and all(base.state_dict()[name].equal(t) for name, t in before.items())
    assert base.wte.weight.dtype == torch.float16


# ---- files


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("kind", q.QUANTISED)
def test_a_folder_opens_quantised(shape, kind, safe, tmp_path, idx):
    """A float32 base and its copy in bfloat16 give the same, with the fingerprint of the unquantised base."""
    if safe:
        pytest.importorskip("safetensors")
    base = tiny(shape)
    base.save_pretrained(tmp_path / "float32", safe_serialization=safe)
    tiny(shape, torch.bfloat16).save_pretrained(tmp_path / "bfloat16", safe_serialization=safe)
    made = [GPT.from_pretrained(tmp_path / name, dtype=kind) for name in ("float32", "bfloat16")]
    states = [b.state_dict() for b in (quantised(shape, kind), *made)]
    assert all(state.keys() == states[0].keys() for state in states[1:])
    assert all(t.equal(state[name]) for state in states[1:] for name, t in states[0].items() if t.dim() == 2)
    assert states[1].keys() == states[2].keys() and all(t.equal(states[2][n]) for n, t in states[1].items())
    assert {fingerprint(b) for b in made} == {fingerprint(base)}
    assert {(b.quantised.kind, b(idx).dtype) for b in made} == {(kind, torch.bfloat16)}
    for b in made:
        with pytest.raises(Error, match="^a quantised base is not saved: keep the folder it was read from"):
            b.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_file_of_tied_weights_under_the_heads_name_opens_too(tmp_path):
    """As safetensors' save_model writes it: lm_head.weight alone."""
    save = pytest.importorskip("safetensors.torch").save_file
    load = pytest.importorskip("safetensors.torch").load_file
    base = GPT.from_pretrained("small-llama")
    base.save_pretrained(tmp_path)
    tensors = load(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    assert fingerprint(GPT.from_pretrained(tmp_path, dtype="nf4")) == fingerprint(base)


@pytest.mark.parametrize("kind", q.QUANTISED)
@pytest.mark.parametrize("method", ["prefix", ["lora", "prompt"]])
def test_adapters_open_on_the_unquantised_base_and_back(kind, method, tmp_path, idx):
    plain, base, other = tiny("llama"), quantised("llama", kind), tiny("llama", seed=1)
    adapter = moved(adapt(base, method, num_virtual_tokens=3))
    adapter.save(tmp_path / "there")
    wanted = adapter(idx)
    back = load_adapter(plain, tmp_path / "there")
    back.save(tmp_path / "back")
    adapter.detach()
    assert load_adapter(base, tmp_path / "back")(idx).equal(wanted)
    for b in (other, (quantise_base(other, kind), other)[1]):
        with pytest.raises(Error, match="was tuned for another base"):
            load_adapter(b, tmp_path / "there")


@torch.no_grad()
def test_a_bank_mixes_tasks_on_it(tmp_path, idx):
    base = quantised("llama", "nf4").float()
    for name, method in (("a", "prefix"), ("b", "lora")):
        model = moved(adapt(base, method))
        model.save(tmp_path / name)
        model.detach()
    bank = TaskBank(base, {name: tmp_path / name for name in "ab"})
    mixed = bank(idx, tasks=["a", None, "b"])
    for i, name in ((0, "a"), (2, "b")):
        alone = load_adapter(base, tmp_path / name)
        assert torch.allclose(mixed[i], alone(idx)[i], atol=1e-4)
        alone.detach()


def test_merging_is_refused_where_it_would_change_a_quantised_weight(idx):
    lora = moved(adapt(quantised("learned", "nf4"), "lora"))
    with pytest.raises(Error, match="^a quantised weight cannot be changed: load the adapter onto the unquantised"):
        lora.merge()
    with pytest.raises(Error, match="^a quantised weight cannot be changed"):
        moved(adapt(quantised("learned", "nf4"), "ia3")).merge()
    base = quantised("learned", "nf4").float()
    before = digest(base.state_dict())
    model = moved(adapt(base, "bitfit"))  # biases are not quantised
    wanted = model(idx)
    model.merge()
    assert torch.allclose(model(idx), wanted, atol=1e-4)
    model.unmerge()
    assert digest(base.state_dict()) == before


def test_refusals():
    with pytest.raises(Error, match="^full fine-tuning changes every weight, and this base's are frozen in int8: "):
        adapt(quantised("learned", "int8"), "full")
    with pytest.raises(Error, match="^dtype must be None or torch.float32 or .* or 'int8' or 'nf4', not 'fp4'$"):
        GPT.from_pretrained("nano", dtype="fp4")
    with pytest.raises(Error, match="^kind must be 'int8' or 'nf4', not 'bfloat16'$"):
        quantise_base(tiny(), "bfloat16")
    model = adapt(tiny(), "lora")
    with pytest.raises(Error, match="^an adapter is attached to this base: detach it, then quantise$"):
        quantise_base(model.base, "int8")
    base = tiny()
    quantise_base(base, "nf4")
    with pytest.raises(Error, match="^this base is quantised already, in nf4$"):
        quantise_base(base.float(), "int8")
    assert base.wte.weight.dtype == torch.float32
    with pytest.raises(Error, match="^dtype must be None or .*, not <dtype>$"):
        GPT.from_pretrained("nano", dtype=torch.int8)
    base = model.base
    del model
    quantise_base(base, "int8")
    adapt(base, "lora").detach()


def test_the_summary_counts_weights_not_bytes():
    plain, base = (adapt(b, "prefix", num_virtual_tokens=3) for b in (tiny("llama"), quantised("llama", "nf4")))
    assert plain.trainable_summary() == base.trainable_summary()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_noise_has_the_spread_of_low_precision_embeddings(dtype):
    """Summed in parts; a whole copy in float32 would outweigh an NF4 base."""
    from minipeft.methods.base import noise

    base = GPT(GPTConfig(vocab_size=5000, block_size=8, n_layer=1, n_head=1, n_embd=16))
    base.wte.weight.data.add_(0.01)
    drawn = []
    for b in (base, copy.deepcopy(base).to(dtype)):
        torch.manual_seed(0)
        drawn.append(noise(b, 3, 16))
    assert torch.allclose(*drawn, rtol=1e-2)
    torch.manual_seed(0)
    assert torch.allclose(drawn[1], torch.randn(3, 16) * b.wte.weight.double().std().float(), rtol=1e-6)


MEASURE = """
import sys, torch
from minipeft import GPT
from minipeft.bench.measure import resident_peak, restart_peak
torch.set_num_threads(1)
GPT.from_pretrained(sys.argv[1], "nf4")
for folder in sys.argv[2:]:
    restart_peak(torch.device("cpu"))
    before = resident_peak()
    base = GPT.from_pretrained(folder, "nf4")
    print((resident_peak() - before) / sum(p.nbytes for p in base.parameters()))
    del base
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is Linux's VmHWM")
def test_loading_never_holds_the_unquantised_base(tmp_path):
    """40 million weights, 80 MB in bfloat16, 21 MB in NF4: read and quantised one by one."""
    pytest.importorskip("safetensors")
    sizes = dict(vocab_size=1000, block_size=64, n_layer=12, n_head=8, n_embd=512)
    bases = {"gpt2": GPT(GPTConfig(**sizes)), "llama": GPT(GPTConfig(**sizes | LLAMA, n_inner=1400))}
    for name, base in bases.items():
        base.to(torch.bfloat16).save_pretrained(tmp_path / name)
    tiny().save_pretrained(tmp_path / "tiny")
    command = [sys.executable, "-c", MEASURE, tmp_path / "tiny", *(tmp_path / name for name in bases)]
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr
    rises = dict(zip(bases, map(float, done.stdout.split()), strict=True))
    assert all(0.8 < rise <= 1.8 for rise in rises.values()), rises  # the whole base would be 3.8
