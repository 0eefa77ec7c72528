"""Wrong input to train.py and bench.py: one line and exit code 2; where their output goes."""

import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tiny
from folders import MARKS, real_base
from scripts import call, refusal

import bench
import train
from minipeft import GPT, adapt
from minipeft.bench.quality import grid
from minipeft.data import NANO

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("few_examples")


def wrong_inputs(tmp_path, pairs):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "torn.jsonl").write_text(pairs.read_text()[:-20])
    (tmp_path / "field.jsonl").write_text('{"input": "a", "target": "b"}\n{"input": "a", "output": "b"}\n')
    (tmp_path / "one.jsonl").write_text('{"input": "a", "target": "b"}\n' * 3)
    (tmp_path / "pairs.txt").write_text("a\tb\n")
    (tmp_path / "e2e.csv").write_text("mr,ref\na,b\nc,d\n")
    tiny("rotary").save_pretrained(tmp_path / "other")
    adapter = tmp_path / "torn"
    adapt(GPT.from_pretrained(NANO), "prefix").save(adapter)
    model = next(f for f in adapter.iterdir() if f.name.startswith("adapter_model"))
    model.write_bytes(model.read_bytes()[:1000])
    base = GPT.from_pretrained(NANO)
    adapt(base, "lora").save(tmp_path / "lora")
    adapt(base, "prefix").save(tmp_path / "prefix")
    GPT.from_pretrained(NANO).half().save_pretrained(tmp_path / "half")
    if os.name != "nt":
        (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "training_state").mkdir()
    (tmp_path / "state" / "training_state" / f"00000012-{16 * '0'}.pt").write_bytes(b"PK\x03\x04 and nothing more")
    return {
        ("--data", tmp_path / "nowhere.jsonl"): "no such file",
        ("--data", tmp_path / "loop.jsonl"): "loop.jsonl",
        ("--data", tmp_path / "torn.jsonl"): "line 45 is not JSON",
        ("--data", tmp_path / "empty.jsonl"): "holds no examples",
        ("--data", tmp_path / "field.jsonl"): 'field.jsonl line 2 has no "target": there is "input", "output"',
        ("--data", tmp_path / "one.jsonl"): "holds one input: at least two are needed, one of them held out",
        ("--data", tmp_path / "pairs.txt"): "must be .jsonl, .json, .csv or .tsv",
        ("--data", tmp_path / "e2e.csv", "--columns", "meaning", "text"):
            'e2e.csv line 1 has no column "meaning": there is "mr", "ref"',
        ("--data", tmp_path / "e2e.csv", "--test", tmp_path / "nowhere.csv"): "no data at ",
        ("--dev", pairs): "--dev goes with --data: a task makes its own examples",
        ("--test", pairs): "--test goes with --data",
        ("--columns", "mr", "ref"): "--columns goes with --data",
        ("--limit", "4"): "--limit goes with --data",
        ("--template", "{input}"): "--template goes with --data",
        ("--answers", "4"): "--answers goes with --data",
        ("--epochs", "2"): "--epochs goes with --data",
        ("--max-length", "64"): "--max-length goes with --data",
        ("--data", pairs, "--task", "sort"): "--task makes its own examples: it does not go with --data",
        ("--data", pairs, "--columns", "mr", "mr"): "--columns must name two columns, not mr twice",
        ("--out", ""): "'' is no path",
        ("--method", ""): "method must be one of full",
        ("--base", tmp_path / "half", "--dtype", "bfloat16"): "--dtype bfloat16 does not go with a base in float16",
        ("--data", pairs, "--epochs", "2", "--steps", "9"): "not allowed with",
        ("--data", pairs, "--epochs", "0"): "--epochs must be at least 1",
        ("--data", pairs, "--batch-size", "0"): "--batch-size must be at least 1",
        ("--data", pairs, "--template", "Say it:"):
            'a template is "chat" or a text with {input} in it once, not 0 times',
        ("--data", pairs, "--template", "{input} is {input}"): "not 2 times",
        ("--data", pairs, "--template", "chat"):
            "the chat template needs a base whose tokenizer has <|im_start|> and <|im_end|>",
        ("--method", "magic"): "method must be one of full, hard-prompt, prompt, prefix, lora",
        ("--task", "magic"): "task must be one of copy, reverse",
        ("--base", tmp_path / "nowhere"): "no such folder",
        ("--base", tmp_path / "other"): "has 97 ids and no tokenizer.json: without one text is bytes, which needs 257",
        ("--num-virtual-tokens", "500"): "500 virtual + 20 real tokens do not fit the base's block size of 512",
        ("--num-virtual-tokens", "0"): "num_virtual_tokens must be 1 … 511",
        ("--num-virtual-tokens", "500", "--data", pairs): "500 virtual tokens and ",
        ("--init-from-text", ""): "empty",
        ("--lr", "-1"): "--lr must be above 0",
        ("--document", pairs, "--how", "distil", "--lr", "0"): "--lr must be above 0",
        ("--data", tmp_path / "answers.jsonl", "--out", tmp_path): "answers.jsonl is a file that runs in ",
        ("--over", "--steps", "1"): "unrecognized arguments: --over (did you mean '--overwrite'?)",
        ("--lr", "nan"): "--lr must be above 0",
        ("--seed", "99999999999999999999999"): "not a whole number from 0",
        ("--device", "meta"): "--device meta cannot be used",
        ("--out", pairs): "is a file",
        ("--out", tmp_path / "other"): "already holds a base",
        ("--method", "full", "--out", adapter): "already holds an adapter",
        ("--method", "prompt", "--space", "hidden"): "--space does not go with --method prompt",
        ("--method", "full", "--num-virtual-tokens", "8"): "--num-virtual-tokens does not go with --method full",
        ("--method", "full", "--base-dtype", "bfloat16"): "--base-dtype bfloat16 is for a frozen base",
        ("--method", "full", "--base-dtype", "nf4"): "--base-dtype nf4 is for a frozen base",
        ("--shard-base", "--base-dtype", "int8"): "--shard-base takes a base in float32 or bfloat16: in int8",
        ("--init", "random", "--init-from-text", "x"): "not allowed with",
        ("--method", "lora", "--r", "0"): "r must be a whole number of at least 1, not 0",
        ("--method", "lora", "--target-modules", "q_proj"):
            "'q_proj' matches nothing: there are attn.c_attn, attn.c_proj, mlp.c_fc",
        ("--method", "lora+full"): "full fine-tuning cannot be combined",
        ("--method", "lora+magic"): "method must be one of full",
        ("--method", "prefix", "--r", "4"): "--r does not go with --method prefix",
        ("--method", "hard-prompt", "--data", pairs): "needs --wordings, or --search P",
        ("--method", "hard-prompt", "--wordings", "x" * 600): "num_virtual_tokens must be 1 … 511",
        ("--method", "hard-prompt", "--wordings", ""): "--wordings must be texts of at least one letter",
        ("--method", "hard-prompt", "--resume"): "nothing to resume: hard-prompt trains nothing",
        ("--method", "lora+prefix", "--out", adapter): "already holds an adapter",
        ("--climb", "--num-virtual-tokens", "4"): "--climb starts every level of the ladder from the one below",
        ("--climb", "--prefix-projection"): "--climb starts every level of the ladder from the one below",
        ("--init-from", tmp_path / "prefix", "--num-virtual-tokens", "4"):
            "has 8 virtual tokens, so --num-virtual-tokens cannot be 4",
        ("--method", "hard-prompt", "--search", "0"): "--search must be at least 1",
        ("--init-from", tmp_path / "nowhere"): "no adapter at",
        ("--init-from", tmp_path / "lora"): "is lora, not hard-prompt or prompt or prefix",
        ("--method", "prompt", "--init-from", tmp_path / "prefix"): "is above level 'prompt'",
        ("--method", "lora", "--init-from", tmp_path / "prefix"): "--init-from does not go with --method lora",
        ("--climb", "--resume", "--out", tmp_path / "nowhere"): "nothing to resume: there is no folder",
        ("--method", "hard-prompt", "--lr", "1"): "--lr does not go with --method hard-prompt, which trains nothing",
        ("--method", "hard-prompt", "--steps", "9"): "--steps does not go with --method hard-prompt",
        ("--method", "hard-prompt", "--compile"): "--compile does not go with --method hard-prompt",
        ("--method", "hard-prompt", "--search", "4", "--dtype", "bfloat16"):
            "--dtype bfloat16 is for training, and hard-prompt trains nothing: --base-dtype bfloat16 computes in it",
        ("--shard-base",): "--shard-base goes with several processes: torchrun",
        ("--method", "hard-prompt", "--keep-best"): "nothing to keep the best of: hard-prompt trains nothing",
        ("--resume", "--overwrite"): "not allowed with",
        ("--out", tmp_path / "prefix"): "holds a finished run: --overwrite replaces it",
        ("--out", tmp_path / "state"): "holds a run that was stopped: --resume goes on with it",
        ("--climb", "--method", "prompt"): "not allowed with",
        ("--base", "scratch:huge"): "takes one of tiny, small, nano, medium, small-llama, lookup, not 'huge'",
        ("--climb", "--r", "4"): "--r does not go with --climb",
        ("--eval-only", "--resume"): "not allowed with",
        ("--steps", "0"): "--steps must be at least 1",
        ("--steps", "many"): "invalid int value: 'many'",
        ("--magic",): "unrecognized arguments: --magic",
        ("--metod", "prompt"): "unrecognized arguments: --metod prompt (did you mean '--method'?)",
        ("--method", "lora+prefx"): "not 'prefx' (did you mean 'prefix'?)",
        ("--method", "LoRA"): "not 'LoRA' (did you mean 'lora'?)",
        ("--task", "reverse+swop"): "not 'reverse+swop' (did you mean 'swap'?)",
        ("--task", "paritty"): "(did you mean 'parity'?)",
        ("--base", "nanno"): "no base at nanno: there is no such folder",  # and perhaps a word of the hub
        ("--base", "./nano"): "there is no such folder (did you mean 'nano'?)",
        ("--base", "scratch:smal"): "not 'smal' (did you mean 'small'?)",
        ("--init", "vocap"): "invalid choice: 'vocap' (choose from",
        ("--device", "magic"): "--device magic cannot be used",
        ("--eval-only", "--out", adapter): "torn or not a file of tensors",
        ("--eval-only", "--out", tmp_path / "nowhere"): "no such folder",
        ("--resume", "--out", tmp_path / "nowhere"): "nothing to resume",
        ("--resume", "--out", tmp_path / "state"): "nothing to resume: every checkpoint in",
    }


