"""The soak test: a short one is flat, and every kind of leak put into it is found."""

import json
from threading import Event, Thread

import numpy
import pytest
import torch

from minipeft import GPT, METHODS, Error, GPTConfig
from minipeft.parts.quantised_base import quantise_base
from minipeft.runtime import console
from tests.faults import soak

pytestmark = pytest.mark.slow


TINY = GPTConfig(vocab_size=257, block_size=64, n_layer=2, n_head=2, n_embd=16, position="rotary")
KINDS = soak.kinds_of(TINY)
TRAINED = sum(any(method.trains() for method in soak.methods_of(kind)) for kind in KINDS)
FIRST = KINDS[0].name


def short() -> dict:
    """A soak of four turns of all methods, a step for each that trains, on a tiny base."""
    torch.manual_seed(0)
    s = soak.Settings(4 * TRAINED, seed=0, steps_per_round=1, batch_size=2, new_tokens=3)
    return soak.run(s, GPT(TINY))


def leaking(monkeypatch, name: str, leak) -> None:
    """Make every call of this function in soak also leak."""
    call = getattr(soak, name)

    def calls(*arguments, **more):
        leak(*arguments)
        return call(*arguments, **more)

    monkeypatch.setattr(soak, name, calls)


def test_every_method_has_its_turn():
    assert {method.name for kind in KINDS for method in soak.methods_of(kind)} == set(METHODS)
    assert len({kind.name for kind in KINDS}) == len(KINDS) == len(METHODS) + 3


def test_a_short_soak_on_a_quantised_base_is_flat():
    torch.manual_seed(0)
    base = GPT(TINY)
    quantise_base(base, "nf4")
    kinds = soak.kinds_of(TINY, quantised=True)
    trained = sum(any(method.trains() for method in soak.methods_of(kind)) for kind in kinds)
    result = soak.run(soak.Settings(4 * trained, seed=0, steps_per_round=1, batch_size=2, new_tokens=3), base)
    assert result["leaks"] == [] and len(kinds) == len(KINDS) - 1  # all but full


def test_a_short_soak_is_flat():
    result = short()
    assert result["leaks"] == [] and result["rounds"] == 4 * (len(KINDS) + 1)
    assert [q["tensors"] for q in result["quarters"]] == 4 * [result["quarters"][0]["tensors"]]
    assert result["curve"][-1][0] == 4 * TRAINED and len(result["curve"]) <= soak.POINTS
    assert "verdict: flat" in soak.table(result)


def test_everything_that_stays_is_found(monkeypatch):
    """A tensor per turn, memory outside tensors, open files and threads, all in one run."""
    tensors, memory, files, threads, done = [], [], [], [], Event()

    def keep_a_turn(*_):
        tensors.append(torch.zeros(1))
        threads.append(Thread(target=done.wait))
        threads[-1].start()

    def keep_a_round(_, folder):
        memory.append(numpy.ones(1_000_000))  # 8 MB
        files.append(open(next(folder.rglob("*.json"))))  # noqa: SIM115

    leaking(monkeypatch, "live_tensors", keep_a_turn)
    leaking(monkeypatch, "load_adapter", keep_a_round)
    try:
        result = short()
    finally:
        done.set()
        for thread in threads:
            thread.join()
        for f in files:
            f.close()
    first = result["quarters"][0]["tensors"]
    resident, private, *rest = result["leaks"]
    assert resident.startswith("resident memory grew by ") and private.startswith("private memory grew by ")
    assert [leak.split(" from ")[0] for leak in rest] == ["tensors grew", "handles grew", "threads grew"]
    assert rest[0] == f"tensors grew from {first + 1} to {first + 3}"


@pytest.mark.parametrize("name", ["another.json", ".adapter_config.json.7.tmp"])
def test_a_file_that_is_left_over_is_found(monkeypatch, name):
    times = []

    def leave(_, folder):
        times.append(folder)
        if len(times) > len(KINDS):  # from the second turn on
            (folder / name).touch()

    leaking(monkeypatch, "load_adapter", leave)
    step = TRAINED + METHODS[FIRST].trains()
    message = f"step {step}: after {FIRST} the folder has other files than before, such as {FIRST}/{name}"
    with pytest.raises(Error, match=message):
        short()


def test_a_base_that_changes_is_found(monkeypatch):
    leaking(monkeypatch, "load_adapter", lambda base, _: base.wte.weight.data[0, 0].add_(1e-6))
    with pytest.raises(Error, match=f"{FIRST} was loaded and detached, and the base is not what it was"):
        short()


def test_what_is_loaded_must_be_what_was_saved(monkeypatch):
    load = soak.load_adapter

    def damaged(base, folder):
        model = load(base, folder)
        next(iter(soak.tuned(model).values())).flatten()[0] += 1
        return model

    monkeypatch.setattr(soak, "load_adapter", damaged)
    with pytest.raises(Error, match=f"{FIRST}: the loaded tensors are not the saved ones"):
        short()


def test_less_is_no_leak():
    q = {"resident_mb": 100.0, "private_mb": 80.0, "tensors": 5, "handles": 6, "threads": 2}
    assert soak.leaks([q, q, q, {name: 0.9 * value for name, value in q.items()}]) == []
    assert soak.leaks([q, q, q, q | {"resident_mb": 102.0, "private_mb": 81.6}]) == []
    assert len(soak.leaks([q, q, q, q | {"resident_mb": 102.1}])) == 1


def call(capsys, *argv) -> tuple[int, str, str]:
    code = console.run("soak", lambda: soak.main([str(a) for a in argv]))
    return code, *capsys.readouterr()


def fake(monkeypatch, found: list[str]) -> None:
    """Replace the run, which takes minutes, by its result."""
    names = ("resident_mb", "resident_mb_min", "resident_mb_max", "private_mb", "handles", "threads", "tensors")
    quarter = dict.fromkeys(names, 1)
    quarters = 4 * [quarter | {"steps": "1-2", "tensor_mb": 1}]
    result = {"rounds": 1, "seconds": 1.0, "quarters": quarters, "resident_ratio": 1.0, "private_ratio": 1.0,
              "leaks": found}
    monkeypatch.setattr(soak, "run", lambda s, base: result)


def test_the_command_writes_its_file_and_fails_with_one_line(capsys, tmp_path, monkeypatch):
    out = tmp_path / "soak.json"
    fake(monkeypatch, [])
    code, printed, _ = call(capsys, "--out", out)
    assert code == 0 and "verdict: flat" in printed
    fake(monkeypatch, ["handles grew from 6 to 7"])
    code, printed, err = call(capsys, "--out", out, "--seed", 3)
    assert code == 2 and err == "soak: not flat: handles grew from 6 to 7\n" and "verdict: handles grew" in printed
    written = json.loads(out.read_text())
    assert written["command"] == f"python -m tests.faults soak --out {out} --seed 3" and written["seed"] == 3
    assert written["card"]["torch"] == torch.__version__ and written["leaks"] == ["handles grew from 6 to 7"]


def test_wrong_flags_are_refused_in_one_line(capsys, tmp_path):
    for argv, says in (
        (("--steps", 100), f"at least {40 * TRAINED} steps"),
        (("--steps", "many"), "invalid int"),
        (("--seed", -1), "expected one argument|whole number"),
        (("--out", tmp_path), "is a folder"),
    ):
        code, _, err = call(capsys, *argv)
        (line,) = err.splitlines()
        assert code == 2 and any(part in line for part in says.split("|")), err
