"""train.py --document and --teacher-context."""

import json
import shlex
import sys

import pytest
import torch
from scripts import call, refusal
from test_documents import TEXT, ids

import train
from minipeft import GPT, Error, __main__, generate, load_adapter
from minipeft.data import NANO
from minipeft.data.files import read_examples
from minipeft.data.tokenizer import ByteTokenizer
from minipeft.documents import divergence, prefill, self_study
from minipeft.runtime import console
from minipeft.training import document_run, job
from minipeft.training.run_folder import RunFolder


def run_train(*words) -> None:
    train.main([str(word) for word in words])


def test_the_command_writes_an_adapter_that_answers_alone_and_beside_others(tmp_path, capsys):
    nano = GPT.from_pretrained(NANO)
    (tmp_path / "doc.txt").write_text(TEXT[:230], encoding="utf-8")
    common = ["--document", tmp_path / "doc.txt"]
    run_train(*common, "--num-virtual-tokens", 24, "--out", tmp_path / "match")
    assert "doc.txt: 230 tokens as 24 rows, by match" in capsys.readouterr().out
    run_train(*common, "--how", "text", "--out", tmp_path / "text")
    run_train(*common, "--how", "distil", "--num-virtual-tokens", 24, "--self-study", 24, "--steps", 6, "--out",
              tmp_path / "distil")
    exact = load_adapter(nano, tmp_path / "text")
    held, kl = [ids("sort 5217 -> 1257, reverse 41 -> 14")], {}
    for how in ("match", "distil"):
        model = load_adapter(nano, tmp_path / how)
        assert (model.method.positions, model.method.num_virtual_tokens) == (230, 24) and model.method.key_bias
        kl[how] = divergence(nano, prefill(nano, ids(TEXT[:230])), model.slots().prefix, held).kl
        note = json.loads((tmp_path / how / "document.json").read_text(encoding="utf-8"))
        assert (note["tokens"], note["rows"], note["how"], note["document"]) == (230, 24, how, "doc.txt")
    assert kl["match"] != kl["distil"]
    assert exact.method.num_virtual_tokens == 230 and not exact.method.key_bias
    with pytest.raises(Error, match="holds a finished run"):
        run_train(*common, "--out", tmp_path / "match")
    names = ["text", "match", "distil"]
    __main__.main(["generate", *(word for how in names for word in ("--adapter", str(tmp_path / how))),
                   "--prompt", "sort 31 ->", "--max-new-tokens", "4"])
    printed = capsys.readouterr().out.splitlines()[-3:]
    assert [line.split()[0] for line in printed] == names
    alone = generate(exact, ids("sort 31 ->")[None], 4, stop_token=ByteTokenizer().stops)[0, 10:]
    assert printed[0][8:].strip() == ByteTokenizer().decode(alone.tolist()).strip()
    __main__.main(["inspect", str(tmp_path / "match")])
    shown = capsys.readouterr().out
    assert "doc.txt, 230 tokens, by match" in shown and "230 positions, in 24 rows" in shown
    assert "mass of the keys in each layer" in shown


@pytest.mark.parametrize("words, message", [
    (["--num-virtual-tokens", 31], "--num-virtual-tokens 31 of a document of 30 tokens"),
    (["--num-virtual-tokens", 0], "--num-virtual-tokens 0 of a document of 30 tokens"),
    (["--how", "text", "--num-virtual-tokens", 7], "--how text keeps all 30"),
    (["--method", "lora"], "goes with no other --method"),
    (["--climb"], "not with --climb"),
    (["--space", "hidden"], "--space does not go with --document"),
    (["--lr", 0.1], "--lr goes with --how distil"), (["--shard-base"], "--shard-base does not go with --document"),
    (["--how", "text", "--dev", "x.csv"], "--dev goes with --how distil: text trains nothing"),
    (["--keep-best"], "--keep-best goes with"), (["--dtype", "bfloat16"], "--dtype goes with --how distil"),
    (["--compile"], "--compile goes with"), (["--max-length", 9], "--max-length goes with"),
    (["--resume"], "nothing to resume: --how match trains nothing"),
    (["--how", "distil", "--data", "x.jsonl", "--self-study", 3], "--data takes the place of self-study"),
    (["--how", "distil", "--self-study", 1], "--self-study must be at least 2 without --dev: one text is held out"),
    (["--how", "distil", "--max-length", 43], "30 tokens leave 13 of max_length 43: self-study needs 14"),
])
def test_flags_that_do_not_go_with_a_document_are_refused(words, message, tmp_path):
    (tmp_path / "doc.txt").write_text(TEXT[:30], encoding="utf-8")
    with pytest.raises(Error, match=message) as e:
        run_train("--document", tmp_path / "doc.txt", "--out", tmp_path / "out", *words)
    assert "\n" not in str(e.value) and not (tmp_path / "out").exists()


