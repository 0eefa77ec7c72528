"""train.py and bench.py as a person uses them: what they reach, and what they say to wrong input."""

import hashlib
import importlib.util
import json
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import WITHOUT_CODE, compiling_by, quick, tiny

import bench
import minipeft.model
import train
from minipeft import GPT, PRESETS, Error, GPTConfig, accounting, adapt, generate, load_adapter
from minipeft.attach import Adapted
from minipeft.bench.quality import grid
from minipeft.config import LLAMA
from minipeft.data import NANO
from minipeft.data.batches import FileData, TaskData
from minipeft.data.tokenizer import tokenizer_for
from minipeft.files.tensors import StoredTensors
from minipeft.runtime import console
from minipeft.training import job, memory_check, scores
from minipeft.training.job import Job
from minipeft.training.scores import text_scores

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def few_examples(monkeypatch):
    """48 held-out examples instead of 500, and a validation set of 45 instead of 200."""
    monkeypatch.setattr(TaskData.__init__, "__defaults__", (48,))
    monkeypatch.setattr(job, "VALIDATION", 45)


def checksum(folder: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir()}


def call(capsys, script, *argv) -> tuple[int, str, str]:
    code = console.run(script.__name__ + ".py", lambda: script.main([str(a) for a in argv]))
    out, err = capsys.readouterr()
    return code, out, err


def refusal(err: str) -> list[str]:
    """What stderr says beside progress bars."""
    return [line for line in err.splitlines() if line.strip() and "%|" not in line]


def scored(printed: str) -> list[str]:
    """What a run reached, as it was printed."""
    return [
        line for line in printed.splitlines() if line.startswith(("held-out exact match", "perplexity", "    tuned"))
    ]


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    places, foods = ("Zizzi", "Aromi", "Fitzbillies"), ("Thai", "French", "Indian")
    rows = [{"input": f"name[{n}], food[{f}]", "target": f"{n} serves {f} food."} for n in places for f in foods]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows * 5))
    return path


def test_training_reaches_what_it_prints_and_the_adapter_is_used(capsys, tmp_path):
    """A short default run: the base is untouched, exact match rises, the saved adapter scores the same."""
    before = checksum(NANO)
    out = tmp_path / "out"
    code, printed, err = call(capsys, train, "--steps", 60, "--batch-size", 32, "--lr", 0.2, "--out", out)
    assert code == 0, err
    assert checksum(NANO) == before
    assert "trainable params: 8,192 || all params: 834,432 || trainable%: 0.9817" in printed
    scores = json.loads((out / "scores.json").read_text())
    assert scores["exact_match"][0] <= 0.25 and scores["exact_match"][1] > scores["exact_match"][0] + 0.2
    assert f"exact match {scores['exact_match'][0]:.3f} -> {scores['exact_match'][1]:.3f}" in printed
    assert sorted(f.name.partition(".")[0] for f in out.iterdir()) == ["adapter_config", "adapter_model", "scores"]
    code, again, _ = call(capsys, train, "--eval-only", "--out", out)
    assert code == 0
    assert scored(printed) == scored(again) != []


@pytest.mark.parametrize("method", quick([["prefix"], ["prompt", "--lr", "0.3"], ["full", "--lr", "3e-3"]], ["prefix"]))
def test_your_own_data_lowers_the_held_out_loss(method, capsys, tmp_path, pairs):
    code, _, err = call(
        capsys, train, "--data", pairs, "--method", *method, "--steps", 15, "--batch-size", 8, "--out", tmp_path / "out"
    )
    assert code == 0, err
    before, after = json.loads((tmp_path / "out" / "scores.json").read_text())["loss"]
    assert after < 0.8 * before
    base = GPT.from_pretrained(NANO)
    assert load_adapter(base, tmp_path / "out")(torch.tensor([[65, 66]])).shape == (1, 2, 257)


def test_long_inputs_are_cut_counted_and_answered(capsys, tmp_path):
    """Also with an adapter longer than the default, whose length --eval-only reads from the adapter."""
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps({"input": f"{i}" + "w" * 600, "target": f"{i}" * 3}) + "\n" for i in range(6)))
    for flags in (["--method", "full"], ["--num-virtual-tokens", 300]):
        run = ["--data", path, *flags, "--steps", 1, "--batch-size", 2, "--out", tmp_path / flags[0]]
        code, printed, err = call(capsys, train, *run)
        assert (
            code == 0 and "(5 to train on, 1 held out), 6 cut from the left (texts: divided) to 512 tokens" in printed
        ), err
    code, _, err = call(capsys, train, "--eval-only", "--data", path, "--out", tmp_path / "--num-virtual-tokens")
    assert code == 0, err
    run = ["--data", path, "--max-length", 64, "--steps", 1, "--batch-size", 2, "--out", tmp_path / "short"]
    code, printed, err = call(capsys, train, *run)
    assert code == 0 and "6 cut from the left (texts: divided) to 64 tokens" in printed, err


