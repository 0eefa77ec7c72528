"""Generation, a task bank and an evaluation leave every module in the mode that it had."""

import pytest
import torch
from conftest import tiny

from minipeft import TaskBank, adapt, generate
from minipeft.training.evaluation import evaluate

IDX = torch.tensor([[1, 2, 3]])


@pytest.mark.parametrize("use", [
    lambda model: generate(model, IDX, 2), lambda model: TaskBank(model.base, {"a": model}),
    lambda model: evaluate(model, [(IDX, IDX)])])
def test_parts_in_eval_mode_stay_in_it(use):
    model = adapt(tiny(), "lora", lora_dropout=0.5).train()
    model.method.eval()
    use(model)
    assert model.training and model.base.training and not model.method.training
