"""Answers and scores of a model, against the plain way of getting them."""

import pytest
import torch
from conftest import moved, tiny

from minipeft import GPT, Error, adapt, generate
from minipeft.data import NANO
from minipeft.data.encoding import question
from minipeft.data.tasks import Example
from minipeft.data.tokenizer import ByteTokenizer
from minipeft.training.evaluation import batches, complete_examples, evaluate

TOKENIZER = ByteTokenizer()


def alone(model, example: Example, n: int) -> str:
    asked = torch.tensor([question(example, TOKENIZER)])
    new = generate(model, asked, n, stop_token=TOKENIZER.end)[0, asked.size(1) :].tolist()
    return TOKENIZER.decode(new[: new.index(TOKENIZER.end)] if TOKENIZER.end in new else new)


def test_answers_of_a_batch_are_those_of_every_question_alone():
    """Also beside questions so long that they leave hardly any room for their own."""
    model = adapt(GPT.from_pretrained(NANO), "prompt", num_virtual_tokens=4)
    examples = [
        Example("58213764", ""),
        Example("9" * 490, ""),
        Example("sort: 58213764", ""),
        Example("1" * 503, ""),
        Example("12", ""),
    ]
    expected = [alone(model, e, min(12, 512 - 4 - len(question(e, TOKENIZER)) + 1)) for e in examples]
    assert complete_examples(model, examples, TOKENIZER, max_new_tokens=12) == expected
    assert complete_examples(model, examples, TOKENIZER, max_new_tokens=12, batch_size=2) == expected
    assert len(expected[2]) >= 8


def test_scores_do_not_depend_on_how_examples_are_put_into_batches():
    base = GPT.from_pretrained(NANO)
    examples = [Example(f"{'reverse: ' if i % 3 else ''}{i:08d}"[: 5 + i], f"{i:08d}"[::-1]) for i in range(20)]
    whole, single = (
        evaluate(base, batches(examples, TOKENIZER)),
        evaluate(base, batches(examples, TOKENIZER, batch_size=1)),
    )
    assert whole[1] == single[1] > 0
    assert whole[0] == pytest.approx(single[0], rel=1e-5)


def test_losses_are_measured_without_dropout_and_training_goes_on_with_it(idx):
    model, batch = moved(adapt(tiny(), "lora", lora_dropout=0.5)).train(), (idx, idx.roll(-1, 1))
    loss, _ = evaluate(model, [batch])
    assert model.training and loss == pytest.approx(model.eval().loss(*batch).item(), rel=1e-5)


def test_the_loss_is_the_models_own():
    base = tiny()
    idx = torch.randint(97, (3, 11))
    targets = torch.where(torch.rand(3, 11) < 0.5, torch.randint(97, (3, 11)), -100)
    model = adapt(base, "prefix")
    assert evaluate(model, [(idx, targets)])[0] == pytest.approx(model.loss(idx, targets).item(), rel=1e-5)


def test_a_model_trains_on_after_an_evaluation_that_fails():
    model = adapt(tiny(), "lora", lora_dropout=0.5)
    for token, message in ((200, "200"), (7, "nothing to evaluate: no target is supervised")):
        idx = torch.full((2, 7), token)
        with pytest.raises(Error, match=message):
            evaluate(model, [(idx, torch.full_like(idx, -100))])
        assert model.training and model.method.training
