"""Virtual tokens inside the text: where {soft} of a template is."""

import json
import shutil

import pytest
import torch
from conftest import moved, tiny

import train
from minipeft import GPT, Error, TaskBank, accounting, adapt, generate, load_adapter
from minipeft.__main__ import main as command
from minipeft.adapters import export_adapter
from minipeft.data.encoding import question, tokenize, without_soft
from minipeft.data.fitting import fit
from minipeft.data.tasks import Example
from minipeft.data.template import Template
from minipeft.data.tokenizer import ByteTokenizer, tokenizer_for
from minipeft.methods.prompt_tuning import PromptTuning
from minipeft.runtime import console
from minipeft.runtime.profiling import saved_bytes
from minipeft.slots import SoftTokens

V, P, TEMPLATE = 97, 4, "{input} {soft} -> "
BYTES = ByteTokenizer()


def with_soft(idx: torch.Tensor, places: list[int]) -> torch.Tensor:
    """idx (B, T) with the ids of P soft tokens before the token of each place (B, T + P)."""
    soft = torch.arange(V, V + P)
    return torch.stack([torch.cat([row[:a], soft, row[a:]]) for row, a in zip(idx, places, strict=True)])


@pytest.fixture
def prompt() -> torch.Tensor:
    return torch.randn(P, 32, generator=torch.Generator().manual_seed(2))


def test_in_front_of_the_text_they_are_a_prompt(base, idx, prompt):
    if base.config.sliding_window is not None:  # it hides tokens in the text, not a prompt in front of it
        idx = idx[:, : base.config.sliding_window - P]
    in_text = base(with_soft(idx, [0, 0, 0]), prompt=SoftTokens(prompt, V))
    in_front = base(idx, prompt=prompt[None])
    if base.config.sliding_window is not None:  # with a mask of other values the last digits differ
        assert torch.allclose(in_text[:, P:], in_front, atol=1e-5)
    else:
        assert in_text[:, P:].equal(in_front)


def test_logits_and_gradients_are_those_of_transformers_given_the_embeddings(shape, idx, prompt, tmp_path):
    """Another place in every row; positions follow the order in the text."""
    transformers = pytest.importorskip("transformers")
    if shape == "rotary":
        pytest.skip("no architecture of transformers")
    base = tiny(shape)
    base.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    places, found = [0, 5, idx.size(1)], []
    ours, given = prompt.clone().requires_grad_(), prompt.clone().requires_grad_()
    logits = base(with_soft(idx, places), prompt=SoftTokens(ours, V))
    words = theirs.get_input_embeddings()(idx)
    x = torch.stack([torch.cat([row[:a], given, row[a:]]) for row, a in zip(words, places, strict=True)])
    wanted = theirs(inputs_embeds=x).logits
    assert torch.allclose(logits, wanted, atol=1e-4)
    for y, p in ((logits, ours), (wanted, given)):
        y.log_softmax(-1)[..., 3].sum().backward()
        found.append(p.grad)
    assert torch.allclose(*found, atol=1e-3)


def test_what_stands_before_them_does_not_change_with_them(base, idx, prompt):
    """Why the ladder needs a prompt in front: here it is no prefix of everything."""
    a, b = (base(with_soft(idx, [5, 5, 5]), prompt=SoftTokens(p, V)) for p in (prompt, 2 * prompt))
    assert a[:, :5].equal(b[:, :5]) and not torch.allclose(a[:, 5 + P :], b[:, 5 + P :], atol=1e-2)


@pytest.mark.parametrize("bad", [
    lambda x: x[:, :5],  # none
    lambda x: torch.cat([x, x[:, -P:]], 1),  # twice
    lambda x: torch.cat([x[:, : -P], x[:, -P:].flip(1)], 1),  # in another order
    lambda x: torch.cat([x[:, -P:-1], x[:, :-P], x[:, -1:]], 1),  # not together
    lambda x: torch.cat([x[:, :-1], x[:, -1:] + 1], 1),  # an unknown id
])
def test_every_row_must_hold_them_once_in_order(bad, idx, prompt):
    x = with_soft(idx, [11, 11, 11])
    with pytest.raises(Error, match=r"^every row of idx must hold the 4 ids 97 … 100 of the soft tokens once, in ord"):
        tiny()(bad(x), prompt=SoftTokens(prompt, V))


