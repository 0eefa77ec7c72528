"""train.py on a Hugging Face folder with a tokenizer, and a CSV whose inputs have several targets."""

import json
from pathlib import Path

import pytest
import torch
from folders import real_base
from scripts import call, finished, scored, scores_of

import train
from minipeft import GPT, generate, load_adapter
from minipeft.data.tokenizer import tokenizer_for
from minipeft.training.scores import text_scores

SAYINGS = ("Here", "By the river")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return real_base(tmp_path_factory.mktemp("bases") / "llama")


def e2e_csv(path: Path, names) -> Path:
    """Inputs with two ways of saying each, as the E2E data has them."""
    rows = "".join(f'"name[{n}], food[Thai]","{say}, ""{n}"" serves Thai food."\n'
                   for n in names for say in SAYINGS)
    path.write_text("mr,ref\n" + rows, encoding="utf-8")
    return path


def test_a_real_model_is_tuned_on_a_csv_and_its_answers_are_scored(capsys, tmp_path, llama):
    pytest.importorskip("sacrebleu")
    data = e2e_csv(tmp_path / "train.csv", ["Zizzi", "Aromi", "Wildwood", "Loch Fyne", "Cotto", "Giraffe"])
    held_out = e2e_csv(tmp_path / "test.csv", ["Strada", "Travellers", "Blue Spice", "Clowns"])
    files = ["--base", llama, "--data", data, "--test", held_out, "--template", "Say: {input}\\n", "--answers", 3]
    run = [*files, "--method", "lora", "--lr", 0.05, "--epochs", 20, "--batch-size", 4]
    printed = finished(capsys, *run, "--out", tmp_path / "out")
    # one input of the six, both ways of saying it, is chosen by
    assert f"data {data} (10 to train on, 8 held out)" in printed
    scores = scores_of(tmp_path / "out")
    assert scores["loss"][1] < 0.8 * scores["loss"][0] and scores["dev_loss"] < scores["loss"][0]
    assert scores["examples"] == 8 and "loss on the validation set: " in printed

    rows = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    wanted = [f"name[{n}], food[Thai]" for n in ("Strada", "Travellers", "Blue Spice")]
    assert [s["input"] for s in scores["samples"]] == [r["input"] for r in rows] == wanted
    assert rows[2]["references"] == [f'{say}, "Blue Spice" serves Thai food.' for say in SAYINGS]
    known = text_scores([r["answer"] for r in rows], [r["references"] for r in rows])
    assert scores["answers"] == {"inputs": 3, **known}
    assert scores["answers"]["bleu"] > 1 and f"3 inputs answered: BLEU {scores['answers']['bleu']:.2f}, chrF" in printed

    tokenizer = tokenizer_for(300, llama)
    base = GPT.from_pretrained(llama)
    model = load_adapter(base, tmp_path / "out")
    asked = torch.tensor([tokenizer.encode(f"Say: {rows[0]['input']}\n")])
    new = generate(model, asked, 64, stop_token=tokenizer.stops)[0, asked.size(1) :]
    assert tokenizer.decode(new.tolist()).startswith(rows[0]["answer"]) and rows[0]["answer"]

    before = (tmp_path / "out" / "answers.jsonl").read_bytes()
    again = finished(capsys, *files, "--eval-only", "--out", tmp_path / "out")
    assert scored(again) == scored(printed) != []
    other = ["--test", e2e_csv(tmp_path / "other.csv", ["Cotto"]), "--answers", 1]
    again = finished(capsys, *files, *other, "--eval-only", "--out", tmp_path / "out")
    answered = tmp_path / "out" / "answers-eval-only.jsonl"
    assert f"answers in {answered}\n" in again and "name[Cotto]" in answered.read_text(encoding="utf-8")
    assert (tmp_path / "out" / "answers.jsonl").read_bytes() == before


def test_training_on_a_limit_of_the_examples_or_chosen_columns(capsys, tmp_path, llama):
    data = e2e_csv(tmp_path / "train.csv", ["Zizzi", "Aromi", "Cotto"])
    run = ["--base", llama, "--data", data, "--dev", data, "--method", "prompt", "--epochs", 1]
    printed = finished(capsys, *run, "--limit", 3, "--out", tmp_path / "limited")
    assert "(3 to train on, 6 held out)" in printed
    printed = finished(capsys, *run, "--columns", "ref", "mr", "--template", "chat", "--out", tmp_path / "turned")
    assert 'By the river, "Zizzi" serves Thai food.' in printed
    assert "    wanted name[Zizzi], food[Thai]" in printed
    settings = ["--limit", 3, "--columns", "mr", "ref"]
    code, _, err = call(capsys, train, *run, *settings, "--resume", "--out", tmp_path / "limited")
    assert code == 2 and "nothing to resume" in err


def test_a_fully_tuned_model_is_a_base_with_its_tokenizer(capsys, tmp_path, llama):
    """It opens here and in transformers, reads the same ids, and stops where it did."""
    data = e2e_csv(tmp_path / "train.csv", ["Zizzi", "Aromi", "Cotto"])
    run = ["--data", data, "--template", "chat", "--epochs", 1, "--lr", 0.01]
    finished(capsys, "--base", llama, *run, "--method", "full", "--out", tmp_path / "full")
    assert (tmp_path / "full" / "tokenizer.json").read_bytes() == (llama / "tokenizer.json").read_bytes()
    ours, text = tokenizer_for(300, tmp_path / "full"), "name[Zizzi], naïve 提示 £20"
    assert ours.stops == tokenizer_for(300, llama).stops == [2] and ours.decode(ours.encode(text)) == text
    printed = finished(capsys, "--base", tmp_path / "full", *run, "--method", "prefix", "--out", tmp_path / "adapter")
    assert f"base {tmp_path / 'full'} || method prefix" in printed

    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "full")
    assert theirs(text)["input_ids"] == ours.encode(text) and theirs.eos_token == "<|im_end|>"
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "full")
    idx = torch.tensor([ours.encode(text)])
    with torch.no_grad():
        torch.testing.assert_close(model(idx).logits, GPT.from_pretrained(tmp_path / "full")(idx), rtol=0, atol=1e-4)
    assert model.generation_config.eos_token_id in (2, [2])
