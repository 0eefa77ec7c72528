"""Runs beside each other in one place: nothing that another run or a user wrote is replaced or removed."""

import shutil

import pytest
import torch
from scripts import call, finished, refusal, scores_of

import minipeft.__main__
import train
from minipeft import GPT, adapt, load_adapter

RUN = ["--base", "tiny", "--steps", 2, "--batch-size", 2, "--no-compile"]
PAIR = [*RUN, "--method", "lora+prefix"]
FORMS = ("adapter_model.safetensors", "adapter_model.bin", "adapter_model.bin.index.json")


def content(folder) -> dict:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(capsys, *argv) -> str:
    code, _, err = call(capsys, train, *argv)
    [line] = refusal(err)
    assert code == 2
    return line


def test_a_combination_replaces_no_run_and_no_adapter_in_the_place_of_a_part(capsys, tmp_path):
    out = tmp_path / "out"
    finished(capsys, *RUN, "--method", "lora", "--r", 4, "--out", out / "lora")
    before = content(out)
    for how in ([], ["--overwrite"]):
        assert f"{out / 'lora'} holds a run of train.py" in refused(capsys, *PAIR, "--out", out, *how)
    assert content(out) == before
    (out / "lora" / "scores.json").unlink()
    for how in ([], ["--overwrite"]):  # an adapter that someone saved there
        assert f"{out / 'lora'} already holds an adapter" in refused(capsys, *PAIR, "--out", out, *how)
    (out / "lora" / "adapter_config.json").unlink()
    [weights] = (out / "lora").glob("adapter_model.*")  # in the form that is installed here
    for name in FORMS:
        weights = weights.rename(out / "lora" / name)
        assert f"{weights} is not of a run" in refused(capsys, *PAIR, "--out", out)
    shutil.rmtree(out)
    GPT.from_pretrained("tiny").save_pretrained(out / "prefix")
    before = content(out)
    assert "already holds a base" in refused(capsys, *PAIR, "--out", out)  # before anything is trained
    assert content(out) == before


def test_a_combination_in_place_of_another_leaves_no_part_of_that_one(capsys, tmp_path):
    out = tmp_path / "out"
    finished(capsys, *PAIR, "--out", out)
    (out / "prefix" / "mine.txt").write_text("mine")
    finished(capsys, *RUN, "--method", "lora+prompt", "--overwrite", "--out", out)
    assert [path.name for path in (out / "prefix").iterdir()] == ["mine.txt"] and (out / "lora").is_dir()
    finished(capsys, *PAIR, "--overwrite", "--out", out)
    assert not (out / "prompt").exists() and load_adapter(GPT.from_pretrained("tiny"), out).method.name == "prefix+lora"


@pytest.mark.parametrize("method, name", [
    *(("prefix", name) for name in FORMS), ("full", "model.safetensors"), ("full", "pytorch_model.bin")])
def test_weights_without_a_config_are_a_users(method, name, capsys, tmp_path):
    (tmp_path / name).write_text("mine")
    for how in ([], ["--overwrite"]):
        assert refused(capsys, *RUN, "--method", method, "--out", tmp_path, *how) == (
            f"train.py: {tmp_path / name} is not of a run, and this run would replace it: another --out keeps it")
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "mine"


def test_import_replaces_no_weights_and_no_run_in_the_place_of_a_part(capsys, tmp_path):
    base, out = GPT.from_pretrained("tiny"), tmp_path / "out"
    adapt(base, ["lora", "prefix"]).save(tmp_path / "both")
    finished(capsys, *RUN, "--out", out / "prefix")
    before = content(out)
    code, _, err = call(capsys, minipeft.__main__, "import", tmp_path / "both", out, "--base", "tiny")
    assert code == 2 and f"{out / 'prefix'} holds a run of train.py" in err and content(out) == before
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "adapter_model.bin").write_text("mine")
    argv = ["import", tmp_path / "both" / "lora", tmp_path / "x", "--base", "tiny"]
    code, _, err = call(capsys, minipeft.__main__, *argv)
    assert code == 2 and "already holds an adapter: save an" in err
    assert (tmp_path / "x" / "adapter_model.bin").read_text() == "mine"


def test_a_climb_meets_a_foreign_run_before_it_trains_and_resume_keeps_it(capsys, tmp_path):
    out, climb = tmp_path / "out", [*RUN, "--climb", "--wordings", "reverse:"]
    finished(capsys, *RUN, "--method", "prefix", "--task", "parity", "--out", out / "prefix")
    before = content(out)
    assert f"{out / 'prefix'} holds a finished run" in refused(capsys, *climb, "--out", out)
    assert content(out) == before
    line = refused(capsys, *climb, "--out", out, "--resume")
    assert line.endswith(f"{out / 'prefix'} holds a run that is no level of this climb: another --out keeps it")
    assert content(out) == before