def test_another_document_in_a_folder_begins_anew_or_is_refused(tmp_path, monkeypatch):
    a, b, out = tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "out"
    a.write_text(TEXT[:90], encoding="utf-8"), b.write_text(TEXT[200:290], encoding="utf-8")
    words = ["--how", "distil", "--self-study", 4, "--steps", 2, "--batch-size", 2, "--out", out]

    def texts():
        return (out / "self-study.jsonl").read_text(encoding="utf-8")

    run_train("--document", a, *words)
    first = texts()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(document_run, "run_job", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run_train("--document", b, *words, "--overwrite")
    begun = texts()
    assert not set(first.splitlines()) & set(begun.splitlines())
    with pytest.raises(Error, match=r"a\.txt is not the document that the run in .* began with \(--overwrite"):
        run_train("--document", a, *words, "--resume")
    run_train("--document", b, *words, "--resume")
    assert texts() == begun
    edited = begun.replace("target\": \"", "target\": \"so: ")
    (out / "self-study.jsonl").write_text(edited, encoding="utf-8")
    own = [word for word in words if word not in ("--self-study", 4)]
    run_train("--document", b, *own, "--data", out / "self-study.jsonl", "--overwrite")
    assert texts() == edited  # it is the user's then
    run_train("--method", "lora", "--base", "tiny", "--steps", 1, "--out", out, "--overwrite")
    assert not (out / "document.json").exists() and (out / "scores.json").exists()
    run_train("--document", a, "--out", out, "--overwrite")
    assert (out / "document.json").exists() and not (out / "scores.json").exists()


def test_a_distillation_is_not_resumed_with_other_texts(tmp_path, monkeypatch):
    (tmp_path / "doc.txt").write_text(TEXT[:90], encoding="utf-8")
    (tmp_path / "seeds.txt").write_text("Sort: ", encoding="utf-8")
    out, count = tmp_path / "out", ["--self-study", 4]
    words = ["--document", tmp_path / "doc.txt", "--how", "distil", "--steps", 2, "--batch-size", 2, "--out", out]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(document_run, "run_job", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run_train(*words, *count)
    files = [out / "self-study.jsonl", out / "document.json"]
    before = [path.read_bytes() for path in files]
    for others, name in ((["--self-study", 6], "self_study"), ([*count, "--temperature", 0.5], "temperature"),
                         ([*count, "--seeds", tmp_path / "seeds.txt"], "seeds"), ([*count, "--seed", 1], "seed"),
                         (["--data", tmp_path / "seeds.txt"], "data"), ([*count, "--base", "small"], "base")):
        with pytest.raises(Error, match=rf"document.json is of another run: its '{name}' .* \(--overwrite starts anew"):
            run_train(*words, *others, "--resume")
        assert [path.read_bytes() for path in files] == before
    run_train(*words, *count, "--resume")
    assert files[0].read_bytes() == before[0] and (out / "scores.json").exists()


def test_self_study_that_is_stopped_tells_the_command_that_goes_on_and_is_kept(tmp_path, monkeypatch, capsys):
    (tmp_path / "doc.txt").write_text(TEXT[:90], encoding="utf-8")
    out, real, stop_after = tmp_path / "out", self_study.texts, 1
    words = ["--document", tmp_path / "doc.txt", "--how", "distil", "--self-study", 12, "--steps", 1, "--out", out]

    def stopping(*args):
        nonlocal stop_after
        stop_after -= 1
        return real(*args) if stop_after >= 0 else (_ for _ in ()).throw(KeyboardInterrupt)

    with monkeypatch.context() as patch:
        patch.setattr(self_study, "texts", stopping)
        code, _, err = call(capsys, train, *words)
    again = [str(word) for word in (*words, "--resume")]
    told = f"train.py: interrupted; go on with: {shlex.join(['python', 'train.py', *again])}"
    assert code == 130 and refusal(err)[-1] == told
    written = (out / "self-study.jsonl").read_text(encoding="utf-8")
    with pytest.raises(Error, match="holds self-study of a run that was stopped: --resume goes on with it, --overwr"):
        run_train(*words)
    assert written and (out / "self-study.jsonl").read_text(encoding="utf-8") == written
    run_train(*again)
    whole = (out / "self-study.jsonl").read_text(encoding="utf-8")
    assert whole.startswith(written) and len(whole) > len(written) and (out / "scores.json").exists()


def test_self_study_that_does_not_fit_when_it_is_read_again_is_not_written(tmp_path, monkeypatch):
    """Bytes that are no UTF-8 decode to characters of three bytes."""
    (tmp_path / "doc.txt").write_text((2 * TEXT)[:440], encoding="utf-8")
    monkeypatch.setattr(self_study, "generate", lambda model, idx, n, *_, **__: torch.cat(
        [idx, torch.full((len(idx), n), 255)], dim=1))
    run_train("--document", tmp_path / "doc.txt", "--how", "distil", "--num-virtual-tokens", 4, "--self-study", 12,
              "--steps", 1, "--out", tmp_path / "out")
    targets = [e.target for e in read_examples(tmp_path / "out" / "self-study.jsonl")]
    assert len(targets) == 12 and max(len(target.encode()) for target in targets) <= 512 - 440 - 1


def test_a_match_that_is_stopped_tells_a_command_that_runs(tmp_path, monkeypatch, capsys):
    (tmp_path / "doc.txt").write_text(TEXT[:90], encoding="utf-8")
    words = ["--document", tmp_path / "doc.txt", "--out", tmp_path / "out"]
    with monkeypatch.context() as patch:
        patch.setattr(document_run, "match", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        code, _, err = call(capsys, train, *words)
    told = shlex.split(refusal(err)[-1].partition("go on with: python train.py ")[2])
    assert code == 130 and told[:-1] == [str(word) for word in words] and call(capsys, train, *told)[0] == 0


def test_self_study_that_no_run_wrote_is_kept(tmp_path):
    (tmp_path / "doc.txt").write_text(TEXT[:90], encoding="utf-8")
    (tmp_path / "self-study.jsonl").write_text('{"input": "mine", "target": "own"}\n')
    for again in ([], [], ["--resume"], ["--overwrite"]):
        with pytest.raises(Error, match="self-study.jsonl is not of a run: --data"):
            run_train("--document", tmp_path / "doc.txt", "--how", "distil", "--out", tmp_path, *again)
    assert (tmp_path / "self-study.jsonl").read_text() == '{"input": "mine", "target": "own"}\n'


def test_a_run_is_not_resumed_with_another_teacher(tmp_path, monkeypatch):
    (tmp_path / "doc.txt").write_text(TEXT[:90], encoding="utf-8")
    words = ["--method", "lora", "--base", "tiny", "--teacher-context", tmp_path / "doc.txt", "--steps", 4,
             "--out", tmp_path / "out"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run_train(*words)
    (tmp_path / "doc.txt").write_text(TEXT[100:190], encoding="utf-8")
    with pytest.raises(Error, match="teacher_context"):
        run_train(*words, "--resume")


@pytest.mark.parametrize("content, message", [
    ("", "is empty"), (" \n", "is empty"), ("x" * 512, "512 tokens, and the base's block size is 512")])
def test_documents_that_are_no_prefix_are_refused(content, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "doc.txt").write_text(content, encoding="utf-8")
    words = ["--document", str(tmp_path / "doc.txt"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    assert console.run("train.py", train.main) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_teacher_context_trains_any_method(tmp_path, capsys, monkeypatch):
    models, real = [], job.train
    monkeypatch.setattr(job, "train", lambda model, *a, **h: (models.append(model), real(model, *a, **h))[1])
    (tmp_path / "doc.txt").write_text(TEXT[:200], encoding="utf-8")
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"input": f"sort {n}", "target": f"{n}"}) + "\n"
                                                 for n in range(100, 112)), encoding="utf-8")
    for name, h in (("prompt", ["--num-virtual-tokens", 3]), ("lora", ["--r", 2])):
        run_train("--method", name, *h, "--data", tmp_path / "data.jsonl", "--teacher-context", tmp_path / "doc.txt",
                  "--teacher-top-k", 20, "--steps", 2, "--out", tmp_path / name)
        assert (tmp_path / name / "adapter_config.json").exists()
        assert models[-1].teacher.k.size(3) == 200 and models[-1].teacher_top_k == 20
    for words in (["--method", "full"], ["--method", "hard-prompt"], ["--climb"]):
        with pytest.raises(Error, match="--teacher-context trains one method beside a frozen base"):
            run_train(*words, "--teacher-context", tmp_path / "doc.txt", "--out", tmp_path / "x")
    with pytest.raises(Error, match="--teacher-top-k goes with"):
        run_train("--teacher-top-k", 3, "--out", tmp_path / "x")
