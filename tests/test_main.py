"""python -m minipeft as a person uses it."""

import json
import runpy
import shutil
import sys

import pytest
import torch
from conftest import moved, tiny
from folders import real_base

from minipeft import GPT, __main__, adapt, generate
from minipeft.__main__ import nearest_tokens
from minipeft.data import NANO
from minipeft.data.tokenizer import ByteTokenizer, tokenizer_for
from minipeft.files.atomic import write_json
from minipeft.files.peft import read_adapter
from minipeft.files.tensors import write_tensors as save_tensors
from minipeft.runtime.console import run
from tests.faults.originals import write_tensors


def call(capsys, *argv) -> tuple[int, str, str]:
    code = run("minipeft", lambda: __main__.main([str(a) for a in argv]))
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Adapter folders on the embedded base: hard prompts that select a skill, others moved a little."""
    folder, base = tmp_path_factory.mktemp("adapters"), GPT.from_pretrained(NANO)
    torch.manual_seed(0)
    for text in ("reverse", "sort"):
        adapt(base, "hard-prompt", tokens=torch.tensor(ByteTokenizer().encode(f"{text}: "))).save(folder / text)
    for name in ("prompt", "lora", "adapter", ["lora", "prefix"]):
        model = moved(adapt(base, name), 0.02)
        model.save(folder / (name if isinstance(name, str) else "both"))
        model.detach()
    return folder


def test_it_streams_what_generate_says(adapters, capsys):
    assert call(capsys, "generate", "--adapter", adapters / "reverse", "--prompt", "58213764 -> ") == (
        0,
        "46731285\n",
        "",
    )
    assert (
        call(capsys, "generate", "--prompt", "sort: 58213764 -> ")[1] == "12345678\n"
    )  # told, the bare base can do it
    base, tokenizer = GPT.from_pretrained(NANO), ByteTokenizer()
    asked = torch.tensor([tokenizer.encode("12 -> ")])
    flags = ["--temperature", "1", "--top-k", "9", "--top-p", "0.9", "--seed", "4", "--max-new-tokens", "7"]
    _, printed, _ = call(capsys, "generate", "--prompt", "12 -> ", *flags)
    torch.manual_seed(4)
    drawn = generate(base, asked, 7, temperature=1.0, top_k=9, top_p=0.9, stop_token=tokenizer.end)
    assert printed == tokenizer.decode(drawn[0, asked.size(1) :].tolist()) + "\n"
    assert call(capsys, "generate", "--prompt", "12 -> ", *flags[2:])[1] == printed  # --top-k and --top-p draw
    ways = [call(capsys, "generate", "--prompt", "12 -> ", "--top-k", "9", "--seed", str(i))[1] for i in range(4)]
    assert len(set(ways)) > 1
    assert call(capsys, "generate", "--adapter", adapters / "prompt", "--prompt", "1" * 500)[0] == 0  # to its end


def test_a_base_with_a_tokenizer_streams_what_it_decodes(tmp_path, capsys):
    """Also letters that are several tokens, in a template, and after an adapter."""
    folder = real_base(tmp_path / "llama")
    base, tokenizer = GPT.from_pretrained(folder), tokenizer_for(300, folder)
    model = moved(adapt(base, "lora"), 0.3)
    model.save(tmp_path / "lora")
    seen = set()
    for say, flags, tuned in [
        ("{}", [], base),
        ("Say: {}\n", ["--template", "Say: {input}\\n"], base),
        (
            "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
            ["--template", "chat", "--adapter", tmp_path / "lora"],
            model,
        ),
    ]:
        asked = torch.tensor([tokenizer.encode(say.format("name[Zizzi] 提示"))])
        for seed in range(4):
            drawn = ["--temperature", "1.5", "--seed", seed, "--max-new-tokens", "30"]
            code, printed, err = call(
                capsys, "generate", "--base", folder, "--prompt", "name[Zizzi] 提示", *flags, *drawn
            )
            torch.manual_seed(seed)
            new = generate(tuned, asked, 30, temperature=1.5, stop_token=tokenizer.stops)[0, asked.size(1) :]
            assert (code, printed) == (0, tokenizer.decode(new.tolist()) + "\n"), err
            seen.add(printed)
    assert len(seen) > 8
    flags = ["--adapter", tmp_path / "lora", "--adapter", tmp_path / "lora"]
    code, printed, _ = call(capsys, "generate", "--base", folder, "--prompt", "name", *flags, "--max-new-tokens", "9")
    assert code == 0 and len({line.split("  ", 1)[1] for line in printed.splitlines()}) == 1
    code, printed, _ = call(capsys, "inspect", "--base", folder, tmp_path / "lora")
    assert code == 0 and f", which is {folder}\n" in printed


def test_a_letter_of_several_tokens_comes_whole_and_is_never_taken_back(tmp_path, capsys, monkeypatch):
    """Tokens that are single bytes of é and 🙂: a letter is printed when it is complete."""
    folder = real_base(tmp_path / "llama")
    tokenizer = tokenizer_for(300, folder)
    letter = [tokenizer.encode(text) for text in ("é", "🙂")]
    assert min(map(len, letter)) > 1
    said = [*tokenizer.encode("a"), *letter[0], *letter[1], *tokenizer.encode("z"), letter[1][0]]
    monkeypatch.setattr(__main__, "stream", lambda *a: (torch.tensor([token]) for token in said))
    pieces = []
    monkeypatch.setattr("builtins.print", lambda *text, end="\n", **kwargs: pieces.append("".join(text) + end))
    __main__.main(["generate", "--base", str(folder), "--prompt", "x"])
    assert "".join(pieces) == "aé🙂z\ufffd\n" and [p for p in pieces if p] == ["a", "é", "🙂", "z", "\ufffd\n"]


def test_several_adapters_answer_side_by_side_mixed_or_in_turn(adapters, capsys):
    flags = [x for name in ("reverse", "sort", "lora") for x in ("--adapter", adapters / name)]
    _, mixed, _ = call(capsys, "generate", *flags, "--prompt", "58213764 -> ")
    assert mixed.splitlines()[:2] == ["reverse  46731285", "sort     12345678"]
    _, in_turn, _ = call(capsys, "generate", *flags, "--adapter", adapters / "adapter", "--prompt", "58213764 -> ")
    _, twice, _ = call(capsys, "generate", *flags[:2], *flags[:2], "--prompt", "58213764 -> ")
    assert len(twice.splitlines()) == 2
    assert in_turn.splitlines()[:3] == mixed.splitlines() and in_turn.splitlines()[3].startswith("adapter  ")


def test_adapters_whose_hooks_no_batch_can_mix_answer_in_turn(capsys, tmp_path):
    base = GPT.from_pretrained(NANO)
    for name in ("lora", "bitfit"):
        moved(adapt(base, name)).save(tmp_path / name)
    flags = [x for name in ("lora", "bitfit") for x in ("--adapter", tmp_path / name)]
    code, out, _ = call(capsys, "generate", *flags, "--prompt", "58213764 -> ")
    alone = [call(capsys, "generate", *pair, "--prompt", "58213764 -> ")[1].strip() for pair in (flags[:2], flags[2:])]
    assert code == 0
    assert [line.split(None, 1) for line in out.splitlines()] == [["lora", alone[0]], ["bitfit", alone[1]]]


def test_a_whole_model_is_no_adapter_to_import(capsys, tmp_path):
    adapt(GPT.from_pretrained("tiny"), "full").save(tmp_path / "full")
    code, _, err = call(capsys, "import", "--base", "tiny", tmp_path / "full", tmp_path / "out")
    assert code == 2 and "is a whole model: --base opens it as it is" in err and not (tmp_path / "out").exists()


def test_a_run_is_not_written_over(adapters, capsys, tmp_path):
    (tmp_path / "scores.json").write_text('{"exact_match": [0, 1]}')
    for command in ("export", "import"):
        code, _, err = call(capsys, command, adapters / "prompt", tmp_path)
        assert code == 2 and "holds a run of train.py: write into another folder" in err
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]


def test_another_adapter_or_the_one_given_is_not_written_over(adapters, capsys, tmp_path):
    theirs = shutil.copytree(adapters / "prompt", tmp_path / "theirs")
    both = shutil.copytree(adapters / "both", tmp_path / "both")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    for command in ("export", "import"):
        for given, out, message in (
            (adapters / "lora", theirs, "already holds an adapter: save an adapter in a folder of its own"),
            (adapters / "lora", both, "already holds a combination: save an adapter in a folder of its own"),
            (theirs, theirs, f"theirs is the adapter itself: {command} it into another folder"),
        ):
            code, _, err = call(capsys, command, given, out)
            assert code == 2 and message in err and len(err.splitlines()) == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_an_adapter_that_names_no_base_is_shown_though_it_fits_another(capsys, tmp_path):
    adapt(GPT.from_pretrained("tiny"), "prompt", num_virtual_tokens=2).save(tmp_path)
    config, stored = read_adapter(tmp_path)
    save_tensors(tmp_path, "adapter_model", dict(stored), None)  # as PEFT writes them
    write_json(tmp_path / "adapter_config.json", {name: x for name, x in config.items() if name != "minipeft"})
    code, out, _ = call(capsys, "inspect", tmp_path)
    assert code == 0 and "base                not recorded" in out and "fits                not nano: " in out
    assert call(capsys, "inspect", "--base", "tiny", tmp_path)[1].count("nearest tokens") == 1


def test_inspect_names_the_levels_of_a_climb(adapters, capsys, tmp_path):
    levels = [shutil.copytree(adapters / name, tmp_path / level)
              for name, level in (("reverse", "hard-prompt"), ("prompt", "prompt"))]
    code, _, err = call(capsys, "inspect", tmp_path)
    assert code == 2 and err == (
        f"minipeft: {tmp_path} is no adapter, but holds some: take one of them, {levels[0]} or {levels[1]}\n")
    assert call(capsys, "inspect", levels[0])[0] == 0
    code, _, err = call(capsys, "generate", "--prompt", "1 -> ", "--adapter", tmp_path)
    assert code == 2 and f"holds some: take one of them, {levels[0]} or" in err


def test_inspect_tells_what_a_folder_holds(adapters, capsys):
    _, hard, _ = call(capsys, "inspect", adapters / "reverse")
    assert "  method              hard-prompt\n" in hard and "  text                'reverse: '\n" in hard
    _, prompt, _ = call(capsys, "inspect", adapters / "prompt")
    assert (
        "  parameters          1,024\n" in prompt
        and ", which is nano\n" in prompt
        and len(prompt.splitlines()) == 10 + 7
    )
    _, both, _ = call(capsys, "inspect", adapters / "both")
    _, whole, _ = call(capsys, "inspect", NANO)
    assert "full, or a base: 826,240 parameters" in whole
    assert (
        both.count("method ") == 2
        and "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight (8, 128) float32" in both
    )


def test_inspect_shows_what_a_stranger_wrote_in_lines_that_a_terminal_can_take(adapters, capsys, tmp_path):
    folder = shutil.copytree(adapters / "prompt", tmp_path / "strange")
    _, whole, _ = call(capsys, "inspect", folder)
    if not (folder / "adapter_model.safetensors").exists():
        pytest.skip("needs safetensors")
    write_tensors(folder / "adapter_model.safetensors", {"a\n\x1b[2J": torch.ones(1)}, {"base": ["\x1b[2J"]})
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "a\n\x1b[2J", "r": "\x1b[2J" * 500}))
    code, out, err = call(capsys, "inspect", folder)
    assert (
        code == 0
        and "\x1b" not in out
        and len(out.splitlines()) < len(whole.splitlines())
        and max(map(len, out.splitlines())) < 300
    ), err


def test_nearest_tokens_are_the_nearest():
    base = tiny()
    words = base.wte.weight.detach()
    prompt = torch.stack([3 * words[7], words[20]])
    (first, *_), (second, *_) = nearest_tokens(base, prompt)
    assert first[0] == 7 and second[0] == 20
    assert first[1:] == pytest.approx((1.0, 2 * float(words[7].norm())), rel=1e-4)
    assert second[1:] == pytest.approx((1.0, 0.0), abs=1e-2)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["generate"], "required: --prompt"),
        (["sing"], "invalid choice: 'sing'"),
        ([], "required: generate|inspect|export|import"),
        (["export", "somewhere"], "required: OUT"),
        (["import"], "required: ADAPTER, OUT"),
        (["export", "nowhere", "out"], "no adapter at nowhere"),
        (["import", "nowhere", "out"], "no adapter at nowhere"),
        (
            ["generate", "--prompt", "x", "--template", "Say it:"],
            'a template is "chat" or a text with {input} in it once, not 0 times',
        ),
        (
            ["generate", "--prompt", "x", "--template", "chat"],
            "the chat template needs a base whose tokenizer has <|im_start|>",
        ),
        (["inspect", "nowhere"], "no adapter at nowhere"),
        (["inspect", "."], "adapter_config.json is missing"),
        (["generate", "--adapter", "nowhere", "--prompt", "x"], "no adapter at nowhere"),
        (["generate", "--prompt", "x", "--template", ""], "a text with {input} in it once, not 0 times"),
        (["generate", "--prompt", ""], "--prompt is empty: it needs at least one token to go on from"),
        (["generat", "--prompt", "x"], "(did you mean 'generate'?)"),
        (["generate", "--promt", "x"], "required: --prompt (did you mean '--prompt'?)"),
        (["generate", "--prompt", "x", "--topk", "2"], "unrecognized arguments: --topk 2 (did you mean '--top-k'?)"),
        (["generate", "--prompt", "\udce9"], "argument --prompt: '·' is not UTF-8"),
        (["generate", "--prompt", "x", "--top-p", "2"], "at most 1"),
        (["generate", "--prompt", "x" * 600], "block size of 512"),
        (["generate", "--prompt", "x", "--device", "tpu"], "cannot be used"),
        (["generate", "--prompt", "x", "--base", "nowhere"], "no base at nowhere"),
    ],
)
def test_wrong_input_gets_one_line(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *argv)
    assert (code, out) == (2, "") and message in err and len(err.splitlines()) == 1


def test_a_torn_adapter_or_another_bases_gets_one_line(adapters, capsys, tmp_path):
    torn = shutil.copytree(adapters / "lora", tmp_path / "torn")
    for f in torn.glob("adapter_model.*"):
        f.write_bytes(f.read_bytes()[:-100])
    other = tmp_path / "base"
    GPT(GPT.from_pretrained(NANO).config).save_pretrained(other)
    for argv in (["generate", "--adapter", torn, "--prompt", "x"], ["inspect", torn]):
        code, _, err = call(capsys, *argv)
        assert code == 2 and "torn" in err and len(err.splitlines()) == 1
    code, _, err = call(capsys, "generate", "--base", other, "--adapter", adapters / "lora", "--prompt", "x")
    assert code == 2 and "tuned for another base" in err and len(err.splitlines()) == 1
    code, out, _ = call(capsys, "inspect", "--base", other, adapters / "prompt")
    assert code == 0 and f", not {other}\n" in out and "nearest" not in out


def test_a_text_is_utf8_where_the_locale_is_ascii(adapters, capsys):
    """Python hands on an argument's bytes as surrogates there."""
    for text in ("12é -> ", "提示"):
        as_ascii = text.encode().decode("ascii", "surrogateescape")
        flags = ["--max-new-tokens", "9", "--prompt"]
        assert call(capsys, "generate", *flags, as_ascii) == call(capsys, "generate", *flags, text)


@pytest.mark.filterwarnings("ignore:'minipeft.__main__' found in sys.modules")
def test_as_a_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["minipeft", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("minipeft", run_name="__main__")
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("usage: python -m minipeft")