FLAGS = [
    "--space hidden --dtype bfloat16",
    "--method lora --r 4 --lora-alpha 16 --lora-dropout 0.1 --target-modules c_attn mlp.c_proj",
    "--init-from-text 'reverse: ' --lr 0.01",
    "--method lora+prefix --r 2 --num-virtual-tokens 3",
    "--method prompt --init-from-text 'reverse: ' --lr 0.01",
    "--method prompt --init random",
    "--prefix-projection --encoder-hidden-size 16",
    "--method adapter --bottleneck-size 4 --placement pfeiffer",
    "--method llama-adapter --adapter-len 4 --adapter-layers 3 --lr 0.3",
]


@pytest.mark.parametrize("flags", quick(FLAGS, *FLAGS[:2]))
def test_the_flags_of_a_method_reach_it(flags, capsys, tmp_path):
    code, _, err = call(
        capsys, train, *shlex.split(flags), "--steps", 12, "--batch-size", 16, "--out", tmp_path / "out")
    assert code == 0, err
    before, after = json.loads((tmp_path / "out" / "scores.json").read_text())["loss"]
    assert after < before
    if "reverse: " in flags:  # told from the first step on, the base needs no training
        assert after < 0.3


@pytest.mark.slow
def test_hard_prompts_are_scored_and_the_best_is_kept(capsys, tmp_path, pairs):
    code, printed, err = call(capsys, train, "--method", "hard-prompt", "--out", tmp_path / "chosen")
    assert code == 0, err
    scores = json.loads((tmp_path / "chosen" / "scores.json").read_text())
    order = [(-w["exact_match"], w["loss"]) for w in scores["wordings"]]
    assert (
        len(order) == 24
        and order == sorted(order)
        and scores["wordings"][0]["wording"] in ("mirror: ", "backwards: ", "reverse: ")
    )
    assert scores["exact_match"][1] > 0.9 and scores["trained"] == 0
    assert all(f"  {w['exact_match']:.3f} {w['loss']:6.3f}  {w['wording']!r}\n" in printed for w in scores["wordings"])
    flags = [
        "--method",
        "hard-prompt",
        "--data",
        pairs,
        "--wordings",
        "a: ",
        "--search",
        3,
        "--steps",
        4,
        "--batch-size",
        4,
    ]
    code, printed, err = call(capsys, train, *flags, "--out", tmp_path / "own")
    assert code == 0, err
    assert (
        len(json.loads((tmp_path / "own" / "scores.json").read_text())["wordings"]) == 2
    )  # the wording, and what was found
    code, again, _ = call(capsys, train, "--eval-only", "--data", pairs, "--out", tmp_path / "own")
    assert code == 0 and scored(printed) == scored(again) != []


@pytest.mark.slow
def test_the_climb_loses_nothing_from_rung_to_rung(capsys, tmp_path):
    code, printed, err = call(capsys, train, "--climb", "--steps", 6, "--batch-size", 8, "--out", tmp_path / "climb")
    assert code == 0, err
    hard, soft, prefix = (json.loads((tmp_path / "climb" / r / "scores.json").read_text()) for r in train.LADDER)
    assert soft["start_loss"] == pytest.approx(hard["loss"][1], rel=1e-3)
    assert prefix["start_loss"] == pytest.approx(soft["loss"][1], rel=1e-3)
    table = printed.splitlines()[-4:]
    assert [line.split()[0] for line in table] == ["level", *train.LADDER] and [
        len(line.split()) for line in table[1:]
    ] == [5, 5, 5]
    assert f"{prefix['loss'][1]:.3f}" in table[3]


def test_a_stopped_run_is_resumed_from_the_command_line(capsys, tmp_path, monkeypatch, pairs):
    flags = ["--data", pairs, "--steps", 10, "--batch-size", 8, "--seed", 5]
    assert call(capsys, train, *flags, "--out", tmp_path / "whole")[0] == 0

    batch = FileData.batch

    def stopping(self, step):
        if step == 7:
            raise KeyboardInterrupt
        return batch(self, step)

    monkeypatch.setattr(FileData, "batch", stopping)
    code, _, err = call(capsys, train, *flags, "--out", tmp_path / "out")
    assert code == 130 and not (tmp_path / "out" / "adapter_config.json").exists()
    again = [str(f) for f in (*flags, "--out", tmp_path / "out", "--resume")]
    assert refusal(err)[-1] == f"train.py: interrupted; go on with: {shlex.join(['python', 'train.py', *again])}"
    monkeypatch.setattr(FileData, "batch", batch)
    code, _, err = call(capsys, train, *flags, "--out", tmp_path / "out")
    assert code == 2 and "holds a run that was stopped: --resume goes on with it, --overwrite starts anew" in err

    whole_file = pairs.read_text()
    pairs.write_text(whole_file.replace("Zizzi", "Zozzo"))
    code, _, err = call(capsys, train, *flags, "--out", tmp_path / "out", "--resume")
    assert code == 2 and "is of another run: its 'examples'" in err
    pairs.write_text("".join(whole_file.splitlines(keepends=True)[:-9]))
    code, _, err = call(capsys, train, *flags, "--out", tmp_path / "out", "--resume")
    assert (
        code == 2
        and "its 'examples' is '40 to train on, 5 held out, SHA-256 " in err
        and "here it is '32 to train on" in err
    )
    pairs.write_text(whole_file)
    code, printed, _ = call(capsys, train, *flags, "--out", tmp_path / "out", "--resume")
    assert code == 0 and f"resuming from {tmp_path / 'out' / 'training_state' / '00000007-'}" in printed
    base = GPT.from_pretrained(NANO)
    one, two = (load_adapter(base, tmp_path / name).method.tensors()["prompt_embeddings"] for name in ("whole", "out"))
    assert torch.equal(one, two)
    code, _, err = call(capsys, train, *flags, "--out", tmp_path / "out", "--resume")
    assert code == 2 and "nothing to resume: the run in" in err
    code, _, err = call(capsys, train, *flags, "--out", tmp_path / "out")
    assert code == 2 and "holds a finished run: --overwrite replaces it, another --out keeps both" in err
    assert call(capsys, train, *flags, "--out", tmp_path / "out", "--overwrite")[0] == 0