def test_answers_are_not_begun_without_what_scores_them(capsys, tmp_path, pairs, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "sacrebleu" else found(name, *a))
    code, _, err = call(capsys, train, "--data", pairs, "--answers", 3, "--out", tmp_path / "out")
    assert code == 2
    assert refusal(err) == ["train.py: --answers scores by BLEU and chrF, which needs: pip install sacrebleu"]
    assert not (tmp_path / "out").exists()


def refused(capsys, tmp_path, inputs: dict) -> None:
    for argv, message in inputs.items():
        code, _, err = call(capsys, train, "--out", tmp_path / "out", *argv)
        lines = refusal(err)
        assert code == 2 and len(lines) == 1 and lines[0].startswith("train.py: ") and message in lines[0], (argv, err)
        assert not (tmp_path / "out").exists(), argv


def test_files_that_no_run_wrote_are_kept(capsys, tmp_path, pairs):
    pytest.importorskip("sacrebleu")
    (tmp_path / "doc.txt").write_text("a document", encoding="utf-8")
    base, out, run = tmp_path / "base", tmp_path / "out", ["--base", "tiny", "--steps", 1, "--batch-size", 2]
    tiny().save_pretrained(base)
    for argv, name in (
        (["--data", pairs, "--answers", 1], "answers.jsonl"), (["--document", tmp_path / "doc.txt"], "document.json"),
        *((["--method", "full"], name) for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json")),
    ):
        out.mkdir()
        (out / name).write_text('{"a user": "\'s"}')
        argv = argv if name == "document.json" else [*run, *argv]
        for how in ([], ["--overwrite"]):
            code, _, err = call(capsys, train, *argv, "--out", out, *how)
            assert code == 2 and refusal(err) == [
                f"train.py: {out / name} is not of a run, and this run would replace it: another --out keeps it"]
            assert [path.name for path in out.iterdir()] == [name] and "user" in (out / name).read_text()
        shutil.rmtree(out)
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    for how in ([], ["--overwrite"], ["--resume"]):
        code, _, err = call(capsys, train, "--base", base, "--out", base, "--method", "full", *how)
        assert code == 2 and refusal(err) == [f"train.py: --out {base} is the base's own folder: it needs another"]
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before


def test_a_run_with_answers_is_overwritten_by_one_with_answers(capsys, tmp_path, pairs):
    pytest.importorskip("sacrebleu")
    out = tmp_path / "out"
    run = ["--base", "tiny", "--data", pairs, "--answers", 1, "--steps", 1, "--batch-size", 2, "--out", out]
    for how in ([], ["--overwrite"]):
        assert call(capsys, train, *run, "--method", "full", *how)[0] == 0
    assert (out / "answers.jsonl").exists()


def test_a_tokenizer_that_does_not_go_with_the_base_is_refused_in_one_line(capsys, tmp_path, pairs):
    small = real_base(tmp_path / "small", vocab_size=97)
    unmarked, whole = real_base(tmp_path / "unmarked", marks=MARKS[:1]), real_base(tmp_path / "whole")
    refused(capsys, tmp_path, {
        ("--base", small, "--data", pairs): "tokenizer.json has 300 ids and the model 97: it must be the model's own",
        ("--base", unmarked, "--data", pairs, "--template", "chat"):
            "the chat template needs a base whose tokenizer has <|im_start|>",
        ("--base", whole, "--data", pairs, "--num-virtual-tokens", 125): "125 virtual tokens and ",
    })


def test_wrong_input_to_train_gets_one_line_and_exit_code_2(capsys, tmp_path, pairs):
    refused(capsys, tmp_path, wrong_inputs(tmp_path, pairs))


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
        (["params", "--out", "/dev/null/x.json"], "/dev/null"),  # before it is measured
        (["document", "--tables", "1", "--documents", "LICENSE"], "--documents is of texts: it does not go with"),
        (["document", "--tables", "1", "--held-out", "9"], "--held-out is of texts: it does not go with"),
        (["document", "--documents", "LICENSE", "missing.md"], "no data at missing.md"),
        (["--device", "meta"], "--device meta cannot be used"),
        pytest.param(["--batch-size", "1000000000000"], "try a smaller shape", marks=pytest.mark.slow),
        (["attention", "--shapes", "4x12"], "must be five whole numbers BxHxTxPxS"),
        (["attention", "--shapes", "4x12x0x1x8"], "only P may be 0"),
        (["attention", "--batch-size", "4"], "unrecognized arguments"),
        (["peers", "--supervised", "1.5"], "--supervised must be above 0 and at most 1"),
        (["peers", "--seq-len", "1"], "--seq-len must be at least 2"),
        (["peers", "--generate", "--base", "nano"], "transformers has no architecture of this shape"),
        (["attention", "--shapes", "1x1x1x99999999999999999999x1"], "must be five whole numbers"),
        (["peers", "--supervised", "nan"], "--supervised must be above 0 and at most 1"),
        pytest.param(
            ["peers", "--methods", "adapter"], "which both libraries have, not 'adapter'",
            marks=pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="asks peft"),
        ),
        (["serving", "--tasks", "0"], "--tasks must be at least 1"),
        (["serving", "--tasks", "65"], "65 tasks do not fit a batch of 64 rows"),
        (["peers", "--preset", "nano", "--seq-len", "500"],
         "20 virtual + 500 real tokens do not fit the block size of 512"),
        (["quality", "--study", "magic"], "invalid choice: 'magic'"),
        (["quality", "--study", "length", "--quick"], "not allowed with"),
        (["quality", "--processes", "0"], "--processes must be at least 1, not 0"),
        (["quality", "--device", "magic"], "--device magic cannot be used"),
        (["quality", "--quick", "--lines", "."], ". cannot be read (IsADirectoryError)"),
        (["quality", "--again", "1", "--lines", "nowhere.jsonl"], "there is no file nowhere.jsonl"),
        (["quality", "--again", "0", "--lines", "nowhere.jsonl"], "there is no file nowhere.jsonl"),
        (["quality", "--study", "length", "real"], "cells on SmolLM2 and E2E need --smollm2 FOLDER"),
        (["quality", "--study", "real", "--smollm2", "."], "cells on SmolLM2 and E2E need --e2e FOLDER"),
        (["quality", "--study", "real", "--smollm2", "nowhere"], "--smollm2 nowhere: no such folder"),
        (["bases", "--sizes", "huge"], "invalid choice: 'huge'"),
        (["magic"], "there is no measurement 'magic': there are attention, bases, document, matmul, params, peers"),
        (["atention"], "(did you mean 'attention'?)"),
        (["--presett", "nano"], "unrecognized arguments: --presett nano (did you mean '--preset'?)"),
        (["--preset", "gpt-2"], "not 'gpt-2' (did you mean 'gpt2'?)"),
        (["--methods", "promt"], "not 'promt' (did you mean 'prompt'?)"),
        (["params", "--method", "promt"], "not 'promt' (did you mean 'prompt'?)"),
        (["quality", "--study", "lenght"], "(did you mean 'length'?)"),
    ],
)
def test_wrong_input_to_bench_gets_one_line_and_exit_code_2(argv, message, capsys, monkeypatch):
    monkeypatch.setattr(grid, "run_cell", lambda *_: pytest.fail("a cell was run"))
    code, _, err = call(capsys, bench, *argv)
    lines = refusal(err)
    assert code == 2 and len(lines) == 1 and lines[0].startswith("bench.py: ") and message in lines[0], err


@pytest.mark.slow
def test_the_exit_code_reaches_the_shell_without_a_traceback(tmp_path, monkeypatch, capsys):
    command = [sys.executable, ROOT / "train.py", "--task", "magic"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not done.stdout
    monkeypatch.setattr(sys, "argv", ["bench.py", "--help"])  # the other script, without another interpreter
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "bench.py"), run_name="__main__")
    helped = capsys.readouterr().out
    assert ended.value.code == 0 and "--num-virtual-tokens" in helped and "(default: 8)" in helped


def test_the_json_line_of_a_measurement_goes_to_a_file_or_a_pipe_and_not_to_a_terminal(capsys, tmp_path, monkeypatch):
    argv = ["params", "--method", "lora", "--out", tmp_path / "result.json"]
    _, printed, _ = call(capsys, bench, *argv)
    written = json.loads((tmp_path / "result.json").read_text())
    assert json.loads(printed.splitlines()[-1]) == written and written["command"].startswith("python bench.py params")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, table, _ = call(capsys, bench, *argv)
    assert code == 0 and printed.startswith(table) and "{" not in table and "0.672 times" in table
