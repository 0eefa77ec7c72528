"""Runs of train.py that are stopped and go on, and folders that hold part of a run."""

import json
import re
import shlex
import shutil
import signal

import pytest
import torch
from scripts import call, finished, interrupted_at, refusal, scores_of

import train
from minipeft import GPT, PRESETS, Error, GPTConfig, accounting, load_adapter
from minipeft.accounting.shapes import EMBEDDED
from minipeft.data import NANO
from minipeft.data.batches import FileData, TaskData
from minipeft.files.tensors import StoredTensors
from minipeft.training.job import Job

pytestmark = pytest.mark.usefixtures("few_examples")


def test_a_stopped_run_is_resumed_from_the_command_line(capsys, tmp_path, pairs):
    flags = ["--data", pairs, "--steps", 10, "--batch-size", 8, "--seed", 5]
    finished(capsys, *flags, "--out", tmp_path / "whole")
    with interrupted_at(FileData, 7):
        code, _, err = call(capsys, train, *flags, "--out", tmp_path / "out")
    assert code == 130 and not (tmp_path / "out" / "adapter_config.json").exists()
    again = [str(f) for f in (*flags, "--out", tmp_path / "out", "--resume")]
    assert refusal(err)[-1] == f"train.py: interrupted; go on with: {shlex.join(['python', 'train.py', *again])}"
    code, _, err = call(capsys, train, *flags, "--out", tmp_path / "out")
    assert code == 2 and "holds a run that was stopped: --resume goes on with it, --overwrite starts anew" in err

    whole_file = pairs.read_text()
    pairs.write_text(whole_file.replace("Zizzi", "Zozzo"))
    code, _, err = call(capsys, train, *flags, "--out", tmp_path / "out", "--resume")
    assert code == 2 and "is of another run: its 'examples'" in err
    pairs.write_text("".join(whole_file.splitlines(keepends=True)[:-9]))
    code, _, err = call(capsys, train, *flags, "--out", tmp_path / "out", "--resume")
    assert code == 2 and "its 'examples' is '40 to train on, 5 held out, SHA-256 " in err
    assert "here it is '32 to train on" in err
    pairs.write_text(whole_file)
    printed = finished(capsys, *flags, "--out", tmp_path / "out", "--resume")
    assert f"resuming from {tmp_path / 'out' / 'training_state' / '00000007-'}" in printed
    base = GPT.from_pretrained(NANO)
    one, two = (load_adapter(base, tmp_path / name).method.tensors()["prompt_embeddings"] for name in ("whole", "out"))
    assert torch.equal(one, two)
    code, _, err = call(capsys, train, *flags, "--out", tmp_path / "out", "--resume")
    assert code == 2 and "nothing to resume: the run in" in err
    code, _, err = call(capsys, train, *flags, "--out", tmp_path / "out")
    assert code == 2 and "holds a finished run: --overwrite replaces it, another --out keeps both" in err
    finished(capsys, *flags, "--out", tmp_path / "out", "--overwrite")


@pytest.mark.parametrize("flags, name", [(["--seed", 6], "seed"), (["--batch-size", 4], "batch_size"),
                                         (["--keep-best"], "keep_best"), (["--dtype", "bfloat16"], "dtype")])
def test_a_run_is_not_resumed_as_another(flags, name, capsys, tmp_path):
    GPT(GPTConfig(257, 96, 2, 2, 32)).save_pretrained(tmp_path / "base")
    common = ["--base", tmp_path / "base", "--steps", 4, "--batch-size", 2, "--out", tmp_path / "out"]
    with interrupted_at(TaskData, 2):
        assert call(capsys, train, *common)[0] == 130
    code, _, err = call(capsys, train, *common, *flags, "--resume")
    assert code == 2 and f"is of another run: its '{name}'" in err


@pytest.mark.slow
def test_a_climb_goes_on_with_the_rung_it_was_stopped_at(capsys, tmp_path):
    flags = ["--climb", "--steps", 6, "--batch-size", 8, "--seed", 2]
    finished(capsys, *flags, "--out", tmp_path / "whole")
    with interrupted_at(TaskData, 4):
        assert call(capsys, train, *flags, "--out", tmp_path / "out")[0] == 130
    before = (tmp_path / "out" / "hard-prompt" / "scores.json").stat().st_mtime_ns
    printed = finished(capsys, *flags, "--out", tmp_path / "out", "--resume")
    assert "resuming from" in printed
    assert (tmp_path / "out" / "hard-prompt" / "scores.json").stat().st_mtime_ns == before
    for rung in train.LADDER:
        whole, resumed = (scores_of(tmp_path / name / rung) for name in ("whole", "out"))
        assert whole["loss"] == resumed["loss"] and whole["start_loss"] == resumed["start_loss"]


@pytest.mark.slow
def test_a_climb_that_overwrites_and_is_stopped_takes_no_rung_of_the_climb_before(capsys, tmp_path, monkeypatch):
    flags = ["--climb", "--batch-size", 8, "--out", tmp_path, "--wordings", "Reverse: ", "--steps"]
    finished(capsys, *flags, 1)
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
    finished(capsys, *flags, 2, "--resume")
    commands = [scores_of(tmp_path / rung)["command"] for rung in train.LADDER]
    assert all("--steps 2 --" in command for command in commands)