@pytest.mark.slow
def test_a_climb_goes_on_with_the_rung_it_was_stopped_at(capsys, tmp_path, monkeypatch):
    flags = ["--climb", "--steps", 6, "--batch-size", 8, "--seed", 2]
    assert call(capsys, train, *flags, "--out", tmp_path / "whole")[0] == 0
    batch = TaskData.batch

    def stopping(self, step):
        if step == 4:
            raise KeyboardInterrupt
        return batch(self, step)

    monkeypatch.setattr(TaskData, "batch", stopping)
    assert call(capsys, train, *flags, "--out", tmp_path / "out")[0] == 130
    monkeypatch.setattr(TaskData, "batch", batch)
    before = (tmp_path / "out" / "hard-prompt" / "scores.json").stat().st_mtime_ns
    code, printed, err = call(capsys, train, *flags, "--out", tmp_path / "out", "--resume")
    assert code == 0 and "resuming from" in printed, err
    assert (tmp_path / "out" / "hard-prompt" / "scores.json").stat().st_mtime_ns == before
    for rung in train.LADDER:
        whole, resumed = (json.loads((tmp_path / name / rung / "scores.json").read_text()) for name in ("whole", "out"))
        assert whole["loss"] == resumed["loss"] and whole["start_loss"] == resumed["start_loss"]


@pytest.mark.slow
def test_a_climb_that_overwrites_and_is_stopped_takes_no_rung_of_the_climb_before(capsys, tmp_path, monkeypatch):
    flags = ["--climb", "--batch-size", 8, "--out", tmp_path, "--wordings", "Reverse: ", "--steps"]
    assert call(capsys, train, *flags, 1)[0] == 0
    real, stop = Job.run, ["hard-prompt"]

    def stopping(self):
        result = real(self) if self.args.method == "hard-prompt" else None
        if self.args.method in stop:  # a hard prompt after it is saved, a soft one before its first checkpoint
            raise KeyboardInterrupt
        return result or real(self)

    monkeypatch.setattr(Job, "run", stopping)
    assert call(capsys, train, *flags, 2, "--overwrite")[0] == 130
    stop[:] = ["prompt"]
    assert call(capsys, train, *flags, 2, "--resume")[0] == 130
    stop.clear()
    code, _, err = call(capsys, train, *flags, 2, "--resume")
    assert code == 0, err
    assert [
        "--steps 2 --" in json.loads((tmp_path / rung / "scores.json").read_text())["command"] for rung in train.LADDER
    ] == [True] * 3


