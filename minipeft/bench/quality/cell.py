"""Runs one cell: trains a method and scores it."""

import contextlib
import io
import time
from collections.abc import Callable
from random import Random

import torch
from torch import Tensor

from ...attach import Adapted, adapt
from ...data import BASES
from ...data.batches import draw
from ...data.encoding import encode, tokenize
from ...data.tasks import INSTRUCTIONS, Example, find_task
from ...data.tokenizer import ByteTokenizer
from ...methods.hard_prompt import HardPrompt
from ...model import GPT
from ...training.evaluation import batches, evaluate
from ...training.loop import Diverged, train
from ...training.prompt_search import choose_wording
from . import forgetting, real
from .lines import Cell

HELD_OUT, DEV = 500, 200  # examples that are scored
EVALUATIONS, EVALUATED = 8, 96  # evaluations during a run, and the examples of each


def run(cell: Cell, folders: dict[str, str] | None = None, device: str = "cpu") -> dict:
    """Train and score a cell; returns its result: {"score", "loss", "seconds", …}.

    All but "seconds" and "peak_bytes" is the same in every run on one machine. A training that
    diverges is a result too: {"score": 0.0, "loss": inf, "failed": message}. "known": loss and
    exact match on what the base was pretrained on (forgetting.py). folders: {"smollm2", "e2e"}, for
    the cells that need them.
    """
    torch.set_num_threads(1)  # rounding depends on their number
    torch.manual_seed(cell.seed)
    with contextlib.redirect_stderr(io.StringIO()):  # the grid has one progress bar for all cells
        try:
            if cell.base == real.BASE:
                return real.run(cell, folders or {}, device)
            return run_task(cell, device)
        except Diverged as e:
            return {"score": 0.0, "loss": float("inf"), "failed": str(e), "seconds": 0.0}


def run_task(cell: Cell, device: str) -> dict:
    """A cell on a task made in code. "curve": (step, exact match, loss) of every evaluation."""
    tokenizer, task = ByteTokenizer(), find_task(cell.task)
    base = GPT.from_pretrained(BASES[cell.base], torch.float32).to(device)
    dev = draw(task.example, f"{cell.seed}/development", DEV)
    scored = dev if cell.scored_on == "dev" else draw(task.example, "held-out", HELD_OUT)
    few = draw(task.example, f"{cell.seed}/few", cell.examples) if cell.examples else None

    def batch(step: int) -> tuple[Tensor, Tensor]:
        rng, n = f"{cell.seed}/{step}", cell.batch_size
        examples = Random(rng).choices(few, k=n) if few else draw(task.example, rng, n)
        return encode(examples, tokenizer)

    known = forgetting.skills(tokenizer) if cell.scored_on != "dev" else []
    before = evaluate(base, known) if known else None
    model, result = adapted(cell, base, batch, dev)
    done = result.pop("steps_before", 0)  # with a soft prompt, on the first batches
    evaluated = batches(scored[:EVALUATED], tokenizer)
    every, curve, paused = max(1, cell.steps // EVALUATIONS), [], []

    def evaluating(step: int) -> tuple[Tensor, Tensor]:
        if step % every == 0:
            start = time.perf_counter()
            loss, exact = evaluate(model, evaluated)
            curve.append([step, round(exact, 4), round(loss, 4)])
            paused.append(time.perf_counter() - start)
        return batch(done + step)

    start = time.perf_counter()
    if cell.lr is not None:
        train(model, evaluating, cell.steps - done, cell.lr)
    seconds = time.perf_counter() - start - sum(paused) + result.pop("seconds_before", 0.0)
    loss, exact = evaluate(model, batches(scored, tokenizer))
    result |= {"seconds": round(seconds, 2), "score": exact, "loss": loss, "curve": curve}
    if few:
        learnt = evaluate(model, batches(few, tokenizer))
        result["loss_on_learnt"], result["score_on_learnt"] = learnt
    result |= real.sizes(cell, model)
    return result | ({"known": forgetting.measured(before, model, known)} if before else {})


def adapted(cell: Cell, base: GPT, batch: Callable, dev: list[Example]) -> tuple[Adapted, dict]:
    """The model to train, its prompt or prefix initialised, and the first fields of the result;
    "steps_before" and "seconds_before" are of the soft prompt that a prefix starts from."""
    tokenizer, init, result = ByteTokenizer(), cell.start, {}
    if cell.method == HardPrompt.name or init == {"rung": HardPrompt.name}:
        candidates = [torch.tensor(tokenizer.encode(text)) for text in INSTRUCTIONS]
        scores, init = choose_wording(base, candidates, batches(dev, tokenizer), tokenizer)
        result["wording"] = scores[0]["wording"]
    elif isinstance(init, dict) and "text" in init:
        init = torch.tensor(tokenizer.encode(init["text"]))
    elif isinstance(init, dict) and "match" in init:
        learnt = [tokenize(e, tokenizer) for e in draw(find_task(cell.task).example, f"{cell.seed}/0", init["match"])]
        init = real.matched(base, learnt, cell.size["num_virtual_tokens"])
    elif isinstance(init, dict):
        prompt = adapt(base, init["rung"], **cell.size)
        result["steps_before"] = cell.steps // 2
        start = time.perf_counter()
        train(prompt, batch, result["steps_before"], init["lr"])
        result["seconds_before"] = time.perf_counter() - start
        init = prompt.method.ladder_value().detach()
        prompt.detach()
    given = {} if init is None else {"tokens" if cell.method == HardPrompt.name else "init": init}
    return adapt(base, cell.method, **cell.size, **given), result
