"""Cells on a real model: SmolLM2-135M-Instruct describes restaurants, classifies and rewrites.

    e2e                E2E NLG (Novikova et al. 2017, 1706.09254): pairs of a meaning representation (MR)
                       and a description, of at most LONGEST tokens. A fifth of devset.csv's MRs is the
                       validation set, the others are for training; testset_w_refs.csv is held out. No
                       two of them share an MR. Score: BLEU of greedy completions of at most NEW tokens,
                       for SCORED held-out MRs, against all references of each
    topics, amounts    the tasks of minipeft.data.sentences. Held-out examples have sentence patterns of
                       their own; the validation set has those of training. Score: exact match

Examples are drawn by the seed; a smaller set is part of a larger one. A run is STEPS batches of
BATCH pairs of similar length, or as many as see every example once. The loss is of the held-out
pairs; when a learning rate is chosen, of the validation set, and nothing is generated. Weights are
float32. peak_bytes: of the process in training, with Python, torch and what earlier cells left; on
a GPU, of torch's allocator.

Prompt and prefix start from a wording and have its length; the other methods start from the bare
base, and "with wording" have it in front of every input. Hard-prompt is that wording, not trained.
docs/tools/e2e.py is an earlier experiment, at full length.
"""

import importlib.util
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...accounting import adapter_bytes
from ...attach import Adapted, adapt
from ...checks import Error
from ...data.batches import Epochs, references
from ...data.encoding import Encoded, collate, tokenize
from ...data.files import read_examples
from ...data.sentences import SENTENCES, distinct
from ...data.tasks import Example
from ...data.template import Template
from ...data.tokenizer import tokenizer_for, with_begin
from ...documents import match
from ...methods.hard_prompt import HardPrompt
from ...model import GPT
from ...slots import Prefix
from ...training.evaluation import batches, complete_examples, evaluate
from ...training.loop import train
from ...training.scores import text_scores
from ..measure import peak_above, restart_peak
from . import forgetting
from .lines import Cell

BASE = "smollm2-135m"
# A chat turn: the wording opens it, the template closes it.
TEMPLATE = "{input}<|im_end|>\n<|im_start|>assistant\n"


STEPS, BATCH = 50, 4


class RealTask(NamedTuple):
    wording: str
    num_virtual_tokens: int  # SmolLM2's tokens of the wording


# This wording shows an example; of the five that docs/tools/e2e.py tries it has the lowest loss on the
# validation set (e2e-smollm2.json).
WORDING = (
    "<|im_start|>user\nname[The Mill], eatType[pub], area[riverside], familyFriendly[yes]"
    "<|im_end|>\n<|im_start|>assistant\nThe Mill is a family friendly pub by the riverside."
    "<|im_end|>\n<|im_start|>user\n"
)
TASKS = {
    "e2e": RealTask(WORDING, 46),
    "topics": RealTask(
        "<|im_start|>user\nIs it delivery, refund, payment, account, hours, booking, complaint or praise?\n", 22),
    "amounts": RealTask("<|im_start|>user\nThe date and the amount as in 06-07 980 USD:\n", 23),
}


class Row(NamedTuple):
    method: str
    size: dict[str, Any]
    start: str | None  # "wording": that of the task, whose length a prompt or prefix has; "random"; "match"
    rates: tuple[float, ...]  # of the sweep
    steps: int = STEPS


VECTORS = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)  # learning rates of virtual tokens, of LoRA, of the base itself
LOW_RANK = (6e-4, 2e-3, 6e-3, 2e-2, 6e-2)
WEIGHTS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
ROWS = {
    "prompt": Row("prompt", {}, "wording", VECTORS),
    "prefix": Row("prefix", {}, "wording", VECTORS),
    "lora": Row("lora", {"r": 8}, None, LOW_RANK),
    "full": Row("full", {}, None, WEIGHTS),
    "prefix from noise": Row("prefix", {}, "random", VECTORS),
    "prefix from examples": Row("prefix", {}, "match", VECTORS),
    "hidden prefix": Row("prefix", {"space": "hidden"}, "wording", VECTORS),
    "adapter": Row("adapter", {"bottleneck_size": 8}, None, (2e-4, 6e-4, 2e-3, 6e-3, 2e-2)),
    "llama-adapter": Row("llama-adapter", {"adapter_len": 10}, None, VECTORS),
    "ia3": Row("ia3", {}, None, (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)),
    "lora with wording": Row("lora", {"r": 8}, "wording", LOW_RANK),
    "full with wording": Row("full", {}, "wording", WEIGHTS),
    "hard-prompt": Row("hard-prompt", {}, "wording", ()),
}
# What may close the distance of a prefix from noise to LoRA: each changes one thing.
CHANGED = {
    "prefix of 8 from noise": Row("prefix", {"num_virtual_tokens": 8}, "random", VECTORS),
    "prefix of 64 from noise": Row("prefix", {"num_virtual_tokens": 64}, "random", VECTORS),
    "prefix from noise, no positions": Row("prefix", {"positions": 0}, "random", VECTORS),
    "prefix from noise, by an MLP": Row("prefix", {"prefix_projection": True}, "random",
                                        (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)),
    "prefix from noise, twice the steps": Row("prefix", {}, "random", VECTORS, 2 * STEPS),
    "lora, twice the steps": Row("lora", {"r": 8}, None, LOW_RANK, 2 * STEPS),
}
ALL_ROWS = ROWS | CHANGED
VIRTUAL = ("prompt", "prefix")  # methods that start from a wording
MATCHED = {"match": 16}  # start from rows matched to as many training examples
LONGEST = 64  # tokens of a pair, without the virtual ones
SCORED, NEW = 50, 40
SENTENCES_SCORED = 100


