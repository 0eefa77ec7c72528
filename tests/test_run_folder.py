"""A run's folder: one run at a time, and states that are whole or passed over."""

import errno
import io
import json
import os
import shutil

import pytest
import torch
from forked import context

from minipeft import Error
from minipeft.files import atomic
from minipeft.training.run_folder import RunFolder, check_no_run, is_intact, read_checkpoint

STATE = {"step": 1, "trained": {"x": torch.arange(1000.0)}}


def names(folder):
    return sorted(p.name for p in (folder / "training_state").iterdir() if p.suffix == ".pt")


def test_the_last_two_states_are_kept_under_their_steps_and_hashes(tmp_path):
    with RunFolder(tmp_path) as run:
        for step in (5, 50, 500):
            run.save(step, {**STATE, "step": step})
    assert [name[:9] for name in names(tmp_path)] == ["00000050-", "00000500-"]
    path = tmp_path / "training_state" / names(tmp_path)[1]
    assert (
        is_intact(path)
        and read_checkpoint(path)["step"] == 500
        and torch.equal(read_checkpoint(path)["trained"]["x"], STATE["trained"]["x"])
    )


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b + b"\0"])
def test_a_damaged_state_is_passed_over_with_a_warning_and_never_kept_for_a_whole_one(change, tmp_path, capsys):
    with RunFolder(tmp_path) as run:
        run.save(1, STATE)
        run.save(2, STATE)
    older, newer = (tmp_path / "training_state" / name for name in names(tmp_path))
    newer.write_bytes(change(newer.read_bytes()))
    with pytest.raises(Error, match="is damaged: it is not what was written"):
        read_checkpoint(newer)
    with RunFolder(tmp_path, resume=True) as run:
        assert run.newest() == older
        assert capsys.readouterr().err == f"warning: {newer} is damaged, going back to the checkpoint before it\n"
        run.save(2, {**STATE, "step": 3})
        assert [is_intact(tmp_path / "training_state" / name) for name in names(tmp_path)] == [True, True]
    for name in names(tmp_path):
        (tmp_path / "training_state" / name).write_bytes(b"")
    with RunFolder(tmp_path, resume=True) as run, pytest.raises(Error, match="every checkpoint in .* is damaged"):
        run.newest()


def test_a_second_run_is_refused_while_one_works_and_after_it(tmp_path):
    with RunFolder(tmp_path / "out") as run:
        for again in (dict(), dict(resume=True), dict(overwrite=True)):
            with pytest.raises(Error, match="out is in use: another run works there"):
                RunFolder(tmp_path / "out", **again).__enter__()
        run.save(1, STATE)
    with pytest.raises(Error, match="holds a run that was stopped: --resume goes on with it, --overwrite starts anew"):
        RunFolder(tmp_path / "out").__enter__()
    with RunFolder(tmp_path / "out", resume=True) as run:
        assert run.newest()
        (tmp_path / "out" / "scores.json").write_text("{}")
        weights = tmp_path / "out" / "adapter_model.safetensors"
        weights.write_bytes(b"")
        run.finish("scores.json")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["adapter_model.safetensors", "scores.json"]
    with pytest.raises(Error, match="holds a finished run: --overwrite replaces it"):
        RunFolder(tmp_path / "out").__enter__()
    with pytest.raises(Error, match=r"nothing to resume: the run in .* is finished \(.*, --eval-only evaluates it\)"):
        RunFolder(tmp_path / "out", resume=True).__enter__()
    weights.unlink()
    with pytest.raises(Error, match="holds a finished run, but its weights were deleted or not copied along: --over"):
        RunFolder(tmp_path / "out").__enter__()
    with pytest.raises(Error, match=r"is finished, but its weights were deleted .* \(--overwrite starts anew\)"):
        RunFolder(tmp_path / "out", resume=True).__enter__()
    with RunFolder(tmp_path / "out", overwrite=True) as run:
        assert run.newest() is None
    with pytest.raises(Error, match="nothing to resume: there is no folder"):
        RunFolder(tmp_path / "nowhere", resume=True).__enter__()
    assert not (tmp_path / "nowhere").exists()


def hold(folder, end):
    with RunFolder(folder):
        end.send("held")
        end.recv()


def test_a_process_that_is_killed_lets_go_of_the_folder(tmp_path):
    ours, theirs = context().Pipe()
    child = context().Process(target=hold, args=(tmp_path / "out", theirs), daemon=True)
    child.start()
    assert ours.recv() == "held"
    with pytest.raises(Error, match="is in use"):
        RunFolder(tmp_path / "out").__enter__()
    child.kill()
    child.join()
    with RunFolder(tmp_path / "out", resume=True) as run:  # it was stopped before its first state
        assert run.newest() is None


def test_a_run_that_is_refused_leaves_nothing_and_one_that_is_interrupted_can_be_resumed(tmp_path):
    with pytest.raises(Error), RunFolder(tmp_path / "out"):
        raise Error("no")
    assert not (tmp_path / "out").exists()
    for stop in (
        KeyboardInterrupt(),
        RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1"),
    ):
        with pytest.raises(type(stop)), RunFolder(tmp_path / "out", overwrite=True):
            raise stop
        with RunFolder(tmp_path / "out", resume=True):
            pass
        shutil.rmtree(tmp_path / "out")


