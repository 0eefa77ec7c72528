"""The choice of compiled blocks: made once, by what the first steps took, and replayed in a resumed run."""

import contextlib
import json
from types import SimpleNamespace

import pytest
import torch
from conftest import compiling_by

import minipeft.model
import train
from minipeft.checks import Error
from minipeft.data.batches import TaskData
from minipeft.training import compile_choice, loop
from minipeft.training.checkpoints import setting_of
from minipeft.training.compile_choice import CompileChoice


def choice(wanted=None, recorded=None, dtype=torch.float32, may_decide=True):
    switched = []
    model = SimpleNamespace(compile_blocks=lambda on, any_length: switched.append(on))
    made = CompileChoice(model, wanted, recorded, dtype, may_decide)
    return made, switched


@pytest.mark.parametrize(("dtype", "seconds", "pays"), [
    (torch.float32, 790, False), (torch.float32, 810, True), (torch.bfloat16, 190, False), (torch.bfloat16, 210, True),
    (torch.float64, 1e9, False)])
def test_it_compiles_where_twice_the_time_that_compiling_takes_is_saved(dtype, seconds, pays, capsys):
    made, switched = choice(dtype=dtype)
    made.switch()
    assert made.made == "undecided" and switched == [False]
    assert made.decide(seconds, 6) and made.made == ("from step 7" if pays else "no") and switched == [False, pays]
    assert ("compiling the blocks, some 20 s, for an estimated" in capsys.readouterr().err) == pays
    assert not made.decide(1e9, 12) and len(switched) == 2  # once


def test_flags_checkpoints_and_other_devices_leave_nothing_to_decide():
    for given, made, on in [(dict(wanted=True), "yes", True), (dict(wanted=False), "no", False),
                            (dict(recorded="from step 7"), "from step 7", True), (dict(recorded="no"), "no", False),
                            (dict(may_decide=False), "no", False)]:
        c, switched = choice(**given)
        c.switch()
        assert (c.made, switched, c.decide(1e9, 6)) == (made, [on], False)
        c.switch(False)
        assert switched == [on, False]
    assert choice(recorded="undecided")[0].decide(1e9, 6)


@pytest.fixture
def compiled(monkeypatch):
    """Compiling always pays, and generates no code; the calls of compiled blocks."""
    calls, run = [], compiling_by("aot_eager")
    monkeypatch.setattr(compile_choice, "GAIN", {torch.float32: 1.0})
    monkeypatch.setattr(compile_choice, "COMPILE_SECONDS", 0)
    monkeypatch.setattr(minipeft.model, "can_compile", lambda device_type: True)
    monkeypatch.setattr(minipeft.model, "compiled", lambda block: calls.append(block) or run(block))
    return calls


@pytest.fixture
def stopping(monkeypatch):
    """A run that is stopped after step 11; the block is where it is."""

    @contextlib.contextmanager
    def stopped():
        def batch(self, step):
            if step == 11:
                raise KeyboardInterrupt
            return whole(self, step)

        whole = TaskData.batch
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(TaskData, "batch", batch)
            yield patch

    return stopped


def command(folder, *more) -> list[str]:
    return ["--base", "tiny", "--steps", "16", "--batch-size", "4", "--out", str(folder), *more]


def test_a_resumed_run_compiles_where_the_stopped_one_did(compiled, stopping, tmp_path):
    train.main(command(tmp_path / "whole"))
    assert len(compiled) == 10  # from step 7 on the second of two blocks: the first has no input to differentiate by
    with stopping():
        train.main(command(tmp_path / "stopped"))
    state = sorted((tmp_path / "stopped" / "training_state").glob("0*"))[-1]
    assert setting_of(state, "compile") == "from step 7" and setting_of(state, "magic") is None
    with pytest.raises(Error, match="is of another run: its 'compile' is 'from step 7', here it is 'no'"):
        train.main(command(tmp_path / "stopped", "--resume", "--no-compile"))
    compiled.clear()
    train.main(command(tmp_path / "stopped", "--resume"))
    assert len(compiled) == 5  # steps 12 to 16: at once, without timing anything
    one, two = (json.loads((tmp_path / name / "scores.json").read_text()) for name in ("whole", "stopped"))
    assert one["loss"] == two["loss"] and one["samples"] == two["samples"]


def test_a_checkpoint_of_an_older_version_is_resumed_eagerly(compiled, stopping, tmp_path):
    collect = loop.collect
    with stopping() as patch:
        patch.setattr(loop, "collect", lambda done, settings, *more: collect(
            done, {name: value for name, value in settings.items() if name != "compile"}, *more))
        train.main(command(tmp_path))
    compiled.clear()
    train.main(command(tmp_path, "--resume"))
    assert not compiled


def test_blocks_are_compiled_once_for_all_lengths():
    asked = []
    model = SimpleNamespace(compile_blocks=lambda on, any_length: asked.append((on, any_length)))
    CompileChoice(model, True, None, torch.float32, True).switch()
    assert asked == [(True, True)]
