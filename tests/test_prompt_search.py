"""Hard prompts: which batch the search judges on, and by what a wording is chosen."""

import torch
from conftest import tiny

from minipeft.data.tokenizer import ByteTokenizer
from minipeft.training import prompt_search


def test_a_search_chooses_by_the_batch_after_that_of_its_gradient():
    asked = []

    def batch(step):
        asked.append(step)
        idx = torch.randint(97, (2, 6))
        return idx, idx.roll(-1, 1)

    prompt_search.search(tiny(), torch.tensor([1, 2, 3]), batch, steps=2, candidates=4)
    assert asked == [0, *5 * [1], 2, *5 * [3]]


def test_a_wording_is_chosen_by_exact_match_first(monkeypatch):
    found = iter([(1.0, 0.5), (2.0, 0.9), (1.5, 0.9)])  # loss, exact match
    monkeypatch.setattr(prompt_search, "evaluate", lambda model, validation: next(found))
    candidates = [torch.tensor([ord(c)]) for c in "ABC"]
    order, best = prompt_search.choose_wording(tiny(), candidates, [], ByteTokenizer())
    assert [score["wording"] for score in order] == ["C", "B", "A"] and best.tolist() == [67]
