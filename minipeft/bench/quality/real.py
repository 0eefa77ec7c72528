"""Cells on a real model: SmolLM2-135M-Instruct learns to describe restaurants.

    data        E2E NLG (Novikova et al. 2017, 1706.09254): pairs of a meaning representation (MR)
                and a description, of at most LONGEST tokens. A fifth of devset.csv's MRs is the
                validation set, the others are for training; testset_w_refs.csv is held out. No
                two of them share an MR
    examples    drawn by the seed; a smaller set is part of a larger one. Every run is STEPS batches
                of BATCH pairs of similar length, so it need not see all of them
    score       BLEU of greedy completions of at most NEW tokens, for SCORED held-out MRs, against
                all references of each
    loss        of SCORED held-out pairs, one per MR; when a learning rate is chosen, of SCORED
                pairs of the validation set, and nothing is generated

Weights are float32. Prompt and prefix start from a wording and have its length; LoRA and full
fine-tuning start from the bare base. docs/tools/e2e.py is the earlier experiment, at full length.
"""

import importlib.util
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from ...accounting import adapter_bytes
from ...attach import Adapted, adapt
from ...checks import Error
from ...data.batches import Epochs, references
from ...data.encoding import collate, length, tokenize
from ...data.files import read_examples
from ...data.tasks import Example
from ...data.template import Template
from ...data.tokenizer import tokenizer_for, with_begin
from ...model import GPT
from ...training.evaluation import answer, batches, evaluate
from ...training.loop import train
from ...training.scores import text_scores
from .lines import Cell

# A chat turn: the wording opens it, the template closes it. This wording shows an example; of the
# five that docs/tools/e2e.py tries it has the lowest loss on the validation set (e2e-smollm2.json).
TEMPLATE = "{input}<|im_end|>\n<|im_start|>assistant\n"
WORDING = (
    "<|im_start|>user\nname[The Mill], eatType[pub], area[riverside], familyFriendly[yes]"
    "<|im_end|>\n<|im_start|>assistant\nThe Mill is a family friendly pub by the riverside."
    "<|im_end|>\n<|im_start|>user\n"
)
FROM_WORDING = {"size": {"num_virtual_tokens": 46}, "start": {"text": WORDING}}  # 46 SmolLM2 tokens
METHODS = {  # fields of the cell, and the learning rates of the sweep
    "prompt": (FROM_WORDING, (1e-2, 3e-2, 1e-1)),
    "prefix": (FROM_WORDING, (1e-2, 3e-2, 1e-1)),
    "lora": ({"size": {"r": 8}}, (2e-3, 6e-3, 2e-2)),
    "full": ({}, (3e-5, 1e-4, 3e-4)),
}
STEPS, BATCH = 75, 4
LONGEST = 64  # tokens of a pair, without the virtual ones
SCORED, NEW = 50, 40


def cell(name: str, examples: int) -> Cell:
    """The cell of this method, without learning rate and seed."""
    work = {"steps": STEPS, "batch_size": BATCH, "examples": examples}
    return Cell("smollm2-135m", "e2e", name, **METHODS[name][0], **work)


def run(cell: Cell, folders: dict[str, str], device: str) -> dict:
    """The cell's result. Raises Error, before training, for missing folders, packages or pairs."""
    if importlib.util.find_spec("sacrebleu") is None:
        raise Error("cells on E2E are scored by BLEU, which needs: pip install sacrebleu")
    folder, e2e = folder_of(folders, "smollm2"), folder_of(folders, "e2e")
    known, unseen = e2e / "devset.csv", e2e / "testset_w_refs.csv"
    pairs, grouped = read_examples(known), references(read_examples(unseen))
    base = GPT.from_pretrained(folder, torch.float32).to(device)
    tokenizer, template = tokenizer_for(base.config.vocab_size, folder), Template(TEMPLATE)

    def fits(e: Example) -> bool:
        return length(e, tokenizer, template) <= LONGEST

    def loss_of(examples: list[Example]) -> tuple[float, float]:
        return evaluate(model, batches(examples, tokenizer, template))

    chosen = fifth((e.input for e in pairs), Random(0))
    training = (e for e in pairs if e.input not in chosen)
    training = first(cell.examples, training, fits, f"{cell.seed}/few", known)
    dev = first(SCORED, (e for e in pairs if e.input in chosen), fits, "development", known)
    test = first(SCORED, grouped, lambda its: fits(its[0]), "held-out", unseen)
    records = [tokenize(e, tokenizer, template) for e in training]
    epochs = Epochs([r.length for r in records], cell.batch_size, cell.seed)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        return collate([records[i] for i in epochs.batch(step)], tokenizer.end)

    text = {}
    if cell.start is not None:
        text["init"] = torch.tensor(with_begin(tokenizer, cell.start["text"]))
    model = adapt(base, cell.method, **cell.size, **text)
    start = time.perf_counter()
    train(model, batch, cell.steps, cell.lr)
    result = {"seconds": round(time.perf_counter() - start, 2), **sizes(cell, model), "curve": []}
    if cell.scored_on == "dev":
        result["loss"], result["score"] = loss_of(dev)  # this score is exact match
        return result
    examples, known_answers = map(list, zip(*test, strict=True))
    answers = answer(model, examples, tokenizer, template, NEW, batch_size=SCORED)
    scores = text_scores(answers, known_answers)
    result |= {"score": scores["bleu"], "chrf": scores["chrf"], "loss": loss_of(examples)[0]}
    return result | {"loss_on_learnt": loss_of(training[:SCORED])[0]}


def sizes(cell: Cell, model: Adapted) -> dict[str, int]:
    """Trained parameters, and the bytes of one task's adapter file by its closed form."""
    size = dict(cell.size)
    if cell.method in ("hard-prompt", "prompt", "prefix"):  # as long as their initial value
        size["num_virtual_tokens"] = model.method.num_virtual_tokens
    return {"trained": sum(p.numel() for p in model.trainable_parameters()),
            "stored_bytes": adapter_bytes(model.base.config, cell.method, **size)}


def folder_of(folders: dict[str, str], name: str) -> Path:
    """The folder with this name. Raises Error if it was not given or does not exist."""
    if name not in folders:
        raise Error(f"cells on SmolLM2 and E2E need --{name} FOLDER")
    if not (folder := Path(folders[name])).is_dir():
        raise Error(f"--{name} {folder}: no such folder")
    return folder


def fifth(inputs: Iterable[str], rng: Random) -> set[str]:
    """A random fifth of the distinct inputs."""
    inputs = list(dict.fromkeys(inputs))
    rng.shuffle(inputs)
    return set(inputs[: len(inputs) // 5])


def first(n: int, items: Iterable, fits: Callable[..., bool], seed: str, path: Path) -> list:
    """The first n items that fit, in random order. Raises Error if there are fewer."""
    items = list(items)
    Random(seed).shuffle(items)
    found = list(islice(filter(fits, items), n))
    if len(found) < n:
        raise Error(f"{path} has {len(found)} of the {n} pairs of at most {LONGEST} tokens that "
                    "are needed: is it E2E's own file?")
    return found