def test_a_hard_prompt_that_is_stopped_tells_a_command_that_runs(capsys, tmp_path, monkeypatch):
    flags, real = ["--method", "hard-prompt", "--wordings", "Reverse: ", "--out", tmp_path], Job._save

    def saved_and_stopped(*args):
        real(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(Job, "_save", saved_and_stopped)
    code, _, err = call(capsys, train, *flags)
    assert code == 130
    monkeypatch.setattr(Job, "_save", real)
    told = shlex.split(refusal(err)[-1].partition("go on with: python train.py ")[2])
    assert told[:-1] == [str(f) for f in flags] and call(capsys, train, *told)[0] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_search_that_is_stopped_goes_on_and_finds_the_same_tokens(number, capsys, tmp_path, monkeypatch, pairs):
    """Before learning what follows the search too; from the checkpoint before a damaged one; and not from others'."""
    method = "hard-prompt" if number == signal.SIGINT else "hard-prompt+lora"
    flags = ["--base", "tiny", "--method", method, "--data", pairs, "--search", 3, "--steps", 5, "--batch-size", 4]
    out, batch, calls = tmp_path / "out", FileData.batch, []

    def stopping(self, step):
        calls.append(step)
        if len(calls) == 3 * 10 + 2:  # of the 10 a step: its gradient, and the loss of 9 prompts
            signal.raise_signal(number)
        return batch(self, step)

    monkeypatch.setattr(FileData, "batch", stopping)
    code, _, err = call(capsys, train, *flags, "--out", out)
    again = [str(f) for f in (*flags, "--out", out, "--resume")]
    told = f"after step 4 of 5; go on with: {shlex.join(['python', 'train.py', *again])}"
    assert code == 128 + number and refusal(err)[-1] == f"train.py: stopped by {number.name} {told}"
    monkeypatch.setattr(FileData, "batch", batch)
    older, newer = sorted((out / "training_state").glob("search-*.pt"))
    newer.write_bytes(newer.read_bytes()[:-1])
    code, _, err = call(capsys, train, *again, "--lr", "0.5")
    assert code == 2 and "is of another run: its 'lr' is None, here it is 0.5" in err
    code, printed, err = call(capsys, train, *again)
    assert code == 0 and f"resuming from {older}" in printed and f"warning: {newer} is damaged" in err
    assert call(capsys, train, *flags, "--out", tmp_path / "whole")[0] == 0
    results = [json.loads((folder / "scores.json").read_text()) for folder in (out, tmp_path / "whole")]
    assert [results[0][of] == results[1][of] for of in ("wordings", "loss", "samples")] == [True] * 3
    base = GPT.from_pretrained("tiny")
    found, same = (load_adapter(base, folder).method.tensors() for folder in (out, tmp_path / "whole"))
    assert same and all(torch.equal(found[name], t) for name, t in same.items())
    assert not (out / "training_state").exists()


def test_a_search_whose_checkpoints_are_all_torn_gets_one_line(capsys, tmp_path, pairs):
    state = tmp_path / "out" / "training_state"
    state.mkdir(parents=True)
    (state / f"search-00000004-{16 * '0'}.pt").write_bytes(b"PK")
    flags = ["--base", "tiny", "--method", "hard-prompt", "--data", pairs, "--search", 3, "--out", tmp_path / "out"]
    code, _, err = call(capsys, train, *flags, "--resume")
    assert code == 2 and refusal(err) == [
        f"train.py: nothing to resume: every checkpoint in {state} is damaged (--overwrite starts anew)"]
    code, _, err = call(capsys, train, *flags)
    assert code == 2 and "holds a run that was stopped: --resume goes on with it" in err


@pytest.mark.parametrize("flags, name", [
    ([], "nano-prefix-reverse"),
    (["--method", "lora+prefix", "--task", "reverse+sort"], "nano-lora+prefix-reverse+sort"),
    (["--climb", "--base", "bases/SmolLM2-135M/", "--data", "my/train.csv"], "SmolLM2-135M-climb-train"),
    (["--base", "scratch:tiny", "--data", "what?..csv"], "scratch-tiny-prefix-what-"),
])
def test_the_default_folder_has_the_bases_name_and_one_that_windows_takes(flags, name):
    assert train.arguments(flags).out == Path("runs") / name


def test_the_default_folder_of_a_base_without_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.arguments(["--base", "."]).out == Path("runs") / f"{tmp_path.name}-prefix-reverse"


@pytest.mark.parametrize("method", ["prefix", "full"])
def test_a_run_folder_without_its_weights_says_so(method, capsys, tmp_path):
    out = tmp_path / "out"
    run = ["--base", "tiny", "--method", method, "--steps", 1, "--batch-size", 2, "--out", out]
    assert call(capsys, train, *run)[0] == 0
    next(f for f in out.iterdir() if "model" in f.name and f.suffix != ".json").unlink()
    base, config = GPT.from_pretrained("tiny"), "config.json" if method == "full" else "adapter_config.json"
    opened = [lambda: load_adapter(base, out), *[lambda: GPT.from_pretrained(out)][: method == "full"]]

    def told(message: str):
        for open_it in opened:
            with pytest.raises(Error, match=message):
                open_it()
        code, _, err = call(capsys, train, *run, "--eval-only")
        assert code == 2 and len(refusal(err)) == 1 and re.search(message, err), err

    told("holds neither .* nor .*: its weights were deleted or not copied along")
    for flags, message in ((["--resume"], r"is finished, but its weights were deleted .* \(--overwrite starts anew\)"),
                           ([], "holds a finished run, but its weights were deleted or not copied along: --overwrite")):
        code, _, err = call(capsys, train, *run, *flags)
        assert code == 2 and len(refusal(err)) == 1 and re.search(message, err), err
    (out / config).unlink()
    told("out holds the scores of a run, but its (adapter_)?config.json was deleted or not copied along")
    (out / "scores.json").unlink()
    (out / "training_state").mkdir()
    told("out holds a run that was stopped, and no result yet: train.py --resume goes on with it")


def test_the_json_line_of_a_measurement_goes_to_a_file_or_a_pipe_and_not_to_a_terminal(capsys, tmp_path, monkeypatch):
    argv = ["params", "--method", "lora", "--out", tmp_path / "result.json"]
    _, printed, _ = call(capsys, bench, *argv)
    written = json.loads((tmp_path / "result.json").read_text())
    assert json.loads(printed.splitlines()[-1]) == written and written["command"].startswith("python bench.py params")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, table, _ = call(capsys, bench, *argv)
    assert code == 0 and printed.startswith(table) and "{" not in table and "0.672 times" in table


def test_the_command_that_is_told_to_several_processes_is_one_that_torchrun_takes(monkeypatch):
    from torch.distributed.run import get_args_parser

    monkeypatch.setattr(train, "world_size", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    told = train.command(["--method", "lora", "--r", "4"])  # --r begins some of torchrun's own flags
    given = get_args_parser().parse_args(told[1:])
    assert (told[0], given.nproc_per_node, given.training_script) == ("torchrun", "2", "train.py")
    assert [a for a in given.training_script_args if a != "--"] == ["--method", "lora", "--r", "4"]


@pytest.mark.slow
def test_the_best_is_kept_by_the_loss_on_what_is_chosen_by(capsys, tmp_path, monkeypatch, pairs):
    real, best, asked = job.evaluate, {}, []

    def least_at_the_third(model, given):
        loss, exact = real(model, given)
        if isinstance(model, Adapted) and len(asked) < 10:  # ten times in the run
            asked.append(len(given))
            if len(asked) == 3:
                best.update({name: t.clone() for name, t in model.method.tensors().items()})
            return abs(len(asked) - 3.0), exact
        return loss, exact

    monkeypatch.setattr(job, "evaluate", least_at_the_third)
    flags = [
        "--data",
        pairs,
        "--dev",
        pairs,
        "--steps",
        20,
        "--batch-size",
        8,
        "--keep-best",
        "--out",
        tmp_path / "out",
    ]
    code, _, err = call(capsys, train, *flags)
    assert code == 0 and asked == 10 * [3], err  # batches of the 45 in the dev file
    kept = load_adapter(GPT.from_pretrained(NANO), tmp_path / "out").method.tensors()
    assert all(torch.equal(kept[name], t) for name, t in best.items()) and best


def test_what_does_not_fit_into_memory_is_refused_before_it_is_begun(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(memory_check, "available_memory", lambda device: 10**6)
    code, _, err = call(capsys, train, "--out", tmp_path / "out")
    found = re.search(
        r"training needs (\S+) GB more memory, and 0.00 GB are left: (\S+) GB for each of 64 examples", refusal(err)[-1]
    )
    assert code == 2 and "lower --batch-size or --max-length" in err and not (tmp_path / "out").exists()
    assert float(found[1]) == pytest.approx(64 * float(found[2]), abs=0.4)


@pytest.mark.slow
def test_what_makes_training_small_or_fast_reaches_the_same(capsys, tmp_path, monkeypatch):
    torch.manual_seed(0)
    sizes = dict(vocab_size=257, block_size=64, n_layer=2, n_head=2, n_embd=32)
    GPT(GPTConfig(**sizes, position="rotary")).save_pretrained(
        tmp_path / "base"
    )  # where bfloat16 is slow, nano is too large

    def held_out_loss(*flags):
        run = [
            "--base",
            tmp_path / "base",
            "--steps",
            40,
            "--batch-size",
            8,
            "--out",
            tmp_path / "-".join(["out", *flags]),
            *flags,
        ]
        code, printed, err = call(capsys, train, *run)
        assert code == 0, err
        before, after = re.search(r"loss ([0-9.]+) -> ([0-9.]+)", printed).groups()
        assert float(after) < float(before) - 0.1
        return float(after)

    plain = held_out_loss()
    for flags in (["--base-dtype", "bfloat16", "--gradient-checkpointing"], ["--dtype", "bfloat16"]):
        assert held_out_loss(*flags) == pytest.approx(plain, abs=0.02)
    if shutil.which("g++"):  # torch.compile needs it
        compiled, count = compiling_by(WITHOUT_CODE), []  # what code is worth is test_training_step's
        monkeypatch.setattr(minipeft.model, "compiled", lambda block: count.append(block) or compiled(block))
        assert held_out_loss("--compile") == pytest.approx(plain, abs=0.02) and count


@pytest.mark.parametrize("base", ["nano", "scratch"])
def test_a_run_on_a_quantised_base_is_resumed_bit_for_bit(capsys, tmp_path, monkeypatch, pairs, base):
    flags = ["--base", base, "--base-dtype", "nf4", "--data", pairs, "--steps", 6, "--batch-size", 8]
    code, printed, err = call(capsys, train, *flags, "--out", tmp_path / "whole")
    assert code == 0, err
    kb = float(re.search(r"beside the base's ([\d.,]+) KB", printed)[1])
    assert kb == round(accounting.base_weight_bytes(PRESETS["nano"], "nf4") / 1000, 1)
    batch = FileData.batch

    def stopping(self, step):
        if step == 4:
            raise KeyboardInterrupt
        return batch(self, step)

    monkeypatch.setattr(FileData, "batch", stopping)
    assert call(capsys, train, *flags, "--out", tmp_path / "out")[0] == 130
    monkeypatch.setattr(FileData, "batch", batch)
    other = [*flags[:3], "int8", *flags[4:], "--out", tmp_path / "out", "--resume"]
    code, _, err = call(capsys, train, *other)
    assert code == 2 and "is of another run: its 'base_dtype' is 'nf4'" in err
    code, printed, err = call(capsys, train, *flags, "--out", tmp_path / "out", "--resume")
    assert code == 0 and "resuming from" in printed, err
    one, two = (json.loads((tmp_path / name / "scores.json").read_text()) for name in ("whole", "out"))
    assert one["loss"] == two["loss"]
    tensors = [dict(StoredTensors(tmp_path / name, "adapter_model", {})) for name in ("whole", "out")]
    assert all(t.equal(tensors[1][name]) for name, t in tensors[0].items())


def test_a_base_from_scratch_is_saved_as_a_base(capsys, tmp_path, monkeypatch):
    drawn = scores.draw  # 16 examples of every skill instead of 500
    monkeypatch.setattr(scores, "draw", lambda example, name, n: drawn(example, name, 16))
    flags = ["--base", "scratch", "--method", "full", "--task", "skills", "--steps", 2, "--batch-size", 4]
    code, printed, err = call(capsys, train, *flags, "--out", tmp_path / "base")
    assert code == 0, err
    assert "reverse" in printed and "not instructed" in printed
    assert GPT.from_pretrained(tmp_path / "base").config == PRESETS["nano"]
    code, _, err = call(
        capsys, train, "--base", tmp_path / "base", "--steps", 2, "--batch-size", 4, "--out", tmp_path / "adapter"
    )
    assert code == 0, err
    code, _, err = call(capsys, train, "--eval-only", "--out", tmp_path / "adapter")  # on the shipped base instead
    assert code == 2 and "was tuned for another base" in err


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
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "training_state").mkdir()
    (tmp_path / "state" / "training_state" / f"00000012-{16 * '0'}.pt").write_bytes(b"PK\x03\x04 and nothing more")
    return {
        ("--data", tmp_path / "nowhere.jsonl"): "no such file",
        ("--data", tmp_path / "torn.jsonl"): "line 45 is not JSON",
        ("--data", tmp_path / "empty.jsonl"): "holds no examples",
        ("--data", tmp_path / "field.jsonl"): 'field.jsonl line 2 has no "target": there is "input", "output"',
        ("--data", tmp_path / "one.jsonl"): "holds one input: at least two are needed, one of them held out",
        ("--data", tmp_path / "pairs.txt"): "must be .jsonl, .json, .csv or .tsv",
        (
            "--data",
            tmp_path / "e2e.csv",
            "--columns",
            "meaning",
            "text",
        ): 'e2e.csv line 1 has no column "meaning": there is "mr", "ref"',
        ("--data", tmp_path / "e2e.csv", "--test", tmp_path / "nowhere.csv"): "no data at ",
        ("--dev", pairs): "--dev goes with --data: a task makes its own examples",
        ("--test", pairs): "--test goes with --data",
        ("--columns", "mr", "ref"): "--columns goes with --data",
        ("--limit", "4"): "--limit goes with --data",
        ("--template", "{input}"): "--template goes with --data",
        ("--answers", "4"): "--answers goes with --data",
        ("--epochs", "2"): "--epochs goes with --data",
        ("--data", pairs, "--epochs", "2", "--steps", "9"): "not allowed with",
        ("--data", pairs, "--epochs", "0"): "--epochs must be at least 1",
        ("--data", pairs, "--batch-size", "0"): "--batch-size must be at least 1",
        (
            "--data",
            pairs,
            "--template",
            "Say it:",
        ): 'a template is "chat" or a text with {input} in it once, not 0 times',
        ("--data", pairs, "--template", "{input} is {input}"): "not 2 times",
        (
            "--data",
            pairs,
            "--template",
            "chat",
        ): "the chat template needs a base whose tokenizer has <|im_start|> and <|im_end|>",
        ("--method", "magic"): "method must be one of full, hard-prompt, prompt, prefix, lora",
        ("--task", "magic"): "task must be one of copy, reverse",
        ("--base", tmp_path / "nowhere"): "no such folder",
        ("--base", tmp_path / "other"): "has 97 ids and no tokenizer.json: without one text is bytes, which needs 257",
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
        ("--method", "full", "--base-dtype", "nf4"): "--base-dtype nf4 is for a frozen base",
        ("--shard-base", "--base-dtype", "int8"): "--shard-base takes a base in float32 or bfloat16: in int8",
        ("--init", "random", "--init-from-text", "x"): "not allowed with",
        ("--method", "lora", "--r", "0"): "r must be a whole number of at least 1, not 0",
        (
            "--method",
            "lora",
            "--target-modules",
            "q_proj",
        ): "'q_proj' matches nothing: there are attn.c_attn, attn.c_proj, mlp.c_fc",
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
        (
            "--init-from",
            tmp_path / "prefix",
            "--num-virtual-tokens",
            "4",
        ): "has 8 virtual tokens, so --num-virtual-tokens cannot be 4",
        ("--method", "hard-prompt", "--search", "0"): "--search must be at least 1",
        ("--init-from", tmp_path / "nowhere"): "no adapter at",
        ("--init-from", tmp_path / "lora"): "is lora, not hard-prompt or prompt or prefix",
        ("--method", "prompt", "--init-from", tmp_path / "prefix"): "is above level 'prompt'",
        ("--method", "lora", "--init-from", tmp_path / "prefix"): "--init-from does not go with --method lora",
        ("--climb", "--resume", "--out", tmp_path / "nowhere"): "nothing to resume: there is no folder",
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
    assert code == 2 and refusal(err) == [
        "train.py: --answers scores by BLEU and chrF, which needs: pip install sacrebleu"
    ]
    assert not (tmp_path / "out").exists()


def test_texts_of_their_own_are_learnt_but_not_answered(capsys, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"{i} is {i}"}) + "\n" for i in range(10)))
    code, printed, err = call(capsys, train, "--data", path, "--steps", 2, "--batch-size", 4, "--out", tmp_path / "out")
    assert code == 0 and "    wanted" not in printed, err
    pytest.importorskip("sacrebleu")
    code, _, err = call(capsys, train, "--data", path, "--answers", 3, "--out", tmp_path / "answers")
    assert code == 2 and refusal(err) == ["train.py: --answers answers inputs, and texts have none"]


MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def real_base(folder: Path, marks=MARKS, vocab_size: int = 300) -> Path:
    """A tiny Llama with a byte-pair tokenizer of 300 ids beside it, as such folders come from the hub."""
    tokenizers = pytest.importorskip("tokenizers")
    torch.manual_seed(0)
    sizes = dict(block_size=128, n_layer=2, n_head=4, n_embd=32, n_kv_head=2, n_inner=48)
    base = GPT(GPTConfig(vocab_size=vocab_size, **sizes, **LLAMA))
    with torch.no_grad():
        base.wte.weight.mul_(10)  # so that it says something
    base.save_pretrained(folder)
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=marks, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(
        ["name[Zizzi], food[Thai]", "Zizzi serves Thai food, at a price of £20.", "naïve 提示"] * 3, trainer
    )
    bpe.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": marks[-1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return real_base(tmp_path_factory.mktemp("bases") / "llama")


def e2e_csv(path: Path, names) -> Path:
    """Inputs with two ways of saying each, as the E2E data has them."""
    rows = "".join(
        f'"name[{n}], food[Thai]","{say}, ""{n}"" serves Thai food."\n'
        for n in names
        for say in ("Here", "By the river")
    )
    path.write_text("mr,ref\n" + rows, encoding="utf-8")
    return path


