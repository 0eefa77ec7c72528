"""train.py as a person uses it: what runs reach, and where they put it."""

import hashlib
import re
import shlex
import shutil
from array import array
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import WITHOUT_CODE, compiling_by, quick, tiny
from folders import lines
from scripts import call, finished, refusal, scored, scores_of

import minipeft.model
import train
from minipeft import GPT, PRESETS, Error, GPTConfig, adapt, load_adapter
from minipeft.attach import Adapted
from minipeft.data import NANO
from minipeft.data.encoding import Encoded, collate
from minipeft.data.tasks import Example
from minipeft.runtime.profiling import saved_bytes
from minipeft.training import job, memory_check, scores

pytestmark = pytest.mark.usefixtures("few_examples")


def checksum(folder: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir()}


def test_training_reaches_what_it_prints_and_the_adapter_is_used(capsys, tmp_path):
    """A short default run: the base is untouched, exact match rises, the saved adapter scores the same."""
    before = checksum(NANO)
    out = tmp_path / "out"
    printed = finished(capsys, "--steps", 60, "--batch-size", 32, "--lr", 0.2, "--out", out)
    assert checksum(NANO) == before
    assert "trainable params: 8,192 || all params: 834,432 || trainable%: 0.9817" in printed
    scores = scores_of(out)
    assert scores["exact_match"][0] <= 0.25 and scores["exact_match"][1] > scores["exact_match"][0] + 0.2
    assert f"exact match {scores['exact_match'][0]:.3f} -> {scores['exact_match'][1]:.3f}" in printed
    assert sorted(f.name.partition(".")[0] for f in out.iterdir()) == ["adapter_config", "adapter_model", "scores"]
    again = finished(capsys, "--eval-only", "--out", out)
    assert scored(printed) == scored(again) != []


@pytest.mark.parametrize("method", quick([["prefix"], ["prompt", "--lr", "0.3"], ["full", "--lr", "3e-3"]], ["prefix"]))
def test_your_own_data_lowers_the_held_out_loss(method, capsys, tmp_path, pairs):
    finished(capsys, "--data", pairs, "--method", *method, "--steps", 15, "--batch-size", 8, "--out", tmp_path / "out")
    before, after = scores_of(tmp_path / "out")["loss"]
    assert after < 0.8 * before
    base = GPT.from_pretrained(NANO)
    assert load_adapter(base, tmp_path / "out")(torch.tensor([[65, 66]])).shape == (1, 2, 257)


def test_long_inputs_are_cut_counted_and_answered(capsys, tmp_path):
    """Also with an adapter longer than the default, whose length --eval-only reads from the adapter."""
    path = lines(tmp_path / "long.jsonl", *({"input": f"{i}" + "w" * 600, "target": f"{i}" * 3} for i in range(6)))
    for flags in (["--method", "full"], ["--num-virtual-tokens", 300]):
        run = ["--data", path, *flags, "--steps", 1, "--batch-size", 2, "--out", tmp_path / flags[0]]
        printed = finished(capsys, *run)
        assert "(5 to train on, 1 held out), 6 cut from the left (texts: divided) to 512 tokens" in printed
    finished(capsys, "--eval-only", "--data", path, "--out", tmp_path / "--num-virtual-tokens")
    run = ["--data", path, "--max-length", 64, "--steps", 1, "--batch-size", 2, "--out", tmp_path / "short"]
    printed = finished(capsys, *run)
    assert "6 cut from the left (texts: divided) to 64 tokens" in printed


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
    finished(capsys, *shlex.split(flags), "--steps", 12, "--batch-size", 16, "--out", tmp_path / "out")
    before, after = scores_of(tmp_path / "out")["loss"]
    assert after < before
    if "reverse: " in flags:  # told from the first step on, the base needs no training
        assert after < 0.3


@pytest.mark.slow
def test_hard_prompts_are_scored_and_the_best_is_kept(capsys, tmp_path, pairs):
    printed = finished(capsys, "--method", "hard-prompt", "--out", tmp_path / "chosen")
    scores = scores_of(tmp_path / "chosen")
    order = [(-w["exact_match"], w["loss"]) for w in scores["wordings"]]
    assert len(order) == 24 and order == sorted(order)
    assert scores["wordings"][0]["wording"] in ("mirror: ", "backwards: ", "reverse: ")
    assert scores["exact_match"][1] > 0.9 and scores["trained"] == 0
    assert all(f"  {w['exact_match']:.3f} {w['loss']:6.3f}  {w['wording']!r}\n" in printed for w in scores["wordings"])
    searched = ["--method", "hard-prompt", "--wordings", "a: ", "--search", 3, "--steps", 4, "--batch-size", 4]
    printed = finished(capsys, "--data", pairs, *searched, "--out", tmp_path / "own")
    assert len(scores_of(tmp_path / "own")["wordings"]) == 2  # the one given, and the one found
    again = finished(capsys, "--eval-only", "--data", pairs, "--out", tmp_path / "own")
    assert scored(printed) == scored(again) != []


