"""Measurements: exact where they can be counted, and equal to their own tables and documents."""

import contextlib
import io
import json
import re
import shutil

import pytest
import torch
from conftest import WITHOUT_CODE, compiling_by
from forked import context
from tqdm import tqdm

import bench
import minipeft.model
import train
from minipeft import GPT, METHODS, PRESETS, Error, GPTConfig, accounting, attention
from minipeft.bench import attention as attention_bench
from minipeft.bench import cost, measure, serving
from minipeft.bench import matmul as matmul_bench
from minipeft.bench.measure import peak_bytes, spread
from minipeft.config import linears
from minipeft.runtime import console
from minipeft.runtime.compiling import can_compile
from minipeft.runtime.profiling import saved_bytes


def test_bytes_saved_for_backward_are_each_storage_once_and_no_weights():
    x, w = torch.randn(10, 20, requires_grad=True), torch.randn(20, 30, requires_grad=True)
    assert saved_bytes(lambda: x.sin().sum(), []) == 4 * 200  # sin keeps its input
    assert saved_bytes(lambda: (x @ w).sum(), []) == 4 * (200 + 600)
    assert saved_bytes(lambda: (x @ w).sum(), [w]) == 4 * 200
    assert saved_bytes(lambda: (x.sin() * x.cos()).sum(), []) == 4 * 600  # x once, and both factors
    assert saved_bytes(lambda: (x[:5].sin() + x[5:].cos()).sum(), []) == 4 * 200  # two views, one storage
    with torch.no_grad():
        assert saved_bytes(lambda: x.sin().sum(), []) == 0


def allocate(megabytes):
    torch.ones(megabytes * 250_000).sum()


def divide(by):
    return 1 / by


@pytest.mark.slow
def test_peak_memory_is_that_of_the_work_alone(monkeypatch):
    big = torch.ones(100_000_000)  # what this process holds does not count
    assert 190e6 < peak_bytes(torch.device("cpu"), allocate, 200) < 260e6
    del big
    start = context()
    monkeypatch.setattr(measure.multiprocessing, "get_context", lambda name: start)
    with pytest.raises(Error, match="try a smaller shape: .*division by zero"):
        peak_bytes(torch.device("cpu"), divide, 0)


def test_the_spread():
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx({"median": 3.0, "p10": 1.4, "p90": 4.6})


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "result.json"
    out, measured = io.StringIO(), cost.peak_bytes

    def two_of_them(device, work, s, method, h):
        return measured(device, work, s, method, h) if method in ("full", "prefix") else 1  # each is a process

    start = context()
    with contextlib.redirect_stdout(out), pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "peak_bytes", two_of_them)
        patch.setattr(measure.multiprocessing, "get_context", lambda name: start)
        argv = "--batch-size 4 --seq-len 32 --steps 3 --num-virtual-tokens 8 --out"
        bench.main([*argv.split(), str(path)])
    lines = out.getvalue().splitlines()
    assert json.loads(lines[-1]) == json.loads(path.read_text())
    assert lines[:-1] == cost.table(json.loads(path.read_text())).splitlines()
    return json.loads(path.read_text())


def test_rows_columns_and_arithmetic(result):
    rows = {r["method"]: r for r in result["rows"]}
    assert list(rows) == ["full", *(m for m in METHODS if m != "full")]
    counts = [accounting.count(PRESETS["nano"], m) for m in rows]
    assert [(r["trained"], r["stored"]) for r in result["rows"]] == counts
    untrained = [rows.pop(m) for m in METHODS if not METHODS[m].trains()]
    assert untrained
    for r in untrained:
        assert r["trained"] == 0 and r["step_ms"] is None and r["forward_against_full"] > 0
    for r in rows.values():
        assert r["step_against_floor"] > 0.5
        # two moments per parameter, and the step counts
        assert 8 * r["trained"] <= r["optimizer_bytes"] <= 8 * r["trained"] + 4 * 200
        assert r["adapter_bytes"] >= 4 * r["stored"]
        assert r["step_ms"]["p10"] <= r["step_ms"]["median"] <= r["step_ms"]["p90"]
        assert r["tokens_per_s"] == pytest.approx(1000 * 4 * 32 / r["step_ms"]["median"])
        assert r["step_against_full"] == pytest.approx(r["step_ms"]["median"] / rows["full"]["step_ms"]["median"])
    assert rows["full"]["step_against_full"] == 1
    # a frozen weight needs no input saved for its gradient
    assert rows["prefix"]["saved_bytes"] < rows["full"]["saved_bytes"]
    assert rows["prefix"]["peak_bytes"] < rows["full"]["peak_bytes"]