def cell(name: str, examples: int, task: str = "e2e") -> Cell:
    """This row's cell, without learning rate and seed; with many examples it sees each once."""
    (method, size, start, _, steps), its = ALL_ROWS[name], TASKS[task]
    if method in VIRTUAL:
        size = {"num_virtual_tokens": its.num_virtual_tokens, **size}
    starts = {"wording": {"text": its.wording}, "match": MATCHED}
    return Cell(BASE, task, method, size, starts.get(start, start), batch_size=BATCH,
                steps=max(steps, examples // BATCH), examples=examples)


def row(of: Cell) -> str:
    """The row of a cell."""
    for name in ALL_ROWS:
        its = cell(name, of.examples, of.task)
        if (its.method, its.size, its.start, its.steps) == (of.method, of.size, of.start, of.steps):
            return name
    raise Error(f"no row of the real model's tables has {of.method} of size {of.size} with start {of.start}")


def run(cell: Cell, folders: dict[str, str], device: str) -> dict:
    """The cell's result. Raises Error, before training, for missing folders, packages or pairs."""
    folder = folder_of(folders, "smollm2")
    base = GPT.from_pretrained(folder, torch.float32).to(device)
    tokenizer = tokenizer_for(base.config.vocab_size, folder)
    its_own = cell.method in (*VIRTUAL, HardPrompt.name)  # the wording, if any, is the method's, not of the text
    words = cell.start["text"] if "text" in (cell.start or ()) else ""
    template = Template(TEMPLATE if its_own else words + TEMPLATE)

    def fits(e: Example) -> bool:
        return tokenize(e, tokenizer, Template(TEMPLATE)).length <= LONGEST

    def loss_of(examples: list[Example]) -> tuple[float, float]:
        return evaluate(model, batches(examples, tokenizer, template))

    training, dev, test = e2e(cell, folders, fits) if cell.task == "e2e" else sentences(cell)
    records = [tokenize(e, tokenizer, template) for e in training]
    epochs = Epochs([r.length for r in records], cell.batch_size, cell.seed)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        return collate([records[i] for i in epochs.batch(step)], tokenizer.end)

    init = torch.tensor(with_begin(tokenizer, words)) if words else cell.start
    if init == MATCHED:
        init = matched(base, records[: MATCHED["match"]], cell.size["num_virtual_tokens"])
    given = {"tokens" if cell.method == HardPrompt.name else "init": init} if its_own else {}
    scored = cell.scored_on != "dev"
    known = forgetting.english(tokenizer) if scored else []
    before = evaluate(base, known) if scored else None
    restart_peak(torch.device(device))
    model = adapt(base, cell.method, **cell.size, **given)
    start = time.perf_counter()
    if cell.lr is not None:
        train(model, batch, cell.steps, cell.lr)
    result = {"seconds": round(time.perf_counter() - start, 2), "peak_bytes": peak_above(0, torch.device(device)),
              **sizes(cell, model), "curve": []}
    if not scored:
        result["loss"], result["score"] = loss_of(dev)  # this score is exact match
        return result
    examples, known_answers = map(list, zip(*test, strict=True))
    result["loss"], result["score"] = loss_of(examples)
    if cell.task == "e2e":
        answers = complete_examples(model, examples, tokenizer, template, NEW, batch_size=SCORED)
        scores = text_scores(answers, known_answers)
        result |= {"score": scores["bleu"], "chrf": scores["chrf"]}
    result["loss_on_learnt"] = loss_of(training[:SCORED])[0]
    return result | {"known": forgetting.measured(before, model, known)}


def matched(base: GPT, examples: list[Encoded], P: int) -> Prefix:
    """P rows that a prefix starts from: matched to these examples as one text, without bias."""
    text = torch.tensor([token for e in examples for token in (*e.prompt, *e.completion)])
    return match(base, text.to(base.wte.weight.device), P)._replace(bias=None)


Split = tuple[list[Example], list[Example], list[tuple[Example, list[str]]]]  # training, validation, held out


def e2e(cell: Cell, folders: dict[str, str], fits: Callable[[Example], bool]) -> Split:
    """The cell's pairs of E2E. Raises Error without sacrebleu, its folder, or enough pairs."""
    if importlib.util.find_spec("sacrebleu") is None:
        raise Error("cells on E2E are scored by BLEU, which needs: pip install sacrebleu")
    folder = folder_of(folders, "e2e")
    known, unseen = folder / "devset.csv", folder / "testset_w_refs.csv"
    pairs, grouped = read_examples(known), references(read_examples(unseen))
    chosen = fifth((e.input for e in pairs), Random(0))
    training = (e for e in pairs if e.input not in chosen)
    return (first(cell.examples, training, fits, f"{cell.seed}/few", known),
            first(SCORED, (e for e in pairs if e.input in chosen), fits, "development", known),
            first(SCORED, grouped, lambda its: fits(its[0]), "held-out", unseen))


def sentences(cell: Cell) -> Split:
    """The cell's examples of a task of sentences, no two of them equal."""
    example = SENTENCES[cell.task]
    dev = distinct(partial(example, held_out=False), "development", SENTENCES_SCORED)
    training = distinct(partial(example, held_out=False), f"{cell.seed}/few", cell.examples,
                        without=dev)
    test = distinct(partial(example, held_out=True), "held-out", SENTENCES_SCORED)
    return training, dev, [(e, [e.target]) for e in test]


def sizes(cell: Cell, model: Adapted) -> dict[str, int]:
    """Trained parameters, and the bytes of one task's adapter folder by their closed form."""
    size = {k: n for k, n in cell.size.items() if k in model.method.sizes()}  # positions, for one, are no size
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
