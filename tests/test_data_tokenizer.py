"""Tokenizers of Hugging Face folders: their ids, their marks, and files that are none."""

import json
import os
import sys
from random import Random

import pytest
from folders import MARKS, PLAIN, WORDS, fitted_examples, lines, tokenizer_folder, with_bos

from minipeft import Error
from minipeft.data import NANO
from minipeft.data.batches import FileData, encode
from minipeft.data.encoding import question, tokenize
from minipeft.data.fitting import fit
from minipeft.data.tasks import Example
from minipeft.data.template import Template
from minipeft.data.tokenizer import ByteTokenizer, FileTokenizer, decode_behind, encode_behind, tokenizer_for
from minipeft.training import opening

TOKENIZER = ByteTokenizer()


@pytest.fixture
def folder(tmp_path):
    return tokenizer_folder(tmp_path)


def test_a_tokenizer_file_is_read_as_transformers_reads_it(folder):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    ours = tokenizer_for(320, folder)
    assert isinstance(ours, FileTokenizer) and (ours.vocab_size, ours.end, ours.stops, ours.begin) == (320, 2, [2], [])
    for text in [*WORDS, "", " two  spaces\n", Template("chat").fill(Example("the cat", "sat", (("system", "hat"),)))]:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False)
        assert ours.decode([*ids, 2]) == theirs.decode(ids, skip_special_tokens=True)
    assert (
        ours.encode("<|im_start|>user") == [1, *ours.encode("user")]
        and ours.decode([1, *ours.encode("user"), 2, 310]) == "user"
    )
    with pytest.raises(Error, match="half a surrogate pair"):
        ours.encode("a\ud800")


@pytest.mark.parametrize("after", [False, True])
def test_every_text_begins_with_what_the_file_says(folder, after):
    with_bos(folder, after)
    tokenizer = tokenizer_for(300, folder)
    assert tokenizer.begin == [0] and tokenizer.encode("the cat")[0] != 0
    assert question(Example("the", "cat"), tokenizer) == [0, *tokenizer.encode("the -> ")]
    assert question(Example(None, "the cat"), tokenizer) == [0]


def test_a_begin_mark_outside_the_vocabulary_is_refused(folder):
    """The one id that could be there: the tokens' own ids are held to the base's vocabulary."""
    with_bos(folder)
    path = folder / "tokenizer.json"
    held = json.loads(path.read_text())
    held["post_processor"]["special_tokens"]["<|endoftext|>"]["ids"] = [300]
    path.write_text(json.dumps(held))
    with pytest.raises(Error, match="begins texts with the id 300, and the model has 300"):
        tokenizer_for(300, folder)


def test_question_and_answer_are_tokenised_apart(folder):
    tokenizer = tokenizer_for(300, folder)
    assert len(tokenizer.encode("the")) < len(
        tokenizer.encode("t") + tokenizer.encode("he")
    )  # together they would merge
    idx, targets = encode([Example("t", "he")], tokenizer, Template("{input}"))
    row = [*tokenizer.encode("t"), *tokenizer.encode("he"), 2]
    assert idx.tolist() == [row[:-1]] and targets.tolist() == [row[1:]]


def adds_space(folder, kind):
    """A tokenizer that puts a space before a text, as Llama 2's (prepend) and Mistral's; the folder of it."""
    tokenizers = pytest.importorskip("tokenizers")
    spaces, byte_level = tokenizers.pre_tokenizers.Metaspace, tokenizers.pre_tokenizers.ByteLevel
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    if kind == "prepend":
        steps = tokenizers.normalizers
        bpe.normalizer = steps.Sequence([steps.Prepend("▁"), steps.Replace(" ", "▁")])
    else:
        bpe.pre_tokenizer = byte_level(True) if kind == "bytes" else spaces(prepend_scheme=kind, split=False)
    bpe.decoder = tokenizers.decoders.ByteLevel() if kind == "bytes" else tokenizers.decoders.Metaspace()
    alphabet = byte_level.alphabet() if kind == "bytes" else list("\n: ->.[]/INST")
    bpe.train_from_iterator([*WORDS, "the hat"] * 3, tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=MARKS, show_progress=False, initial_alphabet=alphabet))
    bpe.save(str(folder / "tokenizer.json"))
    with_bos(folder)
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


SPACES = ["prepend", "first", "always", "bytes"]


