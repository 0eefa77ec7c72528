"""Conversations: the chat's marks, and the chat template of a Hugging Face folder."""

import json
import sys

import pytest
import torch
from folders import PLAIN, fitted_examples, lines, tokenizer_folder, with_bos

import train
from minipeft import GPT, Error, GPTConfig, __main__
from minipeft.data.batches import FileData, encode
from minipeft.data.chat import ChatTemplate
from minipeft.data.encoding import collate, question, tokenize
from minipeft.data.tasks import Example
from minipeft.data.template import Template
from minipeft.data.tokenizer import ByteTokenizer, tokenizer_for
from minipeft.training import evaluation, opening


@pytest.fixture
def folder(tmp_path):
    return tokenizer_folder(tmp_path)


def test_a_chat_in_a_file_becomes_batches(folder):
    said = [("system", "the hat"), ("user", "cat"), ("assistant", "mat")]
    row = {"messages": [{"role": role, "content": content} for role, content in said]}
    path = lines(folder / "chat.jsonl", *[row] * 3)
    tokenizer = tokenizer_for(300, folder)
    data = FileData(path, tokenizer, Template("chat"), 0, 2, 64, 0, dev=path)
    idx, targets = collate(data.batch(0), tokenizer.end)
    written = "<|im_start|>system\nthe hat<|im_end|>\n<|im_start|>user\ncat<|im_end|>\n<|im_start|>assistant\nmat"
    assert idx[0].tolist() == tokenizer.encode(written.removesuffix("mat")) + tokenizer.encode("mat")
    assert targets[0][targets[0] >= 0].tolist() == [*tokenizer.encode("mat"), 2]
    with pytest.raises(Error, match="chat template needs"):
        FileData(path, ByteTokenizer(), Template("chat"), 0, 2, 64, 0, test=path)


def test_a_chat_ends_and_stops_with_the_mark_of_its_turns(folder):
    (folder / "config.json").write_text('{"eos_token_id": 0}')
    t, chat = tokenizer_for(300, folder), Template("chat")
    assert t.chat is None and t.stops == [0] and chat.stops(t) == [2, 0] and PLAIN.stops(t) == [0]
    turns = (("user", "cat"), ("assistant", "hat"))
    for target in ("mat", "mat<|im_end|>", "mat<|endoftext|>"):
        idx, targets = encode([Example("a", target, turns)], t, chat)
        assert idx[0].tolist().count(2) == 3 and targets[0][-1].item() == 2 and 0 not in targets[0].tolist()


def test_answers_of_a_chat_stop_at_its_mark_here_and_in_a_saved_base(folder, monkeypatch, capsys):
    base = GPT(GPTConfig(block_size=64, vocab_size=300, n_layer=1, n_head=2, n_embd=8))
    base.save_pretrained(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 0}')
    t, chat = tokenizer_for(300, folder), Template("chat")
    said = torch.tensor([[*t.encode("cat"), 2, *t.encode("hat"), 0]])
    monkeypatch.setattr(evaluation, "generate", lambda model, idx, n, **_: torch.cat([idx, said], dim=1))
    assert evaluation.complete_examples(base, [Example("a", "b")], t, chat) == ["cat"]
    assert evaluation.complete_examples(base, [Example("a", "b")], t) == ["cathat"]
    flags = ["--method", "full", "--base", str(folder), "--data", "x.csv", "--template", "chat"]
    _, tokenizer = opening.open_base(train.arguments(flags))
    (folder / "out").mkdir()
    tokenizer.save(folder / "out")
    assert tokenizer_for(300, folder / "out").stops == [2, 0]
    seen = []
    monkeypatch.setattr(__main__, "stream", lambda *a: seen.append(a[-1]) or iter(said.T))
    __main__.main(["generate", "--base", str(folder), "--prompt", "a", "--template", "chat"])
    assert seen == [[2, 0]] and capsys.readouterr().out == "cathat\n"


LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns must alternate') }}{% endif %}\n"
    "    {%- if m.role == 'user' %}{{ '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% else %}\n  {% generation %}\n{{ ' ' + m.content + ' ' + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)
SYSTEM = (
    "{% for m in messages %}\n    {% if loop.first and m.role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n"
    "{% endif %}\n{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + '<|im_end|>' + '\n' }}\n{% endfor %}\n"
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def with_chat_template(folder, source, file=False):
    """The folder with this chat template, in the file of newer or of older folders."""
    config = {"bos_token": "<|endoftext|>", "eos_token": {"content": "<|im_end|>"}}
    (folder / "config.json").write_text('{"eos_token_id": 0}')
    if file:
        (folder / "chat_template.jinja").write_text(source)
        source = "not this one"
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": source}))
    return tokenizer_for(300, folder)


@pytest.mark.parametrize("file", [False, True])
@pytest.mark.parametrize("source", [LLAMA, SYSTEM])
def test_the_folders_chat_template_is_what_transformers_makes_of_it(source, file, folder):
    transformers = pytest.importorskip("transformers")
    with_bos(folder)
    t, chat = with_chat_template(folder, source, file), Template("chat")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<|endoftext|>", eos_token="<|im_end|>"
    )
    for turns in ((), (("user", "the cat"), ("assistant", "the mat"))):
        messages = [{"role": role, "content": text} for role, text in (*turns, ("user", " a hat"))]
        text = theirs.apply_chat_template(messages, chat_template=source, tokenize=False, add_generation_prompt=True)
        ids = theirs.encode(text, add_special_tokens=False)
        r = tokenize(Example(" a hat", "sat", turns), t, chat)
        assert list(r.prompt) == ids and ids.count(0) == (source == LLAMA)
        assert list(r.completion) == [*t.encode("sat"), 2]
    assert chat.stops(t) == [2, 0]


@pytest.mark.parametrize("source, answer", [(LLAMA, " sat"), (SYSTEM, "sat")])
def test_an_answer_has_the_space_that_the_template_puts_before_it(source, answer, folder):
    """Where the tokenizer adds a space to texts: its own there would be one too many, or the only one."""
    path = folder / "tokenizer.json"
    with_space = json.loads(path.read_text())
    with_space["pre_tokenizer"]["add_prefix_space"] = True
    path.write_text(json.dumps(with_space))
    t, chat = with_chat_template(folder, source), Template("chat")
    r = tokenize(Example("a hat", "sat"), t, chat)
    whole = t.encode(chat.fill(r.example, t.chat) + answer)
    assert [*r.prompt, *r.completion] == [*whole, 2] and r.example.target == "sat"
    assert list(tokenize(Example(None, "sat"), t, chat).completion) == [*t.encode("sat"), 2]


@pytest.mark.parametrize(
    "source, message",
    [
        ("{% for", "TemplateSyntaxError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ raise_exception('no system turn') }}", "given user, assistant: TemplateError: no system turn"),
        ("{{ messages[9].role.x }}", "UndefinedError"),
        ("{% include 'other' %}", "TypeError"),
        (7, "chat_template must be a text, not 7"),
    ],
)
def test_a_chat_template_that_fails_is_refused_in_one_line(source, message, folder):
    t = with_chat_template(folder, source)
    with pytest.raises(Error, match=message) as e:
        Template("chat").stops(t)
    assert str(folder / "tokenizer_config.json") in str(e.value) and "\n" not in str(e.value)
    assert question(Example("a", "b"), t)  # only a chat needs it


@pytest.mark.parametrize("source, said", [
    ('{{ strftime_now("%d %B %Y") }}', "26 July 2024"),  # SmolLM3
    ('{% if strftime_now is defined %}{{ strftime_now("%d %b %Y") }}{% else %}26 Jul 2024{% endif %}', "26 Jul 2024"),
    ('{% if strftime_now is not defined %}never{% endif %}', "never"),
])
def test_a_chat_template_has_the_same_date_every_day(source, said, folder):
    assert with_chat_template(folder, source).chat.prompt([("user", "a")]) == said