def test_a_real_model_is_tuned_on_a_csv_and_its_answers_are_scored(capsys, tmp_path, llama):
    pytest.importorskip("sacrebleu")
    data = e2e_csv(tmp_path / "train.csv", ["Zizzi", "Aromi", "Wildwood", "Loch Fyne", "Cotto", "Giraffe"])
    held_out = e2e_csv(tmp_path / "test.csv", ["Strada", "Travellers", "Blue Spice", "Clowns"])
    files = ["--base", llama, "--data", data, "--test", held_out, "--template", "Say: {input}\\n", "--answers", 3]
    run = [*files, "--method", "lora", "--lr", 0.05, "--epochs", 20, "--batch-size", 4]
    code, printed, err = call(capsys, train, *run, "--out", tmp_path / "out")
    assert code == 0, err
    assert (
        f"data {data} (10 to train on, 8 held out)" in printed
    )  # one input of the six, both ways of saying it, is chosen by
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert (
        scores["loss"][1] < 0.8 * scores["loss"][0]
        and scores["dev_loss"] < scores["loss"][0]
        and scores["examples"] == 8
    )
    assert [s["input"] for s in scores["samples"]] == [
        f"name[{n}], food[Thai]" for n in ("Strada", "Travellers", "Blue Spice")
    ]

    rows = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [r["input"] for r in rows] == [s["input"] for s in scores["samples"]]
    assert rows[2]["references"] == [
        'Here, "Blue Spice" serves Thai food.',
        'By the river, "Blue Spice" serves Thai food.',
    ]
    assert scores["answers"] == {
        "inputs": 3,
        **text_scores([r["answer"] for r in rows], [r["references"] for r in rows]),
    }
    assert scores["answers"]["bleu"] > 1 and f"3 inputs answered: BLEU {scores['answers']['bleu']:.2f}, chrF" in printed

    tokenizer = tokenizer_for(300, llama)
    base = GPT.from_pretrained(llama)
    model = load_adapter(base, tmp_path / "out")
    asked = torch.tensor([tokenizer.encode(f"Say: {rows[0]['input']}\n")])
    new = generate(model, asked, 64, stop_token=tokenizer.stops)[0, asked.size(1) :]
    assert tokenizer.decode(new.tolist()).startswith(rows[0]["answer"]) and rows[0]["answer"]

    code, again, err = call(capsys, train, *files, "--eval-only", "--out", tmp_path / "out")
    assert code == 0 and scored(again) == scored(printed) != [], err