@pytest.mark.parametrize("kind", SPACES)
def test_a_text_that_goes_on_is_tokenised_as_in_the_whole_text(kind, folder):
    theirs = adds_space(folder, kind)
    t = tokenizer_for(theirs.get_vocab_size(), folder)
    V, start = t.vocab_size, theirs.encode("hat\n").ids
    for target in ("the cat", " the cat", ": cat", "cat\n"):
        for prompt in ("hat\n", "hat:", "hat", "a <|im_start|>", "hat\n<|im_start|>", ""):
            r = tokenize(Example(prompt, target), t, Template("{input}"))
            assert [*r.prompt, *r.completion] == [*theirs.encode(prompt + target).ids, 2]
        r = tokenize(Example("hat\n", target), t, Template("{input}{soft}cat:", 2))
        rest = theirs.encode(f"hat\ncat:{target}").ids[len(start) :]
        assert [*r.prompt, *r.completion] == [*start, V, V + 1, *rest, 2]
        assert decode_behind(t, encode_behind(t, start, target)) == target
    assert question(Example("the", ""), t, Template("{soft}{input}", 1)) == [0, V, *t.encode("the")]


@pytest.mark.parametrize("kind", SPACES)
def test_pieces_of_a_text_have_no_spaces_of_their_own(kind, folder):
    theirs = adds_space(folder, kind)
    text = "the cat sat on the mat\nand a hat: " * 9 + "end"
    t = tokenizer_for(theirs.get_vocab_size(), folder)
    pieces, _ = fit([tokenize(Example(None, text), t)], t, 12, 0)
    ids = [i for r in pieces for i in r.completion]
    assert len(pieces) > 5 and max(r.length for r in pieces) == 12
    assert theirs.decode(ids) == theirs.decode(theirs.encode(text).ids)


def test_cut_inputs_fit_when_they_are_tokenised_again(folder):
    with_bos(folder)
    tokenizer, template = tokenizer_for(300, folder), Template("chat")
    long = [Example(" ".join(Random(i).choices(WORDS, k=9)), "the hat", (("system", "cat"),)) for i in range(20)]
    for block_size in (44, 45, 46, 70):
        fitted, cut = fitted_examples(long, tokenizer, block_size, 8, template)
        lengths = [encode([e], tokenizer, template)[0].size(1) for e in fitted]
        assert cut == 20 and block_size - 8 - 3 <= max(lengths) <= block_size - 8
        for e, whole in zip(fitted, long, strict=True):
            assert e.input and whole.input.endswith(e.input) and not e.turns and e.target == whole.target
    text = Example(None, " ".join(WORDS * 5))
    pieces, cut = fitted_examples([text], tokenizer, 30, 8, template)
    assert cut == 1 and len(pieces) > 3 and "".join(e.target for e in pieces) == text.target
    assert all(encode([e], tokenizer, template)[0].size(1) <= 22 for e in pieces)


@pytest.mark.parametrize(
    "files, end, stops",
    [
        ({"generation_config.json": {"eos_token_id": [2, 0]}}, 2, [2, 0]),  # goes before config.json
        ({"generation_config.json": {}, "config.json": {"eos_token_id": 0}}, 0, [0]),
        ({"config.json": {"eos_token_id": None}, "tokenizer_config.json": {"eos_token": "<|im_end|>"}}, 2, [2]),
        ({"config.json": {}, "tokenizer_config.json": {"eos_token": {"content": "<|endoftext|>"}}}, 0, [0]),
    ],
)
def test_the_end_of_an_answer_is_what_the_folder_says(folder, files, end, stops):
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    tokenizer = tokenizer_for(300, folder)
    assert tokenizer.end == end and tokenizer.stops == stops


@pytest.mark.parametrize(
    "files, message",
    [
        ({"config.json": "{}"}, "does not say what ends an answer"),
        ({"config.json": '{"eos_token_id": 300}'}, "eos_token_id must be an id below 300 .*, not 300"),
        ({"config.json": '{"eos_token_id": "</s>"}'}, "eos_token_id must be an id below 300"),
        ({"config.json": "{}", "tokenizer_config.json": '{"eos_token": "</s>"}'}, "its eos_token '</s>' is no token"),
        ({"generation_config.json": "{"}, "generation_config.json is not a readable JSON file"),
        ({"tokenizer.json": '{"version": "1.0", '}, "tokenizer.json is torn or no tokenizer"),
        ({"tokenizer.json": "{}"}, "tokenizer.json is torn or no tokenizer"),
    ],
)
def test_folders_that_are_no_tokenizer_are_refused_in_one_line(folder, files, message):
    for name, content in files.items():
        (folder / name).write_text(content)
    with pytest.raises(Error, match=message) as e:
        tokenizer_for(300, folder)
    assert str(folder) in str(e.value) and "\n" not in str(e.value)