def test_a_climb_takes_no_rung_of_a_climb_with_other_flags(capsys, tmp_path):
    flags = ["--climb", "--base", "tiny", "--batch-size", 2, "--steps", 1, "--out", tmp_path, "--wordings", "Do: "]
    finished(capsys, *flags)
    before = scores_of(tmp_path / "prefix")
    code, _, err = call(capsys, train, *flags, "--task", "sort", "--resume")
    assert code == 2
    assert "is of another run: its 'task' is 'reverse', here it is 'sort' (--overwrite starts anew)" in err
    assert scores_of(tmp_path / "prefix") == before
    mixed = scores_of(tmp_path / "prefix")
    mixed["flags"]["task"] = "sort"  # an older climb's, which the one that overwrites did not reach
    (tmp_path / "prefix" / "scores.json").write_text(json.dumps(mixed))
    finished(capsys, *flags, "--resume")
    assert scores_of(tmp_path / "prefix")["loss"] == before["loss"]
    assert scores_of(tmp_path / "prefix")["flags"]["task"] == "reverse"


def test_a_climb_takes_no_rung_of_other_data_or_another_base_under_the_same_name(capsys, tmp_path, pairs):
    torch.manual_seed(0)
    base, out = tmp_path / "base", tmp_path / "out"
    GPT(EMBEDDED["tiny"]).save_pretrained(base)
    flags = ["--climb", "--base", base, "--data", pairs, "--batch-size", 2, "--steps", 1, "--out", out,
             "--wordings", "Do: "]
    finished(capsys, *flags)
    whole = scores_of(out / "prefix")
    shutil.rmtree(out / "prefix")
    before = pairs.read_text()
    pairs.write_text(before.replace("Thai", "Greek"))
    code, _, err = call(capsys, train, *flags, "--resume")
    assert code == 2 and "is of another run: its 'data SHA-256' is " in err and "(--overwrite starts anew)" in err
    pairs.write_text(before)
    weights = {path: path.read_bytes() for path in base.iterdir()}
    torch.manual_seed(1)
    GPT(EMBEDDED["tiny"]).save_pretrained(base)
    code, _, err = call(capsys, train, *flags, "--resume")
    assert code == 2 and "is of another run: its 'base SHA-256' is " in err
    for path, content in weights.items():
        path.write_bytes(content)
    older = scores_of(out / "prompt")
    older.pop("sources")  # as a version before wrote them
    (out / "prompt" / "scores.json").write_text(json.dumps(older))
    finished(capsys, *flags, "--resume")
    assert scores_of(out / "prompt") == older and scores_of(out / "prefix")["loss"] == whole["loss"]


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
    finished(capsys, *flags, "--out", tmp_path / "whole")
    results = [scores_of(folder) for folder in (out, tmp_path / "whole")]
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


@pytest.mark.parametrize("method", ["prefix", "full"])
def test_a_run_folder_without_its_weights_says_so(method, capsys, tmp_path):
    out = tmp_path / "out"
    run = ["--base", "tiny", "--method", method, "--steps", 1, "--batch-size", 2, "--out", out]
    finished(capsys, *run)
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


def test_the_command_that_is_told_to_several_processes_is_one_that_torchrun_takes(monkeypatch):
    from torch.distributed.run import get_args_parser

    monkeypatch.setattr(train, "world_size", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    told = train.command(["--method", "lora", "--r", "4"])  # --r begins some of torchrun's own flags
    given = get_args_parser().parse_args(told[1:])
    assert (told[0], given.nproc_per_node, given.training_script) == ("torchrun", "2", "train.py")
    assert [a for a in given.training_script_args if a != "--"] == ["--method", "lora", "--r", "4"]


@pytest.mark.parametrize("base", ["nano", "scratch"])
def test_a_run_on_a_quantised_base_is_resumed_bit_for_bit(capsys, tmp_path, pairs, base):
    flags = ["--base", base, "--base-dtype", "nf4", "--data", pairs, "--steps", 6, "--batch-size", 8]
    printed = finished(capsys, *flags, "--out", tmp_path / "whole")
    kb = float(re.search(r"beside the base's ([\d.,]+) KB", printed)[1])
    assert kb == round(accounting.base_weight_bytes(PRESETS["nano"], "nf4") / 1000, 1)
    with interrupted_at(FileData, 4):
        assert call(capsys, train, *flags, "--out", tmp_path / "out")[0] == 130
    other = [*flags[:3], "int8", *flags[4:], "--out", tmp_path / "out", "--resume"]
    code, _, err = call(capsys, train, *other)
    assert code == 2 and "is of another run: its 'base_dtype' is 'nf4'" in err
    printed = finished(capsys, *flags, "--out", tmp_path / "out", "--resume")
    assert "resuming from" in printed
    one, two = (scores_of(tmp_path / name) for name in ("whole", "out"))
    assert one["loss"] == two["loss"]
    tensors = [dict(StoredTensors(tmp_path / name, "adapter_model", {})) for name in ("whole", "out")]
    assert all(t.equal(tensors[1][name]) for name, t in tensors[0].items())