@pytest.mark.slow
def test_the_climb_loses_nothing_from_rung_to_rung(capsys, tmp_path):
    printed = finished(capsys, "--climb", "--steps", 6, "--batch-size", 8, "--out", tmp_path / "climb")
    hard, soft, prefix = (scores_of(tmp_path / "climb" / r) for r in train.LADDER)
    assert soft["start_loss"] == pytest.approx(hard["loss"][1], rel=1e-3)
    assert prefix["start_loss"] == pytest.approx(soft["loss"][1], rel=1e-3)
    table = printed.splitlines()[-4:]
    assert [line.split()[0] for line in table] == ["level", *train.LADDER]
    assert [len(line.split()) for line in table[1:]] == [5, 5, 5]
    assert f"{prefix['loss'][1]:.3f}" in table[3]


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
    flags = ["--steps", 20, "--batch-size", 8, "--keep-best", "--out", tmp_path / "out"]
    finished(capsys, "--data", pairs, "--dev", pairs, *flags)
    assert asked == 10 * [3]  # batches of the 45 in the dev file
    kept = load_adapter(GPT.from_pretrained(NANO), tmp_path / "out").method.tensors()
    assert all(torch.equal(kept[name], t) for name, t in best.items()) and best


def test_a_run_that_chooses_by_its_training_examples_says_so(capsys, tmp_path, pairs):
    flags = ["--data", pairs, "--steps", 2, "--batch-size", 8, "--keep-best"]
    code, out, err = call(capsys, train, *flags, "--out", tmp_path / "one")
    assert code == 0 and "loss on training examples: " in out and "--keep-best goes by the loss on training" in err
    code, out, err = call(capsys, train, *flags, "--test", pairs, "--out", tmp_path / "two")
    assert code == 0 and "loss on the validation set: " in out and "training examples" not in err


