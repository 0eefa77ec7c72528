"""Scores of what was written."""

import math
import sys

import pytest

from minipeft import Error
from minipeft.data.tasks import SKILLS
from minipeft.data.tokenizer import ByteTokenizer
from minipeft.training import scores
from minipeft.training.scores import text_scores


def test_exact_match_and_bleu_by_hand():
    pytest.importorskip("sacrebleu")
    answers = ["the cat sat on the mat", " a b c d "]
    scores = text_scores(answers, [["the cat sat on a mat"], ["e f g h", "a b c d"]])
    assert scores["exact_match"] == 0.5
    # 5 + 4 1-grams match, 3 + 3 2-grams, 2 + 2 3-grams, 1 + 1 4-grams; no answer is shorter than its reference
    shares = [9 / 10, 6 / 8, 4 / 6, 2 / 4]
    assert scores["bleu"] == pytest.approx(100 * math.prod(shares) ** (1 / 4))
    assert text_scores(["x y z w"], [["x y z w"]]) == pytest.approx({"exact_match": 1, "bleu": 100, "chrf": 100})


def test_any_number_of_references_counts_for_its_own_answer_alone():
    sacrebleu = pytest.importorskip("sacrebleu")
    answers = ["there is a coffee shop by the river", "it is cheap and good food is there"]
    known = [
        ["a coffee shop by the river", "there is a shop near the river", "by the river is a coffee shop"],
        ["cheap and good food is here"],
    ]
    for answer, its_own in zip(answers, known, strict=True):
        scores = text_scores([answer], [its_own])
        assert scores["bleu"] == pytest.approx(
            sacrebleu.sentence_bleu(answer, its_own, smooth_method="exp", use_effective_order=False).score
        )
        assert scores["chrf"] == pytest.approx(sacrebleu.sentence_chrf(answer, its_own).score)
    both, swapped = text_scores(answers, known), text_scores(answers[::-1], known[::-1])
    assert both == pytest.approx(swapped) and both["exact_match"] == 0
    # the reference that is missing is none at all: an empty one would be the nearest in length to a short answer
    short = text_scores(["a", answers[0]], [["a b c"], known[0]])
    assert short["bleu"] == pytest.approx(text_scores(["a", answers[0]], [["a b c"] * 3, known[0]])["bleu"])


def test_what_cannot_be_scored_is_refused():
    for answers, known in (([], []), (["a"], []), (["a"], [[]])):
        with pytest.raises(Error, match="one reference or more for each"):
            text_scores(answers, known)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(Error, match="pip install sacrebleu$"):
        text_scores(["a"], [["a"]])


def test_skills_are_scored_with_and_without_an_instruction(monkeypatch):
    monkeypatch.setattr(scores, "batches", lambda examples, tokenizer: examples)
    monkeypatch.setattr(scores, "evaluate", lambda model, its: (0.0, sum(": " in e.input for e in its) / len(its)))
    assert scores.skill_scores(None, ByteTokenizer()) == {name: {"told": 1.0, "not told": 0.0} for name in SKILLS}