def test_training_on_a_limit_of_the_examples_or_chosen_columns(capsys, tmp_path, llama):
    data = e2e_csv(tmp_path / "train.csv", ["Zizzi", "Aromi", "Cotto"])
    run = ["--base", llama, "--data", data, "--dev", data, "--method", "prompt", "--epochs", 1]
    code, printed, err = call(capsys, train, *run, "--limit", 3, "--out", tmp_path / "limited")
    assert code == 0 and "(3 to train on, 6 held out)" in printed, err
    code, printed, err = call(
        capsys, train, *run, "--columns", "ref", "mr", "--template", "chat", "--out", tmp_path / "turned"
    )
    assert (
        code == 0
        and 'By the river, "Zizzi" serves Thai food.' in printed
        and "    wanted name[Zizzi], food[Thai]" in printed
    ), err
    settings = ["--limit", 3, "--columns", "mr", "ref"]
    code, _, err = call(capsys, train, *run, *settings, "--resume", "--out", tmp_path / "limited")
    assert code == 2 and "nothing to resume" in err


def test_a_fully_tuned_model_is_a_base_with_its_tokenizer(capsys, tmp_path, llama):
    """It opens here and in transformers, reads the same ids, and stops where it did."""
    data = e2e_csv(tmp_path / "train.csv", ["Zizzi", "Aromi", "Cotto"])
    run = ["--data", data, "--template", "chat", "--epochs", 1, "--lr", 0.01]
    code, _, err = call(capsys, train, "--base", llama, *run, "--method", "full", "--out", tmp_path / "full")
    assert code == 0, err
    assert (tmp_path / "full" / "tokenizer.json").read_bytes() == (llama / "tokenizer.json").read_bytes()
    ours, text = tokenizer_for(300, tmp_path / "full"), "name[Zizzi], naïve 提示 £20"
    assert ours.stops == tokenizer_for(300, llama).stops == [2] and ours.decode(ours.encode(text)) == text
    code, printed, err = call(
        capsys, train, "--base", tmp_path / "full", *run, "--method", "prefix", "--out", tmp_path / "adapter"
    )
    assert code == 0 and f"base {tmp_path / 'full'} || method prefix" in printed, err

    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "full")
    assert theirs(text)["input_ids"] == ours.encode(text) and theirs.eos_token == "<|im_end|>"
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "full")
    idx = torch.tensor([ours.encode(text)])
    with torch.no_grad():
        torch.testing.assert_close(model(idx).logits, GPT.from_pretrained(tmp_path / "full")(idx), rtol=0, atol=1e-4)
    assert model.generation_config.eos_token_id in (2, [2])


