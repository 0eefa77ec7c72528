"""A real pretrained model, where there is one: SMOLLM2=folder python -m pytest tests/test_real_model.py"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from minipeft import GPT, generate
from minipeft.data.tokenizer import tokenizer_for

FOLDER = os.environ.get("SMOLLM2")
pytestmark = pytest.mark.skipif(FOLDER is None, reason="SMOLLM2 names no folder of SmolLM2-135M")
ROOT = Path(__file__).parent.parent

PROMPTS = [
    "The capital of France is",
    "<|im_start|>user\nWrite one sentence about a pub by the river.<|im_end|>\n<|im_start|>assistant\n",
    "def fibonacci(n):\n",
    "Once upon a time, in a village near the sea,",
    "1, 2, 3, 5, 8,",
]


def test_logits_and_greedy_tokens_are_transformers():
    transformers = pytest.importorskip("transformers")
    base, theirs = (
        GPT.from_pretrained(FOLDER, torch.float32),
        transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32),
    )
    ours, tokenizer = tokenizer_for(base.config.vocab_size, FOLDER), transformers.AutoTokenizer.from_pretrained(FOLDER)
    for prompt in PROMPTS:
        ids = ours.begin + ours.encode(prompt)
        assert ids == tokenizer(prompt)["input_ids"]
        idx = torch.tensor([ids])
        with torch.no_grad():
            torch.testing.assert_close(base(idx), theirs(idx).logits, rtol=0, atol=1e-4)
        expected = theirs.generate(idx, max_new_tokens=50, min_new_tokens=50, do_sample=False, repetition_penalty=1.0)
        # they never draw an end mark before 50 tokens, so ours may not stop at one either
        mine = generate(base, idx, 50)[0, idx.size(1) :].tolist()
        same = expected[0, idx.size(1) :].tolist()
        if ours.end in mine:
            mine, same = mine[: mine.index(ours.end)], same[: mine.index(ours.end)]
        assert mine == same and mine


def test_a_prefix_is_tuned_on_two_cores_in_little_memory(tmp_path):
    """Progress within 10 seconds, an estimate of the time left, and a peak under 2.5 GB in bfloat16."""
    facts = "name[Place {}], area[riverside], food[Thai], priceRange[cheap]"
    text = "Place {} is a cheap Thai place by the river."
    rows = [{"input": facts.format(i), "target": text.format(i)} for i in range(80)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "train.py", "--base", FOLDER, "--base-dtype", "bfloat16", "--method", "prefix",
               "--data", str(tmp_path / "train.jsonl"), "--epochs", "1", "--out", str(tmp_path / "out")]
    started, first, printed = time.monotonic(), None, ""
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as process:
        while chunk := process.stderr.read1():
            printed += chunk.decode(errors="replace")
            if first is None and "%|" in printed:
                first = time.monotonic() - started
    assert process.returncode == 0, printed[-2000:]
    assert first < 10
    assert re.search(r"step/s|s/step", printed) and re.search(r"\[\d\d:\d\d<\d\d:\d\d", printed)  # elapsed < left
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["peak_bytes"] < 2.5e9