def test_a_tokenizer_of_another_vocabulary_is_refused_with_both_numbers(folder):
    for rows in (300, 300 + 1025, 300 + 2385, 8 * 300):  # embeddings rounded up, to multiples of thousands too
        assert tokenizer_for(rows, folder).vocab_size == rows
    with pytest.raises(Error, match="tokenizer.json has 300 ids and the model 299: it must be the model's own"):
        tokenizer_for(299, folder)


def test_added_tokens_beyond_the_model_are_no_part_of_a_text(folder):
    """As in Gemma 3's text models, whose file has <image_soft_token> behind the model's last id."""
    plain, image = tokenizer_for(300, folder), "<image_soft_token>"
    beyond = dict(id=300, content=image, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    changed_tokenizer(folder, lambda t: t["added_tokens"].append(beyond))
    t = tokenizer_for(300, folder)
    assert (t.vocab_size, t.marks, t.stops, t.encode("a cat")) == (300, plain.marks, [2], plain.encode("a cat"))
    with pytest.raises(Error, match=f"'a {image}' holds '{image}': its id is 300, and the model has 300$"):
        t.encode(f"a {image}")
    assert tokenizer_for(301, folder).encode(image) == [300]
    (folder / "config.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": image}))
    with pytest.raises(Error, match=f"its eos_token '{image}' is no token of the model"):
        tokenizer_for(300, folder)


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer.model"])
def test_a_tokenizer_of_an_older_kind_is_named(name, tmp_path):
    (tmp_path / name).write_text("{}")
    with pytest.raises(Error, match=f"has {name} and no tokenizer.json: save the tokenizer anew with transformers"):
        tokenizer_for(300, tmp_path)


def test_a_missing_package_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(Error, match="pip install tokenizers$"):
        tokenizer_for(300, folder)


def test_without_a_file_text_is_bytes(tmp_path):
    for folder in (None, "nano", NANO, tmp_path):
        assert isinstance(tokenizer_for(257, folder), ByteTokenizer)
        with pytest.raises(Error, match="has 97 ids and no tokenizer.json.* needs 257"):
            tokenizer_for(97, folder)
    assert TOKENIZER.begin == [] and TOKENIZER.stops == [TOKENIZER.end]


def test_marks_that_a_text_holds_already_are_not_added_again(folder, capfd):
    with_bos(folder)
    t = tokenizer_for(300, folder)
    a, b, x, y = (t.encode(text) for text in ("hat", "cat", "hat -> ", " hat"))
    assert (t.begin, t.stops) == ([0], [2])
    for template in ("{input} -> ", "<|endoftext|>{input} -> "):
        assert question(Example("hat", "cat"), t, Template(template)) == [0, *x]
    assert question(Example("<|endoftext|>hat", "cat"), t) == [0, *x]
    assert question(Example("hat", "x"), t, Template("<|endoftext|><|endoftext|>{input}")) == [0, 0, *a]  # as written
    for target in ("cat", "cat<|im_end|>", "cat<|im_end|>\n", "cat<|im_end|> <|im_end|>", "<|endoftext|>cat"):
        r = tokenize(Example("hat", target), t)
        assert (list(r.completion), r.example.target, r.new_tokens) == ([*b, 2], "cat", len(b))
        assert r == tokenize(r.example, t)
        text = tokenize(Example(None, target), t)
        assert (list(text.prompt), list(text.completion)) == ([0], [*b, 2])
    piece = tokenize(Example(None, "cat<|im_end|>", ends=False), t)
    assert list(piece.completion) == [*b, 2]  # of a longer text, which goes on
    assert list(tokenize(Example("hat", "cat<|im_end|> hat"), t).completion) == [*b, 2, *y, 2]
    assert opening.token_ids(t, "<|endoftext|>hat").tolist() == opening.token_ids(t, "hat").tolist() == [0, *a]
    assert capfd.readouterr().err == ""