def test_a_climb_that_goes_on_with_other_lengths_or_answers_is_refused(capsys, tmp_path):
    pytest.importorskip("sacrebleu")
    data, out = tmp_path / "long.jsonl", tmp_path / "out"
    data.write_text("".join(f'{{"input": "{"ab" * 60}{i}", "target": "b{i}"}}\n' for i in range(9)))
    climb = [*RUN, "--climb", "--wordings", "ab", "--data", data, "--out", out]
    finished(capsys, *climb, "--max-length", 60)
    for flag, name, then in (("--max-length", "max_length", 60), ("--answers", "answers", None)):
        other = ["--max-length", 60] if name == "answers" else []
        assert f"its '{name}' is {then}, here it is 100" in refused(capsys, *climb, *other, flag, 100, "--resume")
    assert "resuming" not in finished(capsys, *climb, "--max-length", 60, "--resume")


def test_eval_only_takes_the_template_of_the_run(capsys, tmp_path, pairs):
    out, template = tmp_path / "out", "Q {input} A"
    finished(capsys, *RUN, "--data", pairs, "--template", template, "--out", out)
    wanted = scores_of(out)["loss"]
    evaluate = [*RUN, "--eval-only", "--data", pairs, "--out", out]
    code, printed, err = call(capsys, train, *evaluate)
    assert code == 0 and f"loss {wanted[0]:.3f} -> {wanted[1]:.3f}" in printed and "--template" not in err
    code, printed, err = call(capsys, train, *evaluate, "--template", "{input}")
    assert code == 0 and f"loss {wanted[0]:.3f}" not in printed
    assert f"--template is not that of the run in {out}, {template!r}" in err + printed


def test_eval_only_of_a_prompt_in_the_text_needs_no_flags_of_it(capsys, tmp_path, pairs):
    out = tmp_path / "out"
    soft = [*RUN, "--data", pairs, "--method", "prompt", "--num-virtual-tokens", 3, "--template", "{soft} {input}"]
    finished(capsys, *soft, "--out", out)
    loss = scores_of(out)["loss"][1]
    for words in ([], ["--template", "{soft} {input}"]):
        assert f"-> {loss:.3f}" in finished(capsys, *RUN, "--eval-only", "--data", pairs, "--out", out, *words)


def test_sets_of_other_forms_are_refused(capsys, tmp_path, pairs):
    text = tmp_path / "text.jsonl"
    text.write_text("".join(f'{{"text": "a text {i}"}}\n' for i in range(12)))
    for flag in ("--dev", "--test"):
        line = refused(capsys, *RUN, "--data", pairs, flag, text, "--out", tmp_path / "out")
        assert line == f"train.py: {pairs} holds inputs with targets, but {text} texts: they must be alike"
        line = refused(capsys, *RUN, "--data", text, flag, pairs, "--out", tmp_path / "out")
        assert line == f"train.py: {text} holds texts, but {pairs} inputs with targets: they must be alike"


def test_self_study_goes_with_the_run_that_it_was_for(capsys, tmp_path):
    document, out = tmp_path / "doc.txt", tmp_path / "out"
    document.write_text("A small text about a small matter. " * 3)
    distil = ["--base", "tiny", "--no-compile", "--document", document, "--num-virtual-tokens", 4, "--how", "distil",
              "--self-study", 4, "--steps", 2, "--out", out]
    finished(capsys, *distil)
    assert (out / "self-study.jsonl").exists()
    finished(capsys, *RUN, "--overwrite", "--out", out)
    assert not (out / "self-study.jsonl").exists() and not (out / "document.json").exists()
    finished(capsys, *distil, "--overwrite")


def test_generate_refuses_a_dtype_for_a_whole_model(capsys, tmp_path):
    finished(capsys, *RUN, "--method", "full", "--out", tmp_path / "full")
    argv = ["generate", "--base", "tiny", "--prompt", "1 -> ", "--adapter", tmp_path / "full"]
    code, _, err = call(capsys, minipeft.__main__, *argv, "--base-dtype", "int8")
    assert code == 2 and f"{tmp_path / 'full'} is a whole model: --base {tmp_path / 'full'} opens it in int8" in err
    assert call(capsys, minipeft.__main__, *argv)[0] == 0


def test_inspect_tells_the_settings_that_the_kind_of_adapter_holds(capsys, tmp_path):
    for i, (method, settings) in enumerate([
            ("prefix", {"space": "hidden", "num_virtual_tokens": 5}), ("llama-adapter", {"gate": "layer"}),
            ("ia3", {"rescaled": "qv"})]):
        torch.manual_seed(0)
        adapt(GPT.from_pretrained("small-llama"), method, **settings).save(tmp_path / str(i))
        code, out, _ = call(capsys, minipeft.__main__, "inspect", tmp_path / str(i), "--base", "small-llama")
        assert code == 0
        for name, value in settings.items():
            assert f"  {name:<20}{value}\n" in out
