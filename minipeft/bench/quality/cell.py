"""A cell: one run of one method, as a line of JSON, and how it is run."""

import contextlib
import functools
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from ...accounting import adapter_bytes
from ...config import Error, shown
from ...data import BASES
from ...data.batches import draw, encode
from ...data.tasks import INSTRUCTIONS, Example, find_task
from ...data.tokenizer import ByteTokenizer
from ...methods import Adapted, adapt
from ...model import GPT
from ...training.evaluation import batches, evaluate
from ...training.loop import train
from ...training.prompt_search import choose_wording

HELD_OUT, DEV = 500, 200  # examples that a score is of
LOOKS, LOOKED_AT = 8, 96  # times in a run that the score is looked at, and examples it is then of


@dataclass(frozen=True)
class Cell:
    """Everything it takes to run it again. Two cells are one when their lines are.

    base, task    of minipeft.data.BASES, and as train.py calls tasks; "smollm2-135m" and "e2e": see real.py
    size          the hyper-parameters that adapt() is given
    start         prompt, prefix: what they start from, when not the method's default. "random", "vocab", {"text": …},
                  {"rung": "hard-prompt"} (the best wording) or {"rung": "prompt", "lr": …}, a soft prompt trained for half of the steps
    lr            the schedule's peak; None: nothing is trained
    examples      to learn from; None: every batch has new ones
    scored_on     "held-out", or "dev" where a rate is chosen
    """

    base: str
    task: str
    method: str
    size: dict[str, Any] = field(default_factory=dict)
    start: Any = None
    lr: float | None = None
    steps: int = 300
    batch_size: int = 16
    examples: int | None = None
    seed: int = 0
    scored_on: str = "held-out"

    @functools.cached_property
    def key(self) -> str:
        """The cell as one line of JSON."""
        return json.dumps({f.name: getattr(self, f.name) for f in fields(self)}, sort_keys=True)

    @classmethod
    def of(cls, line: dict) -> "Cell":
        """The cell of a line. Raises Error when it names none."""
        cell = line.get("cell")
        if not isinstance(cell, dict) or set(cell) != {f.name for f in fields(cls)}:
            raise Error(f"a cell has {', '.join(f.name for f in fields(cls))}, not {shown(cell)}")
        return cls(**cell)


def run(cell: Cell, folders: dict[str, str] | None = None, device: str = "cpu") -> dict:
    """Train and score it: {"score", "loss", …}, all but "seconds" the same every time on one machine.

    folders: where "smollm2" and "e2e" lie, for cells on them. A training that comes apart is a result too: {"score": 0, "failed": why}.
    One thread, so that rounding does not depend on how many there are.
    """
    torch.set_num_threads(1)
    torch.manual_seed(cell.seed)
    with contextlib.redirect_stderr(io.StringIO()):  # the grid shows one bar for all
        try:
            if cell.task == "e2e":
                from . import real

                return real.run(cell, folders or {}, device)
            return run_task(cell, device)
        except Error as e:
            if "came apart" not in str(e):
                raise
            return {"score": 0.0, "loss": float("inf"), "failed": str(e), "seconds": 0.0}


def run_task(cell: Cell, device: str) -> dict:
    """A cell on a task made in code. "curve": (step, exact match, loss) on a few of the examples that are scored."""
    tokenizer, task = ByteTokenizer(), find_task(cell.task)
    base = GPT.from_pretrained(BASES[cell.base], torch.float32).to(device)
    development = draw(task.example, f"{cell.seed}/development", DEV)
    scored = development if cell.scored_on == "dev" else draw(task.example, "held-out", HELD_OUT)
    learnt = draw(task.example, f"{cell.seed}/few", cell.examples) if cell.examples else None

    def batch(step: int) -> tuple[Tensor, Tensor]:
        rng = f"{cell.seed}/{step}"
        few = draw(task.example, rng, cell.batch_size) if learnt is None else Random(rng).choices(learnt, k=cell.batch_size)
        return encode(few, tokenizer)

    model, result = start(cell, base, batch, development)
    watched = Watched(model, batch, batches(scored[:LOOKED_AT], tokenizer), cell.steps)
    began = time.perf_counter()
    if cell.lr is not None:
        train(model, watched, cell.steps - result.pop("steps_before", 0), cell.lr)
    result["seconds"] = round(time.perf_counter() - began - watched.seconds + result.pop("seconds_before", 0.0), 2)
    loss, exact = evaluate(model, batches(scored, tokenizer))
    result |= {"score": exact, "loss": loss, "curve": [*watched.curve]}
    if learnt is not None:
        result["loss_on_learnt"], result["score_on_learnt"] = evaluate(model, batches(learnt, tokenizer))
    result["trained"] = sum(p.numel() for p in model.trainable_parameters())
    result["stored_bytes"] = stored_bytes(cell, base, model)
    return result


def start(cell: Cell, base: GPT, batch: Callable, development: list[Example]) -> tuple[Adapted, dict]:
    """The model that is trained, and what is to be told of how it came to be."""
    tokenizer, told = ByteTokenizer(), {}

    def best_wording() -> Tensor:
        candidates = [torch.tensor(tokenizer.encode(text)) for text in INSTRUCTIONS]
        scores, tokens = choose_wording(base, candidates, batches(development, tokenizer), tokenizer)
        told["wording"] = scores[0]["wording"]
        return tokens

    if cell.method == "hard-prompt":
        return adapt(base, "hard-prompt", tokens=best_wording()), told
    if cell.start is None:
        return adapt(base, cell.method, **cell.size), told
    if isinstance(cell.start, str):
        init = cell.start
    elif "text" in cell.start:
        init = torch.tensor(tokenizer.encode(cell.start["text"]))
    elif cell.start["rung"] == "hard-prompt":
        init = best_wording()
    else:
        lower = adapt(base, "prompt", **cell.size)
        told["steps_before"] = cell.steps // 2
        began = time.perf_counter()
        train(lower, batch, told["steps_before"], cell.start["lr"])
        told["seconds_before"] = time.perf_counter() - began
        init = lower.method.ladder_value().detach()
        lower.detach()
    return adapt(base, cell.method, init=init, **cell.size), told


class Watched:
    """batch(step), which looks at the score of the model LOOKS times in a run before it hands the batch on."""

    def __init__(self, model: Adapted, batch: Callable, looked_at: list, steps: int):
        self.model, self.batch, self.looked_at, self.every = model, batch, looked_at, max(1, steps // LOOKS)
        self.seconds, self.curve = 0.0, []

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        if step % self.every == 0:
            began = time.perf_counter()
            loss, exact = evaluate(self.model, self.looked_at)
            self.curve.append([step, round(exact, 4), round(loss, 4)])
            self.seconds += time.perf_counter() - began
        return self.batch(step)


def stored_bytes(cell: Cell, base: GPT, model: Adapted) -> int:
    """Of one task's file, by its closed form."""
    size = cell.size
    if cell.method in ("hard-prompt", "prompt", "prefix"):  # as long as what it started from
        size = size | {"num_virtual_tokens": model.method.num_virtual_tokens}
    return adapter_bytes(base.config, cell.method, **size)


def folder_of(folders: dict[str, str], name: str) -> Path:
    """The folder of this name. Raises Error when it was not given, or is not there."""
    if name not in folders:
        raise Error(f"cells on SmolLM2 and E2E need --{name} FOLDER")
    if not (folder := Path(folders[name])).is_dir():
        raise Error(f"--{name} {folder}: no such folder")
    return folder
