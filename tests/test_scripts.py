"""train.py and bench.py as a person uses them: what they reach, and what they say to wrong input."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny

import bench
import train
from minipeft import GPT, PRESETS, adapt, console, load_adapter
from minipeft.data import NANO

ROOT = Path(__file__).parent.parent


def checksum(folder: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir()}


def call(capsys, script, *argv) -> tuple[int, str, str]:
    code = console.run(script.__name__ + ".py", lambda: script.main([str(a) for a in argv]))
    out, err = capsys.readouterr()
    return code, out, err


def refusal(err: str) -> list[str]:
    """What stderr says beside progress bars."""
    return [line for line in err.splitlines() if line.strip() and "step/s" not in line]


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    places, foods = ("Zizzi", "Aromi", "Fitzbillies"), ("Thai", "French", "Indian")
    rows = [{"input": f"name[{n}], food[{f}]", "target": f"{n} serves {f} food."} for n in places for f in foods]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows * 5))
    return path


def test_training_reaches_what_it_prints_and_the_adapter_is_used(capsys, tmp_path):
    """A short run of the default: the shipped base is untouched, exact match rises, and the saved adapter gives the same figure."""
    before = checksum(NANO)
    out = tmp_path / "out"
    code, printed, err = call(capsys, train, "--steps", 60, "--batch-size", 32, "--lr", 0.2, "--out", out)
    assert code == 0, err
    assert checksum(NANO) == before
    assert "trainable params: 8,192 || all params: 834,432 || trainable%: 0.9817" in printed
    scores = json.loads((out / "scores.json").read_text())
    assert scores["exact_match"][0] <= 0.25 and scores["exact_match"][1] > scores["exact_match"][0] + 0.2
    assert f"exact match {scores['exact_match'][0]:.3f} -> {scores['exact_match'][1]:.3f}" in printed
    assert not (out / "training_state.pt").exists()
    code, again, _ = call(capsys, train, "--eval-only", "--out", out)
    assert code == 0
    same = [line for line in printed.splitlines() if "held-out" in line or "tuned" in line]
    assert same == [line for line in again.splitlines() if "held-out" in line or "tuned" in line]


@pytest.mark.parametrize("method", [["prefix"], ["prompt", "--lr", "0.3"], ["full", "--lr", "3e-3"]])
def test_your_own_data_lowers_the_held_out_loss(method, capsys, tmp_path, pairs):
    code, _, err = call(capsys, train, "--data", pairs, "--method", *method, "--steps", 15, "--batch-size", 8, "--out", tmp_path / "out")
    assert code == 0, err
    before, after = json.loads((tmp_path / "out" / "scores.json").read_text())["loss"]
    assert after < 0.8 * before
    base = GPT.from_pretrained(NANO)
    assert load_adapter(base, tmp_path / "out")(torch.tensor([[65, 66]])).shape == (1, 2, 257)


def test_long_inputs_are_cut_counted_and_answered(capsys, tmp_path):
    """Also with an adapter longer than the default, whose length --eval-only reads from the adapter."""
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps({"input": "w" * 600, "target": f"{i}" * 3}) + "\n" for i in range(6)))
    for flags in (["--method", "full"], ["--num-virtual-tokens", 300]):
        run = ["--data", path, *flags, "--steps", 1, "--batch-size", 2, "--out", tmp_path / flags[0]]
        code, printed, err = call(capsys, train, *run)
        assert code == 0 and "6 inputs cut from the left" in printed, err
    code, _, err = call(capsys, train, "--eval-only", "--data", path, "--out", tmp_path / "--num-virtual-tokens")
    assert code == 0, err


@pytest.mark.parametrize(
    "flags",
    [
        ["--space", "hidden", "--dtype", "bfloat16"],
        ["--prefix-projection", "--encoder-hidden-size", "16"],
        ["--method", "prompt", "--init", "random"],
        ["--method", "prompt", "--init-from-text", "reverse: ", "--lr", "0.01"],
        ["--init-from-text", "reverse: ", "--lr", "0.01"],
        ["--method", "lora", "--r", "4", "--lora-alpha", "16", "--lora-dropout", "0.1", "--target-modules", "c_attn", "mlp.c_proj"],
        ["--method", "adapter", "--bottleneck-size", "4", "--placement", "pfeiffer"],
        ["--method", "llama-adapter", "--adapter-len", "4", "--adapter-layers", "3", "--lr", "0.3"],
        ["--method", "lora+prefix", "--r", "2", "--num-virtual-tokens", "3"],
    ],
)
def test_the_flags_of_a_method_reach_it(flags, capsys, tmp_path):
    code, _, err = call(capsys, train, *flags, "--steps", 12, "--batch-size", 16, "--out", tmp_path / "out")
    assert code == 0, err
    before, after = json.loads((tmp_path / "out" / "scores.json").read_text())["loss"]
    assert after < before
    if "reverse: " in flags:  # told from the first step on, the base needs no training
        assert after < 0.3


def test_hard_prompts_are_scored_and_the_best_is_kept(capsys, tmp_path, pairs):
    code, printed, err = call(capsys, train, "--method", "hard-prompt", "--out", tmp_path / "chosen")
    assert code == 0, err
    scores = json.loads((tmp_path / "chosen" / "scores.json").read_text())
    order = [(-w["exact_match"], w["loss"]) for w in scores["wordings"]]
    assert len(order) == 24 and order == sorted(order) and scores["wordings"][0]["wording"] in ("mirror: ", "backwards: ", "reverse: ")
    assert scores["exact_match"][1] > 0.9 and scores["trained"] == 0
    assert all(f"  {w['exact_match']:.3f} {w['loss']:6.3f}  {w['wording']!r}\n" in printed for w in scores["wordings"])
    flags = ["--method", "hard-prompt", "--data", pairs, "--wordings", "a: ", "--search", 3, "--steps", 4, "--batch-size", 4]
    code, printed, err = call(capsys, train, *flags, "--out", tmp_path / "own")
    assert code == 0, err
    assert len(json.loads((tmp_path / "own" / "scores.json").read_text())["wordings"]) == 2  # the wording, and what was found
    code, again, _ = call(capsys, train, "--eval-only", "--data", pairs, "--out", tmp_path / "own")
    assert code == 0 and printed.splitlines()[-10:-1] == again.splitlines()[-10:-1]


def test_the_climb_loses_nothing_from_rung_to_rung(capsys, tmp_path):
    code, printed, err = call(capsys, train, "--climb", "--steps", 6, "--batch-size", 8, "--out", tmp_path / "climb")
    assert code == 0, err
    hard, soft, prefix = (json.loads((tmp_path / "climb" / r / "scores.json").read_text()) for r in train.LADDER)
    assert soft["start_loss"] == pytest.approx(hard["loss"][1], rel=1e-3)
    assert prefix["start_loss"] == pytest.approx(soft["loss"][1], rel=1e-3)
    table = printed.splitlines()[-4:]
    assert [line.split()[0] for line in table] == ["rung", *train.LADDER] and [len(line.split()) for line in table[1:]] == [5, 5, 5]
    assert f"{prefix['loss'][1]:.3f}" in table[3]


def test_a_stopped_run_is_resumed_from_the_command_line(capsys, tmp_path, monkeypatch, pairs):
    flags = ["--data", pairs, "--steps", 10, "--batch-size", 8, "--seed", 5]
    assert call(capsys, train, *flags, "--out", tmp_path / "whole")[0] == 0

    batch = train.FileData.batch

    def stopping(self, step):
        if step == 7:
            raise KeyboardInterrupt
        return batch(self, step)

    monkeypatch.setattr(train.FileData, "batch", stopping)
    code, _, err = call(capsys, train, *flags, "--out", tmp_path / "out")
    assert code == 130 and not (tmp_path / "out" / "adapter_config.json").exists()
    monkeypatch.setattr(train.FileData, "batch", batch)

    whole_file = pairs.read_text()
    pairs.write_text(whole_file.replace("Zizzi", "Zozzo"))
    code, _, err = call(capsys, train, *flags, "--out", tmp_path / "out", "--resume")
    assert code == 2 and "is of another run: its examples" in err
    pairs.write_text(whole_file)
    assert call(capsys, train, *flags, "--out", tmp_path / "out", "--resume")[0] == 0
    base = GPT.from_pretrained(NANO)
    one, two = (load_adapter(base, tmp_path / name).method.tensors()["prompt_embeddings"] for name in ("whole", "out"))
    assert torch.equal(one, two)
    code, _, err = call(capsys, train, *flags, "--out", tmp_path / "out", "--resume")
    assert code == 2 and "nothing to resume" in err


@pytest.mark.parametrize("flags", [["--base-dtype", "bfloat16", "--gradient-checkpointing"], ["--compile"], ["--dtype", "bfloat16"]])
def test_what_makes_training_small_or_fast_reaches_the_same(flags, capsys, tmp_path):
    if "--compile" in flags and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")

    def held_out_loss(*flags):
        code, printed, err = call(capsys, train, "--steps", 60, "--batch-size", 16, "--out", tmp_path / "-".join(["out", *flags]), *flags)
        assert code == 0, err
        return float(re.search(r"loss [0-9.]+ -> ([0-9.]+)", printed)[1])

    assert held_out_loss(*flags) == pytest.approx(held_out_loss(), abs=0.02)


def test_a_base_from_scratch_is_saved_as_a_base(capsys, tmp_path):
    flags = ["--base", "scratch", "--method", "full", "--task", "skills", "--steps", 2, "--batch-size", 4]
    code, printed, err = call(capsys, train, *flags, "--out", tmp_path / "base")
    assert code == 0, err
    assert "reverse" in printed and "not told" in printed
    assert GPT.from_pretrained(tmp_path / "base").config == PRESETS["nano"]
    code, _, err = call(capsys, train, "--base", tmp_path / "base", "--steps", 2, "--batch-size", 4, "--out", tmp_path / "adapter")
    assert code == 0, err
    code, _, err = call(capsys, train, "--eval-only", "--out", tmp_path / "adapter")  # on the shipped base instead
    assert code == 2 and "was tuned for another base" in err


def wrong_inputs(tmp_path, pairs):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "torn.jsonl").write_text(pairs.read_text()[:-20])
    tiny("rotary").save_pretrained(tmp_path / "other")
    adapter = tmp_path / "torn"
    adapt(GPT.from_pretrained(NANO), "prefix").save(adapter)
    model = next(f for f in adapter.iterdir() if f.name.startswith("adapter_model"))
    model.write_bytes(model.read_bytes()[:1000])
    base = GPT.from_pretrained(NANO)
    adapt(base, "lora").save(tmp_path / "lora")
    adapt(base, "prefix").save(tmp_path / "prefix")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "training_state.pt").write_bytes(b"PK\x03\x04 and nothing more")
    return {
        ("--data", tmp_path / "nowhere.jsonl"): "no such file",
        ("--data", tmp_path / "torn.jsonl"): "line 45 is not JSON",
        ("--data", tmp_path / "empty.jsonl"): "holds no examples",
        ("--method", "magic"): "method must be one of full, hard-prompt, prompt, prefix, lora",
        ("--task", "magic"): "task must be one of copy, reverse",
        ("--base", tmp_path / "nowhere"): "no such folder",
        ("--base", tmp_path / "other"): "it needs 257",
        ("--num-virtual-tokens", "500"): "500 virtual + 20 real tokens do not fit the base's block size of 512",
        ("--num-virtual-tokens", "0"): "num_virtual_tokens must be 1 … 511",
        ("--num-virtual-tokens", "500", "--data", pairs): "500 virtual tokens and ",
        ("--init-from-text", ""): "empty",
        ("--lr", "-1"): "--lr must be above 0",
        ("--lr", "nan"): "--lr must be above 0",
        ("--seed", "99999999999999999999999"): "not a whole number from 0",
        ("--device", "meta"): "--device meta cannot be used",
        ("--out", pairs): "is a file",
        ("--out", tmp_path / "other"): "already holds a base",
        ("--method", "full", "--out", adapter): "already holds an adapter",
        ("--method", "prompt", "--space", "hidden"): "--space does not go with --method prompt",
        ("--method", "full", "--num-virtual-tokens", "8"): "--num-virtual-tokens does not go with --method full",
        ("--method", "full", "--base-dtype", "bfloat16"): "--base-dtype bfloat16 is for a frozen base",
        ("--init", "random", "--init-from-text", "x"): "not allowed with",
        ("--method", "lora", "--r", "400"): "r 400 is larger than attn.c_attn has ranks: its matrix is 384 × 128",
        ("--method", "lora", "--target-modules", "q_proj"): "'q_proj' matches nothing: there are attn.c_attn, attn.c_proj, mlp.c_fc",
        ("--method", "lora+full"): "full fine-tuning cannot be combined",
        ("--method", "lora+magic"): "method must be one of full",
        ("--method", "prefix", "--r", "4"): "--r does not go with --method prefix",
        ("--method", "hard-prompt", "--data", pairs): "needs --wordings to choose from, or --search P",
        ("--method", "hard-prompt", "--wordings", "x" * 600): "num_virtual_tokens must be 1 … 511",
        ("--method", "hard-prompt", "--wordings", ""): "--wordings must be texts of at least one letter",
        ("--method", "hard-prompt", "--resume"): "nothing to resume: hard-prompt trains nothing",
        ("--method", "lora+prefix", "--out", adapter): "already holds an adapter",
        ("--climb", "--num-virtual-tokens", "4"): "--climb starts every rung from the one before",
        ("--climb", "--prefix-projection"): "--climb starts every rung from the one before",
        ("--init-from", tmp_path / "prefix", "--num-virtual-tokens", "4"): "has 8 virtual tokens, so --num-virtual-tokens cannot be 4",
        ("--method", "hard-prompt", "--search", "0"): "--search must be at least 1",
        ("--init-from", tmp_path / "nowhere"): "no adapter at",
        ("--init-from", tmp_path / "lora"): "is lora, no rung of the ladder: only hard-prompt, prompt, prefix are",
        ("--method", "prompt", "--init-from", tmp_path / "prefix"): "lies above the rung 'prompt'",
        ("--method", "lora", "--init-from", tmp_path / "prefix"): "--init-from does not go with --method lora",
        ("--climb", "--resume"): "--climb starts every rung from the one before",
        ("--climb", "--method", "prompt"): "not allowed with",
        ("--climb", "--r", "4"): "--r does not go with --climb",
        ("--eval-only", "--resume"): "not allowed with",
        ("--steps", "0"): "--steps must be at least 1",
        ("--steps", "many"): "invalid int value: 'many'",
        ("--magic",): "unrecognized arguments: --magic",
        ("--device", "magic"): "--device magic cannot be used",
        ("--eval-only", "--out", adapter): "torn or not a file of tensors",
        ("--eval-only", "--out", tmp_path / "nowhere"): "no such folder",
        ("--resume", "--out", tmp_path / "nowhere"): "nothing to resume",
        ("--resume", "--out", tmp_path / "state"): "torn",
    }


def test_wrong_input_to_train_gets_one_line_and_exit_code_2(capsys, tmp_path, pairs):
    for argv, message in wrong_inputs(tmp_path, pairs).items():
        code, _, err = call(capsys, train, "--out", tmp_path / "out", *argv)
        lines = refusal(err)
        assert code == 2 and len(lines) == 1 and lines[0].startswith("train.py: ") and message in lines[0], (argv, err)
        assert not (tmp_path / "out").exists(), argv


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--preset", "magic"], "--preset must be one of nano, gpt2"),
        (["--methods", "magic"], "method must be one of full, hard-prompt, prompt, prefix, lora"),
        (["--num-virtual-tokens", "500"], "500 virtual + 128 real tokens do not fit the block size of 512"),
        (["--num-virtual-tokens", "0"], "num_virtual_tokens must be 1"),
        (["--device", "magic"], "--device magic cannot be used"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--magic"], "unrecognized arguments"),
        (["--out", "."], "is a folder"),
        (["--device", "meta"], "--device meta cannot be used"),
        (["--batch-size", "1000000000000"], "try a smaller shape"),
        (["attention", "--shapes", "4x12"], "must be five whole numbers BxHxTxPxS"),
        (["attention", "--shapes", "4x12x0x1x8"], "only P may be 0"),
        (["attention", "--batch-size", "4"], "unrecognized arguments"),
        (["peers", "--supervised", "1.5"], "--supervised must be above 0 and at most 1"),
        (["peers", "--supervised", "nan"], "--supervised must be above 0 and at most 1"),
        (["peers", "--methods", "adapter"], "--methods must be of full, prompt, prefix, lora, which both libraries have"),
        (["serving", "--tasks", "0"], "--tasks must be at least 1"),
        (["serving", "--tasks", "65"], "65 tasks do not fit a batch of 64 rows"),
        (["peers", "--preset", "nano", "--seq-len", "500"], "20 virtual + 500 real tokens do not fit the block size of 512"),
        (["magic"], "unrecognized arguments: magic"),
    ],
)
def test_wrong_input_to_bench_gets_one_line_and_exit_code_2(argv, message, capsys):
    code, _, err = call(capsys, bench, *argv)
    lines = refusal(err)
    assert code == 2 and len(lines) == 1 and lines[0].startswith("bench.py: ") and message in lines[0], err


def test_the_exit_code_reaches_the_shell_without_a_traceback(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "train.py", "--task", "magic"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not done.stdout
    helped = subprocess.run([sys.executable, ROOT / "bench.py", "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert helped.returncode == 0 and "--num-virtual-tokens" in helped.stdout and "(default: 8)" in helped.stdout
