"""bench.py peers: minipeft and PEFT do the same work, or nothing is timed."""

import json
import sys

import pytest
import torch

import bench
from minipeft import GPT, PRESETS, Error, GPTConfig
from minipeft.bench import peers, peers_generation, peers_job
from minipeft.config import LLAMA
from minipeft.data.encoding import IGNORED


def test_peers_do_the_same_work(capsys, monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.setattr(peers, "peak_bytes", lambda *work: 1)  # a process for each, which is tested with the cost
    argv = "peers --preset nano --seq-len 24 --num-virtual-tokens 4 --steps 1 --no-compile"
    bench.main(argv.split())
    out = capsys.readouterr().out.splitlines()
    result = json.loads(out[-1])
    assert out[:-1] == peers.table(result).splitlines()
    expected = [(m, x) for m in peers.in_both(PRESETS["nano"]) for x in ("minipeft", "peft")]
    assert [(r["method"], r["rival"]) for r in result["rows"]] == expected
    for ours, theirs in zip(result["rows"][::2], result["rows"][1::2], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)  # the same weights, tokens and targets
        assert ours["against_peft"] == pytest.approx(ours["step_ms"]["median"] / theirs["step_ms"]["median"])
        assert ours["saved_bytes"] < theirs["saved_bytes"]
        assert theirs["against_peft"] == 1


def test_on_a_bfloat16_base_lora_is_compared_with_peft_in_float32_and_in_bfloat16(capsys, monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.setattr(peers, "peak_bytes", lambda *work: 1)
    argv = "peers --preset nano --seq-len 24 --batch-size 2 --steps 1 --no-compile --dtype bfloat16"
    bench.main([*argv.split(), "--methods", "prefix", "lora"])
    out = capsys.readouterr().out.splitlines()
    result = json.loads(out[-1])
    assert out[:-1] == peers.table(result).splitlines()
    rows = {(r["method"], r["rival"]): r for r in result["rows"]}
    by_lora = [rival for method, rival in rows if method == "lora"]
    assert by_lora == ["minipeft", "peft", "peft bfloat16"] and ("prefix", "peft bfloat16") not in rows
    # the same initial values, with B = 0: PEFT's first losses are the base's, whatever the precision of A
    assert rows["lora", "peft bfloat16"]["loss"] == rows["lora", "peft"]["loss"]
    # an adapter in bfloat16 saves no float32 copies of its inputs
    assert rows["lora", "peft bfloat16"]["saved_bytes"] < rows["lora", "peft"]["saved_bytes"]
    low = rows["lora", "peft bfloat16"]["against_peft"] ** 0.5  # with PEFT itself, 1, as the prefix's
    assert result["means"]["peft bfloat16"]["against_peft"] == pytest.approx(low)
    assert any("peft bfloat16 in bfloat16, as minipeft" in line for line in out)
    with pytest.raises(Error, match="--methods full needs --dtype float32"):
        bench.main(["peers", "--preset", "nano", "--dtype", "bfloat16", "--methods", "full"])


def test_peers_refuse_a_rival_whose_gradient_differs():
    measured = {"method": "prefix", "error": None, "loss": 5.0, "second_loss": 4.9999, "gradient_norm": 1.0,
                "loss_changes": [-1e-4]}
    rows = [measured | {"rival": r} for r in peers.RIVALS]
    peers.same_work(rows, 1e-4)
    rows[0]["gradient_norm"] = 1.01  # too little to show in the loss after one step
    with pytest.raises(Error, match="minipeft does other work than peft: gradient norm"):
        peers.same_work(rows, 1e-4)


def nothing(optimizer):
    optimizer.step = lambda: None


def uphill(optimizer):
    optimizer.param_groups[0]["maximize"] = True


def too_far(optimizer):
    optimizer.param_groups[0]["lr"] *= 1.05


def all_but_one(optimizer):
    optimizer.param_groups[0]["params"].pop()


@pytest.mark.parametrize("method, dtype, bound",
                         [("full", "float32", 1e-4), ("lora", "float32", 1e-4), ("lora", "bfloat16", 2e-2)])
def test_peers_refuse_a_rival_whose_step_is_broken(method, dtype, bound):
    pytest.importorskip("peft")
    config = GPTConfig(vocab_size=257, block_size=64, n_layer=2, n_head=2, n_embd=64)
    s = peers.PeersSettings(preset="tiny", config=config, methods=(method,), num_virtual_tokens=4, batch_size=2,
                            seq_len=16, supervised=1.0, steps=1, seed=0, device="cpu", dtype=dtype, compile=False)

    def measured(name, breaks=lambda optimizer: None):
        rival = peers.build(s, method, name)
        peers.same_start(rival, peers.build(s, method, "peft"), method)
        breaks(rival.optimizer)
        first = {"loss": peers.train_step(rival).item(), "gradient_norm": peers.gradient_norm(rival)}
        return {"method": method, "rival": name, "error": None, **first, **peers.second_step(rival)}

    theirs = measured("peft")
    peers.same_work([measured("minipeft"), theirs], bound)
    for breaks in (nothing, uphill, too_far, all_but_one):
        with pytest.raises(Error, match="minipeft does other work than peft: (change|second)"):
            peers.same_work([measured("minipeft", breaks), theirs], bound)


def test_without_the_extras_peers_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(Error, match="pip install -r requirements-extra.txt"):
        bench.main(["peers", "--preset", "nano", "--steps", "1"])


@pytest.fixture(scope="module")
def small_base(tmp_path_factory):
    """The folder of a small base that transformers opens, and of which text is bytes."""
    folder = tmp_path_factory.mktemp("base") / "small"
    torch.manual_seed(0)
    GPT(GPTConfig(vocab_size=257, block_size=128, n_layer=2, n_head=4, n_embd=32, n_kv_head=2, n_inner=48, tied=False,
                  **LLAMA)).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_peers_generate_with_the_same_prefix(small_base, capsys, monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.setattr(peers_generation, "NEW", 6)
    argv = ["peers", "--generate", "--batch-sizes", "1", "3", "--steps", "2", "--seq-len", "5"]
    argv += ["--base", str(small_base)]
    bench.main(argv)
    out = capsys.readouterr().out.splitlines()
    result = json.loads(out[-1])
    assert out[:-1] == peers_generation.table(result).splitlines()
    rows = {(r["rival"], r["B"]): r for r in result["rows"]}
    assert list(rows) == [(rival, B) for B in (1, 3) for rival in ("minipeft", "peft")]
    weights = 4 * sum(p.numel() for name, p in GPT.from_pretrained(small_base).named_parameters()
                      if not name.startswith(("ln_f", "wte")))
    assert result["floor_ms"] == pytest.approx(1000 * weights / result["bandwidth"])
    for (_, B), r in rows.items():
        assert r["tokens"] == 6 * B and r["departures"] <= (0 if r["rival"] == "minipeft" else r["tokens"])
        assert r["against_peft"] == pytest.approx(r["token_ms"]["median"] / rows["peft", B]["token_ms"]["median"])
    monkeypatch.setattr(peers_generation, "generate",
                        lambda model, idx, n: (idx[:, :1] + torch.arange(idx.size(1) + n)) % 257)
    with pytest.raises(Error, match=r"^\d of 6 generated tokens are not the full forward pass's$"):
        bench.main(argv)


def test_departures_are_tokens_below_the_largest_logit():
    logits = torch.zeros(2, 9, 4)
    logits[:, :, 1] = 5.0  # row 0: two tokens are the likeliest but for the gap; row 1: the last is wrong by 5
    out = torch.ones(2, 10, dtype=torch.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers_generation, "NEW", 3)
        out[0, -3:], out[1, -1] = torch.tensor([2, 1, 2]), 2

        def departures(error: float, gap: float = 1e-5) -> int:
            logits[0, :, 2] = 5.0 - gap
            return peers_generation.departures(out, lambda idx: logits, lambda idx: logits + error)

        assert (departures(0.0), departures(0.0, 1e-3), departures(2.4), departures(2.6)) == (1, 3, 1, 0)


@pytest.fixture
def examples(tmp_path):
    path = tmp_path / "examples.jsonl"
    rows = [{"input": f"{i}" * (i % 3 + 1), "target": f"{i:b}"} for i in range(14)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.slow
def test_peers_do_the_same_job(small_base, examples, capsys, monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.setattr(peers_job, "in_new_process", lambda work, *arguments: work(*arguments))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "as before")  # of this process, where the jobs run for once
    argv = ["peers", f"--job={examples}", "--base", str(small_base), "--batch-size", "4", "--num-virtual-tokens", "3"]
    bench.main(argv)
    out = capsys.readouterr().out.splitlines()
    result = json.loads(out[-1])
    assert out[:-1] == peers_job.table(result).splitlines()
    rows = {(r["method"], r["rival"]): r for r in result["rows"]}
    assert list(rows) == [(m, r) for m in ("prefix", "lora", "prompt") for r in ("minipeft", "peft")]
    for (method, _), r in rows.items():
        theirs = rows[method, "peft"]
        assert r["steps"] == 8 and r["start_loss"] == pytest.approx(theirs["start_loss"], rel=1e-5)
        assert r["loss"] == pytest.approx(theirs["loss"], rel=1e-4) and r["loss"] < r["start_loss"]
        assert r["against_peft"] == pytest.approx(r["train_s"] / theirs["train_s"])
    step = peers_job.learning_rate
    monkeypatch.setattr(peers_job, "learning_rate", lambda *now: 1.2 * step(*now))  # of Trainer alone
    with pytest.raises(Error, match=r"^lora: minipeft ends at a loss of \d\.\d+, peft at \d"):
        bench.main([*argv, "--methods", "lora"])


def test_a_job_feeds_peers_the_same_batches(small_base, examples):
    s = peers_job.JobSettings(job=str(examples), base=str(small_base), methods=(), num_virtual_tokens=3, epochs=2,
                              batch_size=4, dtype="float32", compile=False, seed=0, device="cpu")
    batches = peers_job.Batches(s)
    assert batches.steps == 8
    for step in range(batches.steps):
        idx, targets = batches[step]
        given = peers_job.labelled(idx, targets)
        assert torch.equal(given["labels"][:, 1:], targets) and (given["labels"][:, 0] == IGNORED).all()
        real = (targets != IGNORED).flip(1).cumsum(1).flip(1) > 0  # up to the last supervised position
        assert torch.equal(given["input_ids"][:, :-1][real], idx[real])


def test_a_job_names_the_methods_of_both(small_base, examples):
    pytest.importorskip("peft")
    for wrong in ("full", "llama-adapter"):
        with pytest.raises(Error, match=f"which both libraries have, not '{wrong}'"):
            bench.main(["peers", "--job", str(examples), "--base", str(small_base), "--methods", wrong])