def test_the_table_of_costs_takes_train_pys_path():
    p = console.Parser("")
    cost.add_flags(p)
    assert train.parser().get_default("compile") is None  # by the first steps, which leave a short run eager
    assert p.get_default("compile") is False


def settings(**change) -> cost.CostSettings:
    given = dict(preset="nano", config=PRESETS["nano"], methods=("prefix",), num_virtual_tokens=(8,), batch_size=4,
                 seq_len=32, steps=1, seed=0, device="cpu", dtype="float32", compile=False)
    return cost.CostSettings(**given | change)


def test_twice_the_batch_keeps_twice_the_activations(result):
    s = settings(batch_size=8)
    c = cost.Contestant(s, "prefix", {"num_virtual_tokens": 8}, GPT(s.config))
    once = next(r["saved_bytes"] for r in result["rows"] if r["method"] == "prefix")
    assert not c.inference().requires_grad
    assert 1.9 * once < saved_bytes(c.forward_loss, c.model.parameters()) <= 2 * once


def test_attention_is_checked_before_it_is_timed(monkeypatch):
    assert max(cost.check_attention(settings()).values()) < 1e-5
    assert cost.check_attention(settings()).keys() == {"output", "dq", "dk", "dv", "dprefix_k", "dprefix_v"}
    assert cost.check_attention(settings(methods=())).keys() == {"output", "dq", "dk", "dv"}  # full alone has no prefix
    assert max(cost.check_attention(settings(dtype="bfloat16")).values()) < 5e-2
    monkeypatch.setitem(attention.BACKENDS, "auto", lambda q, *rest: attention.BACKENDS["sdpa"](1.01 * q, *rest))
    with pytest.raises(Error, match="attention is wrong"):
        cost.check_attention(settings())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_is_the_same_work(monkeypatch):
    compiled, count = compiling_by(WITHOUT_CODE), []  # what code is worth is test_training_step's
    monkeypatch.setattr(minipeft.model, "compiled", lambda block: count.append(block) or compiled(block))
    config = GPTConfig(vocab_size=97, block_size=32, n_layer=2, n_head=2, n_embd=16, position="rotary")
    torch.manual_seed(0)
    base = GPT(config)
    h = {"num_virtual_tokens": 4, "init": torch.tensor([1, 2, 3])}
    small = dict(config=config, batch_size=2, seq_len=8)
    eager, fast = (cost.Contestant(settings(**small, compile=c), "prefix", h, base) for c in (False, True))
    torch.testing.assert_close(fast.forward_loss(), eager.forward_loss())
    assert count  # and it was compiled
    for c in (eager, fast):
        c.train_step()
    torch.testing.assert_close(*(next(c.model.trainable_parameters()) for c in (fast, eager)))