def test_marks_in_the_middle_are_said_and_kept(folder, capfd):
    with_bos(folder)
    t = tokenizer_for(300, folder)
    rows = [{"input": "hat", "target": "cat<|im_end|>"}, {"input": "<|endoftext|>cat", "target": "hat"}]
    inner = [{"input": "a<|im_end|>", "target": "cat"}, {"input": "b", "target": "cat<|endoftext|>b"}]
    path = lines(folder / "a.jsonl", *rows, *inner)
    for template, n in (("{input} -> ", 2), ("Say {input}: ", 3), ("Say <|endoftext|>{input}: ", 4)):
        data = FileData(path, t, Template(template), 0, 4, 64, 0, dev=lines(folder / "dev.jsonl", rows[0], rows[0]))
        n, total = n + 2 * (n == 4), len(data.examples) + len(data.held_out)
        said = capfd.readouterr().err
        assert said.startswith(f"note: {path}: {n} of {total} examples hold <|endoftext|> or <|im_end|>, ")
        assert said.count("\n") == 1
    FileData(lines(path, *rows), t, PLAIN, 0, 4, 64, 0)
    assert capfd.readouterr().err == ""


def test_pieces_of_a_text_with_end_marks_in_it_fit(folder):
    tokenizer, text = FileTokenizer(folder, 320), "".join(f"the cat {'sat ' * (i % 5)}<|im_end|>\n" for i in range(40))
    for block_size in range(9, 20):
        fitted, _ = fitted_examples([Example(None, text)], tokenizer, block_size=block_size, num_virtual_tokens=0)
        assert max(tokenize(e, tokenizer).length for e in fitted) <= block_size
        assert "".join(e.target for e in fitted) == text.rstrip().removesuffix("<|im_end|>")
        assert [e.ends for e in fitted] == [False] * (len(fitted) - 1) + [True]


def test_a_saved_base_takes_its_own_tokenizer_over_an_older_one(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(name)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "generation_config.json").write_text('{"top_p": 0.9}')
    for name, end in (("a", 3), ("b", 4)):
        tokenizer = FileTokenizer.__new__(FileTokenizer)
        tokenizer.folder, tokenizer.stops = tmp_path / name, [end]
        tokenizer.save(tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "b"
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"top_p": 0.9, "eos_token_id": [4]}


def test_a_saved_base_keeps_no_file_of_the_tokenizer_before(folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        (out / name).write_text("older")
    FileTokenizer(folder, 320).save(out)
    assert sorted(path.name for path in out.iterdir()) == ["generation_config.json", "tokenizer.json"]
    ByteTokenizer().save(out)
    assert not list(out.iterdir())


def changed_tokenizer(folder, change):
    value = json.loads((folder / "tokenizer.json").read_text())
    change(value)
    (folder / "tokenizer.json").write_text(json.dumps(value))


GROWS = [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}] * 10


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(normalizer={"type": "Sequence", "normalizers": GROWS}), "may make .* characters or more of one"),
        (dict(decoder={"type": "Sequence", "decoders": GROWS}), "may make .* characters or more of one"),
        (
            dict(normalizer={"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 40}),
            "may make .* characters or more of one",
        ),
        (
            dict(
                pre_tokenizer={
                    "type": "Split",
                    "pattern": {"Regex": "a{1,999}{1,999}"},
                    "behavior": "Isolated",
                    "invert": False,
                }
            ),
            "may make .* characters or more of one",
        ),
        (
            dict(normalizer={"type": "Replace", "pattern": {"Regex": ""}, "content": "x"}),
            "tokenizer.json cannot encode .*PanicException",
        ),
        (dict(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "torn or no tokenizer"),
    ],
)
def test_a_tokenizer_that_never_ends_or_falls_over_is_refused(change, message, folder, capfd):
    changed_tokenizer(folder, lambda t: t.update(change))
    with pytest.raises(Error, match=message) as e:
        FileTokenizer(folder, 300)
    assert len(str(e.value).splitlines()) == 1 and capfd.readouterr().err == ""  # the library's own page is not shown


def test_a_tokenizer_that_is_none_by_its_size_is_not_read(folder):
    os.truncate(folder / "tokenizer.json", 10**9)  # takes no room on the disk
    with pytest.raises(Error, match="has 1,000,000,000 bytes: no tokenizer here needs more than 67,108,864"):
        FileTokenizer(folder, 300)


def test_what_a_tokenizer_draws_in_training_is_left_out(folder):
    want = FileTokenizer(folder, 300).encode(" ".join(WORDS))
    changed_tokenizer(folder, lambda t: t["model"].update(dropout=0.5))
    ours = FileTokenizer(folder, 300)
    assert all(ours.encode(" ".join(WORDS)) == want for _ in range(5))


def test_a_tokenizer_with_one_id_for_several_tokens_is_refused(folder):
    changed_tokenizer(folder, lambda t: t["model"]["vocab"].update({"!": t["model"]["vocab"]["#"]}))
    with pytest.raises(Error, match="gives one id to several tokens"):
        FileTokenizer(folder, 300)