@torch.no_grad()
def test_generation_with_a_cache_takes_the_most_likely_tokens(base, idx):
    """Rows of different lengths, with the soft tokens in different places."""
    model = moved(adapt(base, "prompt", num_virtual_tokens=P, template=TEMPLATE))
    lengths = [15, 12, 9]
    rows = [with_soft(idx[i : i + 1, : n - P], [a])[0] for i, (n, a) in enumerate(zip(lengths, (0, 3, 5), strict=True))]
    padded = torch.stack([torch.cat([row, row.new_zeros(15 - len(row))]) for row in rows])
    out = generate(model, padded, 12, lengths=torch.tensor(lengths))
    for row, n, got in zip(rows, lengths, out, strict=True):
        whole = row[None]
        for _ in range(12):
            whole = torch.cat([whole, model(whole)[:, -1].argmax(-1, keepdim=True)], 1)
        assert whole[0].equal(got[: n + 12])


def test_they_cost_what_a_prompt_before_the_text_costs(base, idx):
    model = adapt(base, "prompt", num_virtual_tokens=P, template=TEMPLATE)
    x = with_soft(idx, [2, 5, 7])
    targets = x.masked_fill(x >= V, -100)
    held = [*model.parameters(), *model.buffers()]
    saved = saved_bytes(lambda: model.loss(x, targets), held)
    model.detach()
    front = adapt(base, "prompt", num_virtual_tokens=P)
    said = accounting.train_bytes(base.config, "prompt", 3, idx.size(1), num_virtual_tokens=P)
    assert said.activations == saved_bytes(lambda: front.loss(idx, idx.clone()), held)
    # ln_f and the loss also see the P positions, for they are part of T here: input, statistics, gradient
    c, rows = base.config, 3 * P
    more = {"layer": rows * (c.n_embd + 2), "rms": rows * (c.n_embd + 1), "rms1p": rows * (c.n_embd + 1)}[c.norm] * 4
    ln_f_input = 0 if c.norm == "layer" else rows * c.n_embd * 4
    assert said.activations <= saved <= said.activations + more + ln_f_input


# ---- the template


def test_the_tokens_of_a_template():
    pairs = Example("ab", "c")
    soft = list(range(257, 257 + P))
    for text, wanted in {"{input} {soft} -> ": [*b"ab ", *soft, *b" -> "], "{soft}{input}:": [*soft, *b"ab:"],
                         "say {soft}: {input}{x}": [*b"say ", *soft, *b": ab{x}"],
                         "{input}{soft}": [*b"ab", *soft]}.items():
        template = Template(text, P)
        assert question(pairs, BYTES, template) == wanted
        assert template.fill(pairs) == text.replace("{input}", "ab").replace("{soft}", "")
    turns = Example("ab", "c", (("user", "q"), ("assistant", "{soft}")))
    assert question(turns, BYTES, Template(TEMPLATE, P)) == [
        *b"user: q\nassistant: {soft}\nab ", *soft, *b" -> "]  # what an example says is text
    record = tokenize(pairs, BYTES, Template(TEMPLATE, P))
    assert record.length == len("ab  -> c") + P
    assert without_soft(record, BYTES).prompt.tolist() == [*b"ab  -> "]


def test_too_long_inputs_are_cut_beside_them():
    records = [tokenize(Example("x" * 50, "c"), BYTES, Template(TEMPLATE, P))]
    (record,), cut = fit(records, BYTES, 30, 0, Template(TEMPLATE, P))
    assert cut == 1 and record.length == 30 and [i for i in record.prompt if i > 256] == list(range(257, 257 + P))


@pytest.mark.parametrize("text, message", [
    ("{input}{soft}{soft}", r"^a template has \{soft\} in it once at most: "),
    ("{soft}", r'^a template is "chat" or a text with \{input\} in it once, not 0 times'),
])
def test_templates_that_are_none(text, message):
    with pytest.raises(Error, match=message):
        Template(text)


def test_a_text_alone_has_no_place_for_them():
    with pytest.raises(Error, match=r"^a template with \{soft\} needs inputs to stand beside: a text alone has none$"):
        question(Example(None, "abc"), BYTES, Template(TEMPLATE, P))


# ---- files, and what does not go with them


