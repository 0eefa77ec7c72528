"""The base that ships with the package: it knows every skill when told, and cannot know which is meant when not."""

import pytest
import torch

from minipeft import GPT, PRESETS, fingerprint
from minipeft.data import NANO
from minipeft.data.batches import draw
from minipeft.data.tasks import SKILLS, skill_example
from minipeft.data.tokenizer import ByteTokenizer
from minipeft.evaluation import batches, evaluate


@pytest.fixture(scope="module")
def nano() -> GPT:
    return GPT.from_pretrained(NANO)


def test_it_is_small_complete_and_needs_no_extra_package(nano):
    assert sorted(f.name for f in NANO.iterdir()) == ["config.json", "pytorch_model.bin", "scores.json"]
    assert sum(f.stat().st_size for f in NANO.iterdir()) <= 4_000_000
    assert nano.config == PRESETS["nano"]
    assert {p.dtype for p in nano.parameters()} == {torch.float32}


def test_its_fingerprint_stays_so_that_adapters_saved_for_it_stay_good(nano):
    assert fingerprint(nano) == "e411ba639c881bf10b2b672f1812c2e3cf8c1cdacd0342cec7f5c09e1d524706"


@pytest.mark.parametrize("name", SKILLS)
def test_a_skill_is_known_when_told_and_a_guess_when_not(name, nano):
    def exact_match(told: bool) -> float:
        examples = draw(lambda rng: skill_example(rng, name, told), f"test {name}", 200)
        return evaluate(nano, batches(examples, ByteTokenizer()))[1]

    assert exact_match(told=True) >= 0.95
    assert exact_match(told=False) <= 0.25
