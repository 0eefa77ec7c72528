"""A few hundred mutated files are read right or refused, and the harness detects broken readers."""

import importlib
import json
import os
import shutil
import time

import pytest

from minipeft import Error, adapters
from minipeft.files import huggingface, peft, torch_format
from minipeft.files import tensors as stored_tensors
from minipeft.parts import quantised_base
from minipeft.runtime.console import run
from tests.faults import files, pickles
from tests.faults.originals import KINDS, Held, Readers, build

pytest.importorskip("safetensors")
pytest.importorskip("tokenizers")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="pipes and limits of memory are POSIX's")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The originals, their readers, and their folder."""
    root = tmp_path_factory.mktemp("originals")
    return build(root), Readers(root), root


def failures(made, count, name, work):
    """Failures among the first `count` mutations of one original, read in this process.

    Pipes are left out: a broken reader would open them and block.
    """
    originals, readers, _ = made
    original = next(o for o in originals if o.name == name)
    cases = [files.Case(n, [original], original.kind, work / str(n)) for n in range(count)]
    outcomes = [case.judge(readers) for case in cases if case.mutation != "no_file"]
    return [outcome for outcome in outcomes if outcome not in ("right", "refused")]


def test_every_original_is_read_as_it_was_made(made):
    originals, readers, _ = made
    assert {o.kind for o in originals} == set(KINDS)
    for o in originals:
        read = readers.read(o, o.folder)
        assert any(files.is_right(read, want) for want in o.held), (o.kind, o.name)


def test_a_base_that_quantised_is_another_is_found(made, tmp_path, monkeypatch):
    """Codes that are wrong in one place, and a checksum that is not looked at."""
    assert failures(made, 40, "llama-safe", tmp_path / "right") == []
    quantise = quantised_base.quantise

    def wrong(weight, kind):
        found = quantise(weight, kind)
        return found if weight.dim() == 2 and len(weight) != 8 else found | {"codes": found["codes"] * 0}

    reading = huggingface.read_base

    def read(folder, dtype=None, convert=None):
        if convert is not None:
            monkeypatch.setattr(quantised_base, "quantise", wrong)
        try:
            return reading(folder, dtype, convert)
        finally:
            monkeypatch.setattr(quantised_base, "quantise", quantise)

    monkeypatch.setattr(huggingface, "read_base", read)
    assert any("in int8 it is another base" in line for line in failures(made, 40, "llama-safe", tmp_path / "wrong"))


@pytest.mark.slow
def test_mutated_files_are_read_right_or_refused(tmp_path, capsys, monkeypatch):
    """The command itself: reading processes with limits of time and memory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "SECONDS", 30)  # the cores may be busy with other tests; what hangs, hangs longer
    argv = ["--count", "200", "--seed", "1000", "--workers", "2", "--keep", str(tmp_path / "kept"),
            "--out", str(tmp_path / "counts.json")]
    assert run("faults", lambda: files.main(argv)) == 0, capsys.readouterr()
    *_, total = json.loads((tmp_path / "counts.json").read_text())["counts"]
    assert total["tried"] == 200 == total["right"] + total["refused"] and min(total["right"], total["refused"]) > 40
    assert not (tmp_path / "kept").exists()


def test_a_file_is_drawn_again_by_its_number(made, tmp_path):
    originals, _, _ = made
    for n in range(40):
        a, b = (files.Case(n, originals, None, tmp_path / f"{name}{n}") for name in "ab")
        assert (a.kind, a.mutation) == (b.kind, b.mutation)
        for path in (p for p in a.folder.rglob("*") if p.is_file()):
            if path.suffix not in (".bin", ".pt"):  # a zip has the time in it
                assert path.read_bytes() == (b.folder / path.relative_to(a.folder)).read_bytes()


def no_checksum(monkeypatch):
    opened = stored_tensors.StoredTensors.__init__

    def without_checksum(self, *args):
        opened(self, *args)
        self.notes.pop("sha256", None)

    monkeypatch.setattr(stored_tensors.StoredTensors, "__init__", without_checksum)


def no_digest_of_the_config(monkeypatch):
    monkeypatch.setattr(stored_tensors.StoredTensors, "check_config", lambda *_: None)


def no_check_of_names(monkeypatch):
    monkeypatch.setattr(adapters, "check_tensors", lambda *_: None)


def any_json(monkeypatch):
    monkeypatch.setattr(peft, "read_json", lambda path: json.loads(path.read_text()))


@pytest.mark.parametrize(
    "broken, name, seen",
    [
        (no_checksum, "prefix-safe", "wrong"),
        (no_digest_of_the_config, "lora-safe", "wrong"),
        (no_check_of_names, "adapter-safe-bare", "exception"),
        (any_json, "lora+prefix-safe", "exception"),
    ],
)
def test_a_reader_without_one_of_its_checks_is_caught(broken, name, seen, made, tmp_path, monkeypatch):
    assert not failures(made, 100, name, tmp_path / "whole")
    broken(monkeypatch)
    found = failures(made, 100, name, tmp_path / "broken")
    assert any(outcome.startswith(seen) for outcome in found), found[:5]


@pytest.mark.parametrize("broken", [False, True])
def test_code_that_runs_is_seen(broken, made, tmp_path, monkeypatch):
    originals = [o for o in made[0] if o.name == "prompt-bin-bare"]
    case = files.Case(0, originals, "adapter", tmp_path)
    shutil.rmtree(case.folder)
    shutil.copytree(originals[0].folder, case.folder)
    program = pickles.Call(os.system, f"touch {tmp_path / pickles.MARKER}")
    pickles.archive(case.folder / "adapter_model.bin", pickles.pickled({"prompt_embeddings": program}))
    if broken:
        anything = lambda self, module, name: getattr(importlib.import_module(module), name)  # noqa: E731
        monkeypatch.setattr(torch_format._Unpickler, "find_class", anything)
    assert case.judge(made[1]) == ("code ran" if broken else "refused")


def reader_that(monkeypatch, does):
    """Replace the reader under test."""
    monkeypatch.setattr(Readers, "read", lambda self, original, folder: does(folder))


def refuse(message):
    def raise_(folder):
        raise Error(message.format(folder))

    return raise_


@pytest.mark.parametrize(
    "does, outcome",
    [
        (refuse("{} is torn"), "refused"),
        (refuse("{} is\ntorn"), "message: "),
        (refuse("it is torn"), "message names no file"),
        (refuse("{} is torn (MemoryError)"), "memory"),
        (lambda folder: 1 / 0, "exception: ZeroDivisionError"),
        (lambda folder: bytearray(10**9), "memory"),
        (lambda folder: Held({}, None), "wrong: "),
        (lambda folder: (folder.parent / pickles.MARKER).touch() or Held({}, None), "code ran"),
    ],
)
def test_every_kind_of_failure_is_told(does, outcome, made, tmp_path, monkeypatch):
    case = files.Case(0, made[0], "adapter", tmp_path)
    reader_that(monkeypatch, does)
    assert case.judge(made[1]).startswith(outcome)


def hanging(pipe, *_):
    while (n := pipe.recv()) is not None:
        pipe.send(("adapter", "flip"))
        os._exit(3) if n == 1 else pipe.send("right") if n == 2 else time.sleep(60)


@pytest.mark.slow
def test_a_process_that_hangs_or_dies_is_replaced(monkeypatch):
    monkeypatch.setattr(files, "work_through", hanging)
    monkeypatch.setattr(files, "SECONDS", 1)
    worker = files.Worker()
    assert [worker.run(n)[2] for n in (0, 2, 1, 2)] == ["hang", "right", "crash: exit code 3", "right"]
    worker.end()