def test_an_adapter_keeps_its_template(tmp_path, idx):
    model = moved(adapt(tiny(), "prompt", num_virtual_tokens=P, template=TEMPLATE))
    model.save(tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["template"]) == ("PROMPT_TUNING_IN_TEXT", TEMPLATE)
    loaded = load_adapter(tiny(), tmp_path / "a")
    assert loaded.method.template == TEMPLATE and loaded.method.positions_taken == 0
    x = with_soft(idx, [2, 5, 7])
    assert loaded(x).equal(model(x))
    with pytest.raises(Error, match="^task 'a': prompt cannot be mixed in one batch: its virtual tokens stand in th"):
        TaskBank(loaded.base, {"a": tmp_path / "a"})
    with pytest.raises(Error, match="is prompt: its virtual tokens stand in the text, not before it$"):
        export_adapter(tiny(), tmp_path / "a", tmp_path / "b")
    peft = pytest.importorskip("peft")
    with pytest.raises((ValueError, KeyError)):  # PEFT would put them before the text
        peft.PeftConfig.from_pretrained(tmp_path / "a")
    with pytest.raises(Error, match=r"^template must be a text with \{input\} and \{soft\} in it, each once, not "):
        PromptTuning(tiny(), template="{input}")


def test_in_a_combination(idx):
    model = moved(adapt(tiny(), ["lora", "prompt"], num_virtual_tokens=P, template=TEMPLATE))
    assert model.method.positions_taken == 0 and model.method.num_virtual_tokens == P
    x = with_soft(idx, [2, 5, 7])
    model.loss(x, x.masked_fill(x >= V, -100)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.trainable_parameters())


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [{"input": f"{i * 7919 % 10000}", "target": f"{i * 7919 % 10000}"[::-1]} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def call(capsys, script, *argv) -> tuple[int, str, str]:
    code = console.run("x", lambda: script([str(a) for a in argv]))
    out, err = capsys.readouterr()
    return code, out, err


def test_train_evaluate_and_generate(capsys, tmp_path, data):
    flags = ["--data", data, "--method", "prompt", "--template", TEMPLATE, "--num-virtual-tokens", P, "--batch-size", 8]
    code, out, err = call(capsys, train.main, *flags, "--steps", 6, "--out", tmp_path / "a")
    assert code == 0, err
    (reached,) = [line for line in out.splitlines() if line.startswith("held-out")]
    code, out, err = call(capsys, train.main, *flags[:-4], "--eval-only", "--out", tmp_path / "a")
    assert code == 0 and reached in out, err
    before = reached.partition(", loss ")[2].partition(" ")[0]
    bare = [*flags, "--steps", 1, "--out", tmp_path / "b"]
    bare[5] = "{input}  -> "  # the base reads the text without them
    code, out, err = call(capsys, train.main, *bare)
    assert f"loss {before} -> " in out
    code, out, err = call(capsys, command, "generate", "--adapter", tmp_path / "a", "--prompt", "4711",
                          "--max-new-tokens", 4)
    base = GPT.from_pretrained("nano")
    ids = question(Example("4711", ""), tokenizer_for(257, None), Template(TEMPLATE, P))
    new = generate(load_adapter(base, tmp_path / "a"), torch.tensor([ids]), 4, stop_token=256)[0, len(ids) :]
    assert code == 0 and out.strip() == BYTES.decode([i for i in new.tolist() if i < 256]).strip()

    alone = shutil.copytree(tmp_path / "a", tmp_path / "alone")
    (alone / "scores.json").unlink()  # which tells the run's template
    for argv, message in {
        ("--eval-only", "--out", alone): "has its virtual tokens in the text: give its --template",
        ("--method", "prefix", "--template", TEMPLATE): "{soft} in --template goes with --method prompt: prefix has",
        ("--climb", "--template", TEMPLATE): "{soft} in --template goes with --method prompt: --climb has no",
        ("--method", "prefix", "--init-from", tmp_path / "a", "--out", tmp_path / "c"): "in the text: the ladder",
        ("--method", "prompt", "--template", TEMPLATE, "--eval-only", "--out", tmp_path / "b"):
            "has no virtual tokens in the text",
    }.items():
        code, _, err = call(capsys, train.main, "--data", data, *argv)
        assert code == 2 and message in err and len(err.strip().splitlines()) == 1, err
    for argv, message in {
        ("--adapter", tmp_path / "a", "--adapter", tmp_path / "b"): "give it as the only --adapter",
        ("--adapter", tmp_path / "a", "--template", "{input}"): "it must be there for this one",
        ("--adapter", tmp_path / "b", "--template", TEMPLATE): "none is given that has some",
    }.items():
        code, _, err = call(capsys, command, "generate", *argv, "--prompt", "1")
        assert code == 2 and message in err and len(err.strip().splitlines()) == 1, err