NAMED = {"image_token": "<|im_start|>", "audio": {"content": "<|im_start|>", "__type": "AddedToken"}}


@pytest.mark.parametrize("config, older", [
    ({}, {"bos_token": "<|endoftext|>", "eos_token": {"content": "<|im_end|>", "lstrip": False}}),
    ({"bos_token": "<|im_start|>", "eos_token": "<|im_start|>"}, {"bos_token": "<|endoftext|>", "eos_token": None}),
    ({"added_tokens_decoder": {}, "eos_token": "<|im_end|>"}, {"bos_token": "<|endoftext|>", "eos_token": "x"}),
    ({"eos_token": "<|im_end|>", "extra_special_tokens": NAMED}, {"boi_token": "<|endoftext|>"}),
    ({"eos_token": "<|im_end|>", "model_specific_special_tokens": NAMED, "extra_special_tokens": ["x"]}, {}),
])
def test_special_tokens_are_those_that_transformers_reads(config, older, folder):
    transformers = pytest.importorskip("transformers")
    source = "".join(f"[{{{{ {name} }}}}]" for name in ("bos_token", "eos_token", "boi_token", *NAMED))
    config = config | {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": source}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps(older))
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    t, messages = tokenizer_for(300, folder), [{"role": "user", "content": "a"}]
    assert t.chat.prompt([("user", "a")]) == theirs.apply_chat_template(messages, tokenize=False)
    if theirs.eos_token:
        (folder / "config.json").unlink()
        assert tokenizer_for(300, folder).stops == [theirs.eos_token_id]


def test_several_chat_templates_by_name_none_and_a_missing_package(folder, monkeypatch):
    named = [{"name": "tool_use", "template": "{{ x.y.z }}"}, {"name": "default", "template": SYSTEM}]
    t = with_chat_template(folder, named)
    assert "Be kind." in t.decode(question(Example("a", "b"), t, Template("chat")))
    assert with_chat_template(folder, named[:1]).chat is with_chat_template(folder, None).chat is None
    t = with_chat_template(folder, "{% for m in messages %}{{ m.content }}\n{% endfor %}")
    assert Template("chat").stops(t) == [0]  # no mark follows an answer
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(Error, match="tokenizer_config.json needs: pip install jinja2$"):
        Template("chat").stops(with_chat_template(folder, SYSTEM))


def test_a_conversation_is_cut_to_turns_that_the_folders_template_takes(folder):
    t, chat = with_chat_template(folder, LLAMA), Template("chat")
    turns = tuple(("user", "the cat") if i % 2 == 0 else ("assistant", "the mat") for i in range(6))
    e = Example("a hat", "sat", turns)
    room = len(question(e._replace(turns=turns[1:][1:]), t, chat)) + len(t.encode("sat"))
    fitted, cut = fitted_examples([e], t, room, 0, chat)
    assert cut == 1 and fitted == [e._replace(turns=turns[2:])]
    fitted, _ = fitted_examples([e], t, room - 1, 0, chat)
    assert fitted == [e._replace(turns=turns[4:])]


def test_a_chat_template_may_leave_a_loop_and_write_json_as_in_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = tokenizer_folder(tmp_path)
    source = ("{% for m in messages %}{% if loop.index0 == 2 %}{% break %}{% endif %}"
              "{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content | tojson }}{% endfor %}")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    turns = [("system", "s"), ("user", "naïve <b> '提示'"), ("user", "never")]
    messages = [{"role": role, "content": text} for role, text in turns]
    want = theirs.apply_chat_template(messages, chat_template=source, tokenize=False)
    assert ChatTemplate(folder, source, {}).prompt(turns) == want == '"naïve <b> \'提示\'"'