def test_a_run_that_overwrites_costs_the_one_before_nothing_until_it_has_a_state_and_is_resumed_as_itself(tmp_path):
    out = tmp_path / "out"
    with RunFolder(out) as run:
        run.save(1, STATE)
    with pytest.raises(Error, match="no such data"), RunFolder(out, overwrite=True):
        raise Error("no such data")
    with RunFolder(out, resume=True) as run:
        assert run.newest().name.startswith("00000001-")  # the mistake did not cost it
    with pytest.raises(KeyboardInterrupt), RunFolder(out, overwrite=True):
        raise KeyboardInterrupt
    with pytest.raises(Error, match="holds a run that was stopped"):
        RunFolder(out).__enter__()
    with RunFolder(out, resume=True) as run:
        assert run.newest() is None  # from the beginning, and not from the other's state
        run.save(2, STATE)
        assert [name[:9] for name in names(out)] == ["00000002-"] and run.newest()
        (out / "scores.json").write_text("{}")
        run.finish("scores.json")
    with pytest.raises(KeyboardInterrupt), RunFolder(out, overwrite=True):
        raise KeyboardInterrupt
    with RunFolder(out, resume=True) as run:  # the result that lies there is not its own
        assert run.newest() is None


def test_a_run_removes_what_runs_wrote_and_nothing_of_a_users(tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"input": "mine"}\n')
    (tmp_path / "document.json").write_text('{"mine": 1}')
    kept = []
    for answers in (None, {"bleu": 1.0}, None):
        with RunFolder(tmp_path, overwrite=True) as run:
            (tmp_path / "scores.json").write_text(json.dumps({"exact_match": [0, 1], "answers": answers}))
            if answers:
                (tmp_path / "answers.jsonl").write_text("a run's")
            run.finish("scores.json", *(["answers.jsonl"] if answers else []))
        assert (tmp_path / "document.json").exists()
        with pytest.raises(Error, match="holds a run of train.py: write into another folder"):
            check_no_run(tmp_path)
        kept.append((tmp_path / "answers.jsonl").exists() and (tmp_path / "answers.jsonl").read_text()[:12])
    assert kept == ['{"input": "m', "a run's", False]
    assert not (tmp_path / "answers.jsonl").exists()  # the second run's, stale behind the third


def test_what_a_killed_write_left_is_removed_and_nothing_else_is(tmp_path):
    (tmp_path / "training_state").mkdir()
    (tmp_path / "lora").mkdir()
    left = [".scores.json.12.tmp", ".adapter_model.safetensors.7.tmp", ".tokenizer_config.json.8.tmp",
            "lora/.adapter_config.json.9.tmp", ".chat_template.jinja.1.tmp", "training_state/.00000012.pt.345.tmp"]
    others = [".mine.12.tmp", "notes.tmp", ".scores.json.tmp"]
    for name in left + others:
        (tmp_path / name).write_text("")
    with RunFolder(tmp_path):
        assert [name for name in left + others if (tmp_path / name).exists()] == others


def test_a_full_disk_is_one_line_and_leaves_the_state_before_it(tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    with RunFolder(tmp_path) as run:
        run.save(1, STATE)
        before = {p: p.read_bytes() for p in (tmp_path / "training_state").glob("*.pt")}
        monkeypatch.setattr("builtins.open", lambda path, mode: Full(path, mode))
        with pytest.raises(Error, match="00000002.pt cannot be written: No space left on device") as e:
            run.save(2, STATE)
        monkeypatch.undo()
        assert "\n" not in str(e.value)
    assert {p: p.read_bytes() for p in (tmp_path / "training_state").iterdir() if p.name != "lock"} == before


def test_a_folder_that_cannot_be_written_to_is_refused_at_once(tmp_path):
    if os.access("/proc/1", os.F_OK):
        with pytest.raises(Error, match="/proc/minipeft cannot be written to: "):
            RunFolder("/proc/minipeft").__enter__()
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o500)
    if not os.access(tmp_path / "out", os.W_OK):  # root may write everywhere
        with pytest.raises(Error, match="out cannot be written to: Permission denied"):
            RunFolder(tmp_path / "out").__enter__()
    with pytest.raises(Error, match="scores.json cannot be written: "):
        atomic.write_json(
            tmp_path / "file" / "scores.json" if (tmp_path / "file").write_text("") == 0 else tmp_path, {}
        )


def test_a_pipe_in_place_of_a_state_is_not_waited_for(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes with names on this system")
    with RunFolder(tmp_path) as run:
        run.save(1, STATE)
        os.mkfifo(tmp_path / "training_state" / f"00000002-{16 * '0'}.pt")
        assert run.newest().name.startswith("00000001-")


def test_a_file_is_on_the_disk_before_it_takes_the_place_of_another(tmp_path, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.fstat(fd).st_size), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), replace(a, b))[1])
    atomic.write_text(tmp_path / "a.json", "abc")
    assert events == [3, "replace"]