def test_a_tokenizer_that_does_not_go_with_the_base_is_refused_in_one_line(capsys, tmp_path, llama, pairs):
    small = real_base(tmp_path / "small", vocab_size=97)
    unmarked = real_base(tmp_path / "unmarked", marks=MARKS[:1])
    for argv, message in {
        ("--base", small, "--data", pairs): "tokenizer.json has 300 ids and the model 97: it must be the model's own",
        (
            "--base",
            unmarked,
            "--data",
            pairs,
            "--template",
            "chat",
        ): "the chat template needs a base whose tokenizer has <|im_start|>",
        ("--base", llama, "--data", pairs, "--num-virtual-tokens", 125): "125 virtual tokens and ",
    }.items():
        code, _, err = call(capsys, train, *argv, "--out", tmp_path / "out")
        lines = refusal(err)
        assert code == 2 and len(lines) == 1 and message in lines[0], (argv, err)
        assert not (tmp_path / "out").exists()


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
        pytest.param(["--batch-size", "1000000000000"], "try a smaller shape", marks=pytest.mark.slow),
        (["attention", "--shapes", "4x12"], "must be five whole numbers BxHxTxPxS"),
        (["attention", "--shapes", "4x12x0x1x8"], "only P may be 0"),
        (["attention", "--batch-size", "4"], "unrecognized arguments"),
        (["peers", "--supervised", "1.5"], "--supervised must be above 0 and at most 1"),
        (["peers", "--supervised", "nan"], "--supervised must be above 0 and at most 1"),
        pytest.param(
            ["peers", "--methods", "adapter"], "which both libraries have, not 'adapter'",
            marks=pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="asks peft"),
        ),
        (["serving", "--tasks", "0"], "--tasks must be at least 1"),
        (["serving", "--tasks", "65"], "65 tasks do not fit a batch of 64 rows"),
        (
            ["peers", "--preset", "nano", "--seq-len", "500"],
            "20 virtual + 500 real tokens do not fit the block size of 512",
        ),
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
    monkeypatch.setattr(grid, "work", lambda *_: pytest.fail("a cell was run"))
    code, _, err = call(capsys, bench, *argv)
    lines = refusal(err)
    assert code == 2 and len(lines) == 1 and lines[0].startswith("bench.py: ") and message in lines[0], err


@pytest.mark.slow
def test_the_exit_code_reaches_the_shell_without_a_traceback(tmp_path, monkeypatch, capsys):
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", "--task", "magic"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not done.stdout
    monkeypatch.setattr(sys, "argv", ["bench.py", "--help"])  # the other script, without another interpreter
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "bench.py"), run_name="__main__")
    helped = capsys.readouterr().out
    assert ended.value.code == 0 and "--num-virtual-tokens" in helped and "(default: 8)" in helped


def test_help_is_one_page_by_subject_and_one_page_a_method(capsys):
    def help_of(*argv) -> str:
        with pytest.raises(SystemExit) as ended:
            train.main([*argv])
        assert ended.value.code == 0
        return capsys.readouterr().out

    page = help_of("--help")
    assert len(page.splitlines()) <= 60 and max(map(len, page.splitlines())) <= 100
    for subject in ("method", "data", "base", "optimisation", "precision and memory", "run folder"):
        assert f"\n{subject}:\n" in page
    pages = {name: help_of("--help", name) for name in [*train.METHODS, "document"]}
    assert pages["prefix"] == help_of("--method", "prefix", "--help") and "--prefix-projection" in pages["prefix"]
    flags = re.findall(r"^  (?:-h(?: \[NAME\])?, )?(--[a-z-]+)", "\n".join([page, *pages.values()]), re.MULTILINE)
    assert set(flags) == {next(o for o in action.option_strings if o[:2] == "--") for action in train.parser()._actions}
    assert call(capsys, train, "--help", "magic")[0] == 2