def test_without_a_compiler_the_bench_says_so_once_and_runs_eagerly(monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise RuntimeError("no C++ compiler found\nand a long story")

    monkeypatch.setattr(torch, "compile", broken)
    can_compile.cache_clear()
    try:
        assert not can_compile("cpu") and not can_compile("cpu")
        base = GPT(PRESETS["nano"])
        base.compile_blocks()
        assert not base.through_compile
    finally:
        can_compile.cache_clear()
    line = "torch.compile does not work here, everything runs eagerly: no C++ compiler found\n"
    assert capsys.readouterr().err == line


@pytest.mark.slow
def test_attention_backends_side_by_side(capsys):
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    argv = "attention --shapes 2x2x70x0x8 2x2x70x6x8 --dtype float32 --steps 3 --beside 1"
    bench.main(argv.split())
    out = capsys.readouterr().out.splitlines()
    result = json.loads(out[-1])
    assert out[:-1] == attention_bench.table(result).splitlines()
    for measured in (result, result["beside"], result["beside_spinning"]):
        rows = {(r["P"], r["backend"]): r for r in measured["rows"]}
        assert list(rows) == [(P, b) for P in (0, 6) for b in ("reference", "sdpa", "sdpa compiled", "fused")]
        for (P, _), r in rows.items():
            assert r["error"] < 1e-6
            for times in ("forward_ms", "ms"):
                best = min(rows[P, b][times]["median"] for b in ("sdpa", "sdpa compiled"))
                ratio = r[times.replace("ms", "against_best_sdpa")]
                assert ratio == pytest.approx(r[times]["median"] / best)
        assert measured["ratios"] == attention_bench.ratios(measured["rows"])
    for threads in ("sleep", "spin"):
        assert f"beside 1 busy process, waiting threads {threads}:" in out
    rows = {(r["P"], r["backend"]): r for r in result["rows"]}
    assert rows[6, "fused"]["saved_bytes"] < rows[6, "sdpa"]["saved_bytes"]
    (growth,) = result["growth"]
    assert growth["flops"] == pytest.approx((70 * 71 / 2 + 70 * 6) / (70 * 71 / 2))
    assert growth["time"] == pytest.approx(rows[6, "fused"]["ms"]["median"] / rows[0, "fused"]["ms"]["median"])


def test_every_round_begins_with_another_work_and_the_first_is_warm():
    """A rate leaves cold caches: the work behind it runs untimed, and then again."""
    ran, bar = [], tqdm(disable=True)
    works = [[lambda name=name: ran.append(name) for name in group] for group in ("abc", "de")]
    times = measure.time_all(works, 3, torch.device("cpu"), bar, lambda: ran.append("rate"))
    assert [len(samples) for samples in times] == [3, 2]
    assert ran == ["rate", *"a", *"abcde", "rate", *"e", *"edbca", "rate", *"c", *"cabde"]
    ran.clear()
    measure.time_all(works[:1], 2, torch.device("cpu"), bar)
    assert ran == [*"abc", *"bca"]


def test_of_torchs_two_the_choice_in_a_compiled_model_is_the_compiled_one(monkeypatch):
    monkeypatch.setattr(attention_bench, "can_compile", lambda kind: True)
    monkeypatch.setattr(attention_bench, "compiled", lambda function: function)
    s = attention_bench.AttentionSettings((), (), 1, 0, "cpu")
    monkeypatch.setattr(attention_bench, "MEASURED", ("sdpa", "sdpa compiled", "split"))
    for T, chosen in ((127, ["sdpa compiled"]), (128, [])):  # from 128 on "fused", not in this list
        found = attention_bench.works(attention_bench.Shape(1, 1, T, 2, 4), torch.float32, s)
        assert [row["backend"] for row, _ in found if row["auto"]] == chosen


def test_the_means_are_those_of_a_backend_and_of_autos_choices():
    def row(dtype, backend, auto, forward, both):
        return {"dtype": dtype, "backend": backend, "auto": auto,
                "forward_against_best_sdpa": forward, "against_best_sdpa": both}

    rows = [row("float32", "sdpa", False, 1.0, 1.5), row("float32", "fused", True, 2.0, 0.5),
            row("float32", "sdpa", True, 1.0, 1.0), row("float32", "fused", False, 8.0, 2.0),
            row("bfloat16", "sdpa", False, 9.0, 9.0), row("bfloat16", "fused", True, 3.0, 0.3)]
    of = ("dtype", "backend", "forward_mean", "forward_worst", "mean", "worst")
    expected = [("float32", "fused", 4.0, 8.0, 1.0, 2.0), ("float32", "auto", 2.0**0.5, 2.0, 0.5**0.5, 1.0),
                ("bfloat16", "fused", 3.0, 3.0, 0.3, 0.3), ("bfloat16", "auto", 3.0, 3.0, 0.3, 0.3)]
    assert [tuple(r[x] for x in of) for r in attention_bench.ratios(rows)] == [pytest.approx(e) for e in expected]


def test_busy_processes_run_and_end():
    with pytest.raises(ZeroDivisionError), measure.busy_processes(2) as processes:
        assert len(processes) == 2 and all(p.poll() is None for p in processes)
        divide(0)
    assert all(p.poll() is not None for p in processes)
    with pytest.raises(Error, match="--beside must be 0 or more"):
        bench.main(["attention", "--beside", "-1"])


@pytest.mark.slow
def test_a_wrong_backend_is_not_timed(monkeypatch):
    monkeypatch.setitem(attention.BACKENDS, "fused", lambda q, *rest: attention.BACKENDS["sdpa"](1.01 * q, *rest))
    s = attention_bench.AttentionSettings((attention_bench.Shape(1, 2, 8, 2, 4),), ("float32",), 1, 0, "cpu")
    with pytest.raises(Error, match="fused attention is wrong"):
        attention_bench.run(s)


def test_a_gradient_of_nan_is_wrong_attention_and_one_of_zero_is_not(monkeypatch):
    sdpa, one_key = attention.BACKENDS["sdpa"], attention_bench.Shape(1, 2, 1, 0, 4)
    s = attention_bench.AttentionSettings((), (), 1, 0, "cpu")
    monkeypatch.setattr(attention_bench, "MEASURED", ("sdpa",))
    ((row, _),) = attention_bench.works(one_key, torch.float32, s)
    assert row["error"] < 1e-6  # q and k have no gradient where there is one key
    assert max(cost.check_attention(settings(methods=(), seq_len=1)).values()) < 1e-6

    def keys_without_a_gradient(q, k, v, *rest):
        k = k.view_as(k)
        if k.requires_grad:
            k.register_hook(lambda gradient: gradient * float("nan"))
        return sdpa(q, k, v, *rest)

    monkeypatch.setitem(attention.BACKENDS, "sdpa", keys_without_a_gradient)
    with pytest.raises(Error, match="sdpa attention is wrong"):
        attention_bench.works(attention_bench.Shape(1, 2, 8, 2, 4), torch.float32, s)


def test_a_step_that_changes_nothing_is_not_timed(monkeypatch):
    monkeypatch.setattr(cost, "peak_bytes", lambda *work: 1)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)
    with pytest.raises(Error, match=r"^full: two training steps leave \['"):
        cost.run(settings(seq_len=8))


