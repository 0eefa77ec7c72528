"""The measures of forgetting: all skills, told; English that no task has."""

import json
from pathlib import Path

import pytest

from minipeft import GPT
from minipeft.bench.quality import forgetting
from minipeft.data import BASES
from minipeft.data.tasks import INSTRUCTIONS
from minipeft.data.tokenizer import ByteTokenizer
from minipeft.training.evaluation import evaluate

LINES = Path(__file__).parent.parent / "docs" / "results" / "quality.jsonl"


def test_what_is_known_is_told_and_scores_as_in_the_committed_lines():
    tokenizer = ByteTokenizer()
    known = forgetting.skills(tokenizer)
    texts = [tokenizer.decode(row.tolist()) for idx, _ in known for row in idx]
    said = {next(i for i in INSTRUCTIONS if text.startswith(i)) for text in texts}
    assert len(texts) == 200 and said == set(INSTRUCTIONS)
    lines = map(json.loads, LINES.read_text(encoding="utf-8").splitlines())
    committed = next(line["known"] for line in lines if line["cell"]["base"] == "small" and "known" in line)["before"]
    assert evaluate(GPT.from_pretrained(BASES["small"]), known) == pytest.approx(committed, rel=1e-3)


def test_english_is_pieces_of_a_text_without_an_end_mark(monkeypatch):
    monkeypatch.setattr(forgetting, "batches", lambda examples, tokenizer: examples)
    found = forgetting.english(ByteTokenizer())
    assert len(set(found)) == 24 and all(e.input is None and not e.ends and 150 <= len(e.target) <= 300 for e in found)
