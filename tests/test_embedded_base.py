"""Bases that ship with the package. With an instruction the default one has every skill; without, it has to guess."""

import json
import shlex
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import moved, quick

import train
from docs.tools import bases
from minipeft import GPT, Error, __main__, adapt, fingerprint
from minipeft.accounting.shapes import EMBEDDED
from minipeft.adapters import export_adapter
from minipeft.data import BASES, NANO
from minipeft.data.batches import draw
from minipeft.data.tasks import SKILLS, lookup_question, skill_example
from minipeft.data.template import Template
from minipeft.data.tokenizer import ByteTokenizer
from minipeft.training.evaluation import batches, evaluate
from minipeft.training.opening import open_base


@pytest.fixture(scope="module")
def nano() -> GPT:
    return GPT.from_pretrained(NANO)


@pytest.mark.parametrize("size", EMBEDDED)
def test_every_size_is_complete_needs_no_extra_package_and_comes_of_its_recipe(size):
    folder = BASES[size]
    assert sorted(f.name for f in folder.iterdir()) == ["config.json", "pytorch_model.bin", "scores.json"]
    base = GPT.from_pretrained(folder)
    assert base.config.resolved() == EMBEDDED[size].resolved()
    assert {p.dtype for p in base.parameters()} == {torch.float32}
    command = json.loads((folder / "scores.json").read_text())["command"]
    start = "scratch" if size == "nano" else f"scratch:{size}"  # the default
    assert command == f"python train.py --base {start} {shlex.join(bases.RECIPES[size])} --out minipeft/data/{size}"


def test_they_are_small():
    sizes = [sum(f.stat().st_size for f in BASES[size].iterdir()) for size in EMBEDDED if BASES[size].exists()]
    assert max(sizes) <= 8_000_000 and sum(sizes) <= 20_000_000 and NANO == BASES["nano"]


def test_what_is_pretrained_stays_and_what_is_not_is_pretrained_like_the_others(tmp_path, monkeypatch):
    commands = []

    def train(command):
        commands.append(command)
        shutil.copytree(BASES["small"], tmp_path / "small")
        return SimpleNamespace(returncode=int(len(commands) > 1))

    monkeypatch.setattr(bases.subprocess, "run", train)
    monkeypatch.chdir(tmp_path)
    wanted = bases.BasesSettings(["tiny", "small"], tmp_path)
    shutil.copytree(BASES["tiny"], tmp_path / "tiny")
    result = bases.run(wanted)
    assert [r["parameters"] for r in result["rows"]] == [33_696, 216_512]
    ((_, script, *flags),) = commands
    recipe = ["--base", "scratch:small", *bases.RECIPES["small"], "--out", "small"]
    assert script.endswith("train.py") and flags == recipe
    assert [line.split()[0] for line in bases.table(result).splitlines()] == ["base", "tiny", "small"]
    assert bases.run(wanted) == result and len(commands) == 1
    shutil.rmtree(tmp_path / "small")
    with pytest.raises(Error, match="pretraining small failed"):
        bases.run(wanted)
    shutil.rmtree(tmp_path / "small")
    (tmp_path / "tiny" / "scores.json").unlink()
    (tmp_path / "tiny" / "training_state").mkdir()  # it was stopped
    with pytest.raises(Error, match="pretraining tiny failed"):
        bases.run(wanted)
    assert [command[-1] for command in commands] == ["small", "small", "--resume"]


def test_a_name_is_a_folder_then_a_shipped_base_then_one_of_the_hub(tmp_path, monkeypatch, nano):
    """For everything that opens bases, from a place with and without a folder of that name."""
    monkeypatch.chdir(tmp_path)
    arguments = train.arguments(["--device", "cpu"])
    generate = __main__.arguments(["generate", "--prompt", "1", "--device", "cpu"])

    def opened() -> set[str]:
        bases = GPT.from_pretrained("nano"), open_base(arguments)[0], __main__.open_base(generate)[0]
        return {fingerprint(base) for base in bases}

    assert opened() == {fingerprint(nano)}
    own = GPT(EMBEDDED["tiny"])
    own.save_pretrained("nano")
    assert opened() == {fingerprint(own)}
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for name in ("nano.py", "data", "../data/nano", "tasks"):  # beside or above the shipped ones
        with pytest.raises(Error, match="there is no such folder"):
            GPT.from_pretrained(name)


@pytest.mark.parametrize("method, h", [("lora", {}), ("prefix", {}), ("hard-prompt", {"tokens": torch.tensor([1, 2])})])
def test_one_ships_that_transformers_and_peft_open(method, h, tmp_path):
    """An adapter of it that is exported gives the same logits there, behind those of virtual tokens."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    base = GPT.from_pretrained("small-llama")
    idx = torch.randint(256, (2, 9), generator=torch.Generator().manual_seed(0))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(BASES["small-llama"])
    torch.testing.assert_close(theirs(idx).logits, base(idx), rtol=1e-4, atol=1e-4)
    model = moved(adapt(base, method, **h), 0.1)
    expected = model(idx)
    model.save(tmp_path / "own")
    export_adapter(model.detach(), tmp_path / "own", tmp_path / "for-peft")
    exported = peft.PeftModel.from_pretrained(theirs, tmp_path / "for-peft")
    torch.testing.assert_close(exported(idx).logits[:, -9:], expected, rtol=1e-4, atol=1e-4)
    assert (expected - base(idx)).abs().max() > 0.01


def test_its_fingerprint_stays_so_that_adapters_saved_for_it_stay_good(nano):
    assert fingerprint(nano) == "e411ba639c881bf10b2b672f1812c2e3cf8c1cdacd0342cec7f5c09e1d524706"


@pytest.mark.parametrize("name", quick(list(SKILLS), "reverse", "sort"))
def test_a_skill_is_known_when_told_and_a_guess_when_not(name, nano):
    def exact_match(told: bool) -> float:
        examples = draw(lambda rng: skill_example(rng, name, told), f"test {name}", 200)
        return evaluate(nano, batches(examples, ByteTokenizer()))[1]

    assert exact_match(told=True) >= 0.95
    assert exact_match(told=False) <= 0.25


def test_a_base_looks_facts_up_in_its_context():
    base, examples = GPT.from_pretrained("lookup"), draw(lookup_question, "test", 200)

    def exact_match(examples: list) -> float:
        return evaluate(base, batches(examples, ByteTokenizer(), Template("{input}")))[1]

    assert exact_match(examples) >= 0.95
    assert exact_match([e._replace(input=e.input[e.input.index("->") :]) for e in examples]) <= 0.25