def test_products_are_checked_and_timed_by_both_libraries(monkeypatch, capsys):
    if not matmul_bench.matmul.HAS_ONEDNN:
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(matmul_bench, "FROM_MEMORY", 1)
    argv = "matmul --preset nano --batch-size 2 --seq-len 8 --batch-sizes 1 3 --steps 1".split()  # noqa: SIM905
    bench.main(argv)
    out = capsys.readouterr().out
    result = json.loads(out.splitlines()[-1])
    weights = {*linears(PRESETS["nano"]).values(), (128, 257)}
    assert {(r["dtype"], r["rows"], r["K"], r["N"]) for r in result["rows"]} == {
        (dtype, rows, K, N) for dtype in ("float32", "bfloat16") for rows in (16, 1, 3) for K, N in weights}
    for r in result["rows"]:
        assert r["onednn_ratio"] == pytest.approx(r["onednn_ms"] / r["torch_ms"])
        assert ("reordered_ms" in r) == (r["work"] == "generation")
    assert f"minipeft takes here: {matmul_bench.TAKES[result['library']]}" in out
    onednn = matmul_bench.matmul.onednn
    monkeypatch.setattr(matmul_bench.matmul, "onednn", lambda x, w: 1.001 * onednn(x, w))
    with pytest.raises(Error, match=r"^a product \(16, 128\) by \(\d+, 128\) is wrong by"):
        bench.main(argv)


def test_a_step_on_every_base(capsys, tmp_path):
    """Bytes are the ledger's; the peak is above them; times have their ratios to bfloat16."""
    pytest.importorskip("safetensors")
    argv = "quantised --preset nano --batch-size 2 --seq-len 16 --num-virtual-tokens 3 --steps 1"  # in new processes
    bench.main([*argv.split(), "--base-dtypes", "bfloat16", "nf4", "--out", str(tmp_path / "result.json")])
    result = json.loads((tmp_path / "result.json").read_text())
    plain, nf4 = result["rows"]
    for r in result["rows"]:
        assert r["weight_bytes"] == r["ledger_weight_bytes"] and r["compiled_ms"] is None
        assert r["peak_bytes"] is None or r["peak_bytes"] > 0
        assert r["eager_ratio"] == pytest.approx(r["eager_ms"]["median"] / plain["eager_ms"]["median"])
    assert plain["saved_bytes"] == nf4["saved_bytes"] == pytest.approx(nf4["ledger_saved_bytes"], rel=0.02)
    assert plain["bits"] == 16 and 4.12 < nf4["bits"] < 4.2
    assert "bits a weight" in capsys.readouterr().out
    for bad, message in (("--base-dtypes fp4", "invalid choice: 'fp4'"), ("--method lora", "--method must be 'prompt'"),
                         ("--num-virtual-tokens 0", "--num-virtual-tokens must be at least 1, not 0")):
        with pytest.raises(Error, match=re.escape(message)):
            bench.main(["quantised", *bad.split()])


