"""Cells on a real model: SmolLM2-135M-Instruct learns to describe restaurants (E2E NLG, Novikova et al. 2017, 1706.09254).

    data        pairs of a meaning representation (MR) and a description. devset.csv: a fifth of its MRs is for choosing rates, the others
                are learnt from; testset_w_refs.csv is reported on. No MR is in two of the three
    lengths     only pairs of at most LONGEST tokens are learnt from or scored, a third of devset.csv: the time of a run is short so
    examples    drawn by the seed, the fewer among the more; STEPS batches of BATCH of about one length, whatever the number of examples:
                equal work, and of one seed the same for every method. Of more examples than STEPS · BATCH a run sees so many
    score       BLEU of the greedy answers, of at most NEW tokens, to SCORED test MRs against all references that each of them has
    loss        of SCORED test pairs, one of each of these MRs; where a rate is chosen, of dev pairs, and then nothing is answered

The weights are float32 for every method. Prompt and prefix start from a wording and have its length; LoRA and full fine-tuning begin at
the bare base. docs/tools/e2e.py is the experiment before this one: all lengths, three epochs, one seed.
"""

import importlib.util
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from ...config import Error
from ...data.batches import Epochs, encode, length, references
from ...data.files import read_examples
from ...data.tasks import Example
from ...data.template import Template
from ...data.tokenizer import tokenizer_for
from ...methods import adapt
from ...model import GPT
from ...training.evaluation import answer, batches, evaluate
from ...training.loop import train
from ...training.scores import text_scores
from .cell import Cell, folder_of, stored_bytes

# A turn of a chat: a wording opens it, the template closes it. This one shows an example; of the five that docs/tools/e2e.py tries it has the
# lowest loss on dev pairs (docs/results/e2e-smollm2.json).
TEMPLATE = "{input}<|im_end|>\n<|im_start|>assistant\n"
WORDING = (
    "<|im_start|>user\nname[The Mill], eatType[pub], area[riverside], familyFriendly[yes]<|im_end|>\n<|im_start|>assistant\n"
    "The Mill is a family friendly pub by the riverside.<|im_end|>\n<|im_start|>user\n"
)
FROM_WORDING = {"size": {"num_virtual_tokens": 46}, "start": {"text": WORDING}}  # 46 tokens of SmolLM2's
STEPS, BATCH = 75, 4
LONGEST = 64  # tokens of a pair, the virtual ones not among them
SCORED, NEW = 50, 40


def cell(name: str, examples: int) -> Cell:
    """The cell of this method, its rate and seed still open."""
    how = {"prompt": FROM_WORDING, "prefix": FROM_WORDING, "lora": {"size": {"r": 8}}, "full": {}}[name]
    return Cell("smollm2-135m", "e2e", name, **how, steps=STEPS, batch_size=BATCH, examples=examples)


def run(cell: Cell, folders: dict[str, str], device: str) -> dict:
    """The cell's result. Raises Error, before anything is trained, for a folder or package that is missing, or too few pairs."""
    if importlib.util.find_spec("sacrebleu") is None:
        raise Error("cells on SmolLM2 and E2E are scored by BLEU, which needs: pip install sacrebleu")
    folder, e2e = folder_of(folders, "smollm2"), folder_of(folders, "e2e")
    known, unseen = e2e / "devset.csv", e2e / "testset_w_refs.csv"
    pairs, asked = read_examples(known), references(read_examples(unseen))
    base = GPT.from_pretrained(folder, torch.float32).to(device)
    tokenizer, template = tokenizer_for(base.config.vocab_size, folder), Template(TEMPLATE)

    def fits(e: Example) -> bool:
        return length(e, tokenizer, template) <= LONGEST

    def loss_of(examples: list[Example]) -> tuple[float, float]:
        return evaluate(model, batches(examples, tokenizer, template))

    to_choose = fifth((e.input for e in pairs), Random(0))
    learnt = first(cell.examples, (e for e in pairs if e.input not in to_choose), fits, f"{cell.seed}/few", known)
    dev = first(SCORED, (e for e in pairs if e.input in to_choose), fits, "development", known)
    test = first(SCORED, asked, lambda its: fits(its[0]), "held-out", unseen)  # [(a pair of the MR, its references)]
    epochs = Epochs([length(e, tokenizer, template) for e in learnt], cell.batch_size, cell.seed)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        return encode([learnt[i] for i in epochs.batch(step)], tokenizer, template)

    text = {} if cell.start is None else {"init": torch.tensor(tokenizer.begin + tokenizer.encode(cell.start["text"]))}
    model = adapt(base, cell.method, **cell.size, **text)
    began = time.perf_counter()
    train(model, batch, cell.steps, cell.lr)
    result = {
        "seconds": round(time.perf_counter() - began, 2),
        "trained": sum(p.numel() for p in model.trainable_parameters()),
        "stored_bytes": stored_bytes(cell, base, model),
        "curve": [],
    }
    if cell.scored_on == "dev":
        result["loss"], result["score"] = loss_of(dev)  # the score is exact match
        return result
    examples, known_answers = map(list, zip(*test, strict=True))
    answers = answer(model, examples, tokenizer, template, NEW, batch_size=SCORED)
    scores = text_scores(answers, known_answers)
    result |= {"score": scores["bleu"], "chrf": scores["chrf"], "loss": loss_of(examples)[0]}
    return result | {"loss_on_learnt": loss_of(learnt[:SCORED])[0]}


def fifth(inputs: Iterable[str], rng: Random) -> set[str]:
    """A fifth of these inputs, of which each may be there several times."""
    inputs = list(dict.fromkeys(inputs))
    rng.shuffle(inputs)
    return set(inputs[: len(inputs) // 5])


def first(n: int, items: Iterable, fits: Callable[..., bool], seed: str, path: Path) -> list:
    """The first n that fit, in an order drawn by the seed. Raises Error when the file has fewer."""
    items = list(items)
    Random(seed).shuffle(items)
    found = list(islice(filter(fits, items), n))
    if len(found) < n:
        raise Error(f"{path} has {len(found)} of the {n} pairs of at most {LONGEST} tokens that are needed of it: is it E2E's own?")
    return found
