"""docs/ladder_from_scratch.py imports torch alone, and has the package's logits, conversions, counts and training."""

import ast
import importlib.util
import math
import re
import sys
from pathlib import Path

import pytest
import torch

from minipeft import GPT, accounting, adapt, hidden_from_prompt, prefix_from_hidden, prompt_from_tokens
from minipeft.data import NANO
from minipeft.data.encoding import encode
from minipeft.data.tasks import SKILLS, Example
from minipeft.data.tokenizer import ByteTokenizer

FILE = Path(__file__).parent.parent / "docs" / "ladder_from_scratch.py"
KINDS = {"prompt": ("prompt", {}), "hidden": ("prefix", {"space": "hidden"}), "prefix": ("prefix", {})}


@pytest.fixture(scope="module")
def scratch():
    spec = importlib.util.spec_from_file_location("ladder_from_scratch", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def weights() -> dict:
    stored = torch.load(NANO / "pytorch_model.bin", weights_only=True)
    return {name.removeprefix("transformer."): x for name, x in stored.items()}


@pytest.fixture(scope="module")
def nano() -> GPT:
    return GPT.from_pretrained(NANO)


def start_of(scratch, kind: str, P: int = 3) -> torch.Tensor:
    torch.manual_seed(0)
    shapes = {"prompt": (1, P, scratch.C), "hidden": (scratch.L, 1, P, scratch.C),
              "prefix": (scratch.L, 2, 1, scratch.NH, P, scratch.HS)}
    return 0.3 * torch.randn(shapes[kind])


def test_one_sitting_is_at_most_250_lines_and_imports_torch_alone():
    text = FILE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 250
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {name.name.partition(".")[0] for name in node.names}
        if isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"torch"}


def test_logits_with_every_level_are_the_packages(scratch, weights, nano):
    idx = torch.randint(256, (2, 9), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(scratch.gpt(weights, idx), nano(idx), rtol=0, atol=1e-4)
    for kind in KINDS:
        x = start_of(scratch, kind)
        slots = {kind: x} if kind != "hidden" else {"prefix": prefix_from_hidden(nano, x)}
        torch.testing.assert_close(scratch.gpt(weights, idx, **{kind: x}), nano(idx, **slots), rtol=0, atol=1e-3)


def test_conversions_are_the_packages(scratch, weights, nano):
    tokens = torch.tensor(list(b"reverse: "))
    prompt = scratch.prompt_from_tokens(weights, tokens)
    hidden = scratch.hidden_from_prompt(weights, prompt)
    prefix = scratch.prefix_from_hidden(weights, hidden)
    torch.testing.assert_close(prompt, prompt_from_tokens(nano, tokens))
    torch.testing.assert_close(hidden, hidden_from_prompt(nano, prompt), rtol=0, atol=1e-4)
    torch.testing.assert_close(prefix, prefix_from_hidden(nano, hidden), rtol=0, atol=1e-4)
    scratch.check_the_ladder(weights)


def test_a_broken_level_is_noticed(scratch, weights, monkeypatch):
    right = scratch.prefix_from_hidden
    monkeypatch.setattr(scratch, "prefix_from_hidden", lambda w, x: right(w, x).flip(1))  # values as keys
    with pytest.raises(AssertionError, match="prefix: the logits moved"):
        scratch.check_the_ladder(weights)


def test_examples_are_the_packages_task(scratch):
    idx, targets = scratch.examples("seed", 4)
    inputs = [bytes(row[:8].tolist()).decode() for row in idx]
    ours = encode([Example(digits, SKILLS["reverse"].apply(digits)) for digits in inputs], ByteTokenizer())
    assert torch.equal(idx, ours[0]) and torch.equal(targets, ours[1])


@pytest.mark.parametrize("kind", KINDS)
def test_three_steps_of_tuning_are_the_packages(scratch, weights, nano, kind):
    method, h = KINDS[kind]
    start = start_of(scratch, kind)
    model = adapt(nano, method, init=start, **h)
    assert start.numel() == accounting.count(nano.config, method, num_virtual_tokens=3, **h).trained
    optimizer = torch.optim.SGD(model.trainable_parameters(), lr=1.0)
    x = start.clone().requires_grad_()
    for step in range(3):
        batch = scratch.examples(f"a{step}", 4)
        loss = model.loss(*batch)
        optimizer.zero_grad()
        loss.backward()
        own = scratch.loss_of(weights, batch, **{kind: x})
        (gradient,) = torch.autograd.grad(own, x)
        torch.testing.assert_close(own, loss, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            x -= gradient
        optimizer.step()
    torch.testing.assert_close(model.method.ladder_value(), x, rtol=0, atol=1e-3)
    model.detach()


@pytest.mark.slow
def test_the_table_at_the_end(scratch, nano, capsys):
    rows = scratch.main(seconds=math.inf)
    printed = capsys.readouterr().out
    counts = [0, 0] + [accounting.count(nano.config, method, num_virtual_tokens=8, **h).trained
                       for method, h in KINDS.values()]
    assert [parameters for _, parameters, _ in rows] == counts
    for what, parameters, exact in rows:
        assert re.search(rf"{re.escape(what)} +{parameters:,} +{exact:.2f}\b", printed)
    exact = [row[2] for row in rows]
    assert exact[0] == 0 and exact[1] > 0.5 and min(exact[2:]) > 0.8