def test_what_does_not_fit_into_memory_is_refused_before_it_is_begun(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(memory_check, "available_memory", lambda device: 10**6)
    code, _, err = call(capsys, train, "--out", tmp_path / "out")
    needs = r"training needs (\S+) GB more memory, and 0.00 GB are left: (\S+) GB for each of 64 examples"
    found = re.search(needs, refusal(err)[-1])
    assert code == 2 and "lower --batch-size or --max-length" in err and not (tmp_path / "out").exists()
    assert float(found[1]) == pytest.approx(64 * float(found[2]), abs=0.4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("keep_best, copies", [(False, 3), (True, 4)])
@pytest.mark.parametrize("name", ["lora", "prefix"])
def test_a_batch_needs_what_autograd_saves_of_it_and_gradients_moments_and_the_best_so_far(
        name, keep_best, copies, dtype, monkeypatch):
    """Copies of weights in bfloat16 do not grow with the batch, nor does a prefix that all rows share."""
    model, record = adapt(tiny(), name), Encoded(Example("", ""), array("i", range(9)), array("i", range(5)))
    idx, targets = collate(5 * [record], 0)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        need = saved_bytes(lambda: model.loss(idx, targets), model.parameters())
    need += copies * sum(4 * p.numel() for p in model.trainable_parameters())
    args = SimpleNamespace(device=torch.device("cpu"), dtype=dtype, keep_best=keep_best)
    monkeypatch.setattr(memory_check, "available_memory", lambda device: need)
    memory_check.check_memory(args, model, record, 0, 5)
    monkeypatch.setattr(memory_check, "available_memory", lambda device: need - 1)
    with pytest.raises(Error, match="more memory"):
        memory_check.check_memory(args, model, record, 0, 5)


def test_with_checkpointing_a_batch_needs_one_whole_block_beside_the_inputs_of_all(monkeypatch):
    model, record = adapt(tiny(), "bitfit"), Encoded(Example("", ""), array("i", range(9)), array("i", range(5)))
    batch, needed = collate(5 * [record], 0), {}
    monkeypatch.setattr(memory_check, "available_memory", lambda device: 0)
    moments = 3 * sum(4 * p.numel() for p in model.trainable_parameters())
    monkeypatch.setattr(memory_check, "format_gigabytes", lambda n: f"{n} bytes")
    for on in (False, True):
        model.gradient_checkpointing(on)
        args = SimpleNamespace(device=torch.device("cpu"), dtype="float32", keep_best=False)
        with pytest.raises(Error, match="more memory") as e:
            memory_check.check_memory(args, model, record, 0, 5)
        needed[on] = int(re.search(r"needs (\d+) bytes", str(e.value))[1]) - moments
    inputs, one = saved_bytes(lambda: model.loss(*batch), model.parameters()), batch[0].numel() * 32 * 4
    assert needed[True] - inputs == pytest.approx((needed[False] - inputs) / 3 + one, rel=0.05)  # of 3 blocks


def test_a_batch_needs_no_more_memory_than_its_file_has_examples_and_processes_share_it(
        capsys, tmp_path, monkeypatch, pairs):
    monkeypatch.setattr(memory_check, "available_memory", lambda device: 10**9)
    flags = ["--data", pairs, "--batch-size", 10**6, "--steps", 1, "--out", tmp_path / "out"]
    finished(capsys, *flags)
    monkeypatch.setattr(memory_check, "local_world_size", lambda: 10**6)
    assert "needs" in refusal(call(capsys, train, *flags, "--overwrite")[2])[-1]


def test_the_size_of_a_combination_is_that_of_its_parts(tmp_path):
    base = GPT.from_pretrained("tiny")
    for names in (["lora", "prefix"], ["lora", "prompt"]):
        adapt(base, names).save(tmp_path / "both")
        base.requires_grad_(False)
    adapt(GPT.from_pretrained("tiny"), ["lora", "prompt"]).save(tmp_path / "one")
    assert scores.size_kb(tmp_path / "both") == scores.size_kb(tmp_path / "one")


@pytest.mark.parametrize("flags, expected", [
    ([], (False, torch.float32, torch.float32)), (["--gradient-checkpointing"], (True, torch.float32, torch.float32)),
    (["--base-dtype", "bfloat16"], (False, torch.bfloat16, torch.float32)),
    (["--dtype", "bfloat16"], (False, torch.float32, torch.bfloat16))])
def test_what_makes_training_small_or_fast_reaches_the_model(flags, expected, tmp_path, monkeypatch):
    class Seen(Exception):
        pass

    def stop(model, *_, dtype, **__):
        raise Seen(model.base.checkpointed, model.base.wte.weight.dtype, dtype)

    GPT(GPTConfig(257, 64, 2, 2, 32)).save_pretrained(tmp_path / "base")
    monkeypatch.setattr(job, "train", stop)
    with pytest.raises(Seen) as seen:
        train.main([*f"--base {tmp_path / 'base'} --steps 1 --out {tmp_path / 'out'}".split(), *flags])
    assert seen.value.args == expected


@pytest.mark.slow
def test_what_makes_training_small_or_fast_reaches_the_same(capsys, tmp_path, monkeypatch):
    torch.manual_seed(0)
    sizes = dict(vocab_size=257, block_size=64, n_layer=2, n_head=2, n_embd=32)
    base = tmp_path / "base"  # nano is too large where bfloat16 is slow
    GPT(GPTConfig(**sizes, position="rotary")).save_pretrained(base)

    def held_out_loss(*flags):
        out = tmp_path / "-".join(["out", *flags])
        printed = finished(capsys, "--base", base, "--steps", 40, "--batch-size", 8, "--out", out, *flags)
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


def test_a_base_from_scratch_is_saved_as_a_base(capsys, tmp_path, monkeypatch):
    drawn = scores.draw  # 16 examples of every skill instead of 500
    monkeypatch.setattr(scores, "draw", lambda example, name, n: drawn(example, name, 16))
    flags = ["--base", "scratch", "--method", "full", "--task", "skills", "--steps", 2, "--batch-size", 4]
    printed = finished(capsys, *flags, "--out", tmp_path / "base")
    assert "reverse" in printed and "not instructed" in printed
    assert GPT.from_pretrained(tmp_path / "base").config == PRESETS["nano"]
    finished(capsys, "--base", tmp_path / "base", "--steps", 2, "--batch-size", 4, "--out", tmp_path / "adapter")
    code, _, err = call(capsys, train, "--eval-only", "--out", tmp_path / "adapter")  # on the shipped base instead
    assert code == 2 and "was tuned for another base" in err


def test_texts_of_their_own_are_learnt_but_not_answered(capsys, tmp_path):
    path = lines(tmp_path / "texts.jsonl", *({"text": f"{i} is {i}"} for i in range(10)))
    printed = finished(capsys, "--data", path, "--steps", 2, "--batch-size", 4, "--out", tmp_path / "out")
    assert "    wanted" not in printed
    pytest.importorskip("sacrebleu")
    code, _, err = call(capsys, train, "--data", path, "--answers", 3, "--out", tmp_path / "answers")
    assert code == 2 and refusal(err) == ["train.py: --answers answers inputs, and texts have none"]


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