def test_serving_decodes_the_same_tokens_however_a_prefix_is_held(capsys):
    """A prefix shared by the rows, and its copies in their caches."""
    config = GPTConfig(vocab_size=97, block_size=64, n_layer=2, n_head=2, n_embd=16)
    s = serving.ServingSettings(preset="tiny", config=config, batch_size=6, seq_len=4, tasks=(1, 3),
                                num_virtual_tokens=5, prefixes=(20,), steps=3, seed=0, device="cpu")
    base = GPT(s.config)
    tokens = {}
    for row in serving.rows_of(s):
        decoders = serving.build(s, row, base)
        steps = []
        for _ in range(4):
            for d in decoders:
                d.step()
            steps.append(torch.cat([d.idx for d in decoders]))
        tokens[row] = torch.cat(steps, dim=1)
    assert torch.equal(tokens[serving.Row("shared", P=20)], tokens[serving.Row("copied", P=20)])
    assert not torch.equal(tokens[serving.Row("shared", P=20)], tokens[serving.Row("base")])
    assert len({tuple(t.flatten().tolist()) for t in tokens.values()}) > 3  # and the tasks do differ
    copies = serving.build(s, serving.Row("full copies", n=4))
    assert len(copies) == 4 and sum(len(d.idx) for d in copies) == 6


def test_serving_that_leaves_a_task_out_is_not_timed():
    base, one, four = serving.Row("base"), serving.Row("lora tasks", 1), serving.Row("lora tasks", 4)
    shared, copied = (serving.Row(kind, P=20) for kind in ("shared", "copied"))
    x, y, z = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
    mixed = torch.cat([y[:1], z[1:]])
    right = {base: x, one: y, four: mixed, shared: z, copied: z * (1 + 1e-6)}
    serving.check_states(right)
    for row, wrong in ((one, x), (four, z), (shared, x), (copied, y)):
        with pytest.raises(Error, match="decodes wrongly"):
            serving.check_states(right | {row: wrong})


def test_the_serving_bench(capsys, monkeypatch):
    def peak(device, work, s, row):
        return 1000 + 10 * row.n + row.P * (s.batch_size if row.kind == "copied" else 1)

    s = serving.ServingSettings(preset="nano", config=PRESETS["nano"], batch_size=4, seq_len=16, tasks=(1, 4),
                                num_virtual_tokens=20, prefixes=(64,), steps=2, seed=0, device="cpu")
    enough = 1.3 * serving.bytes_needed(s, serving.Row("copied", P=64))
    monkeypatch.setattr(serving, "peak_bytes", peak)
    monkeypatch.setattr(serving, "available_memory", lambda device: enough)
    argv = "serving --preset nano --tasks 1 4 --prefixes 64 --batch-size 4 --steps 2"
    bench.main(argv.split())
    out = capsys.readouterr().out.splitlines()
    result = json.loads(out[-1])
    assert out[:-1] == serving.table(result).splitlines()
    rows = {(r["kind"], r["n"], r["P"]): r for r in result["rows"]}
    assert [(r["kind"], r["n"]) for r in result["left_out"]] == [("full copies", 4)]  # 13 MB would not be free
    assert len(rows) == 7
    for r in rows.values():
        assert r["tokens_per_s"] == pytest.approx(1000 * 4 / r["step_ms"]["median"])
        assert r["extra_bytes"] == r["peak_bytes"] - 1000
    found = {(r["of"], r["to"], r["what"]): r["value"] for r in result["ratios"]}
    one, four = rows["prefix tasks", 1, 20], rows["prefix tasks", 4, 20]
    mixed = four["tokens_per_s"] / one["tokens_per_s"]
    assert found["4 prefix tasks mixed", "one", "throughput"] == pytest.approx(mixed)
    assert found["a shared prefix of 64", "copies of it", "extra memory"] == 1 / 4
