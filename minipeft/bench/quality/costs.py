"""What the methods of the main table cost: time of a step, what autograd keeps, peak memory. Interleaved step by step, like bench.py's."""

from pathlib import Path

import torch
from tqdm import tqdm

from ...config import EMBEDDED
from ...data.tasks import DIGITS
from ...files.atomic import read_json, write_json
from ...model import GPT
from ...runtime.profiling import card, saved_bytes
from ..cost import Contestant, Settings, train_two_steps
from ..measure import milliseconds, peak_bytes, spread
from .studies import BASE, cell, methods, row

STEPS = 60  # timed, of each
TOKENS = 2 * DIGITS + len(" -> ")  # of an example, its end mark not read


def run(device: str) -> dict:
    """{"card", "rows"}: for every row of the first study its size, and "step_ms" and "kept_bytes" of its batches, "peak_bytes"."""
    one = {row(c): c for c, _ in methods(tasks=("reverse",), seeds=(0,)) if c.method != "hard-prompt"}
    any_cell = cell("full", "reverse", {})
    s = Settings(BASE, EMBEDDED[BASE], (), (), any_cell.batch_size, TOKENS, STEPS, 0, device, "float32", False)
    where = torch.device(device)
    torch.set_num_threads(1)  # as the cells have it
    torch.manual_seed(0)
    with tqdm(total=len(one) * (1 + STEPS), unit="step", desc="costs", dynamic_ncols=True) as bar:
        rows, contestants = [], []
        for name, c in one.items():
            peak = peak_bytes(where, train_two_steps, s, c.method, c.size)
            contestant = Contestant(s, c.method, c.size, GPT(s.config).to(where))
            contestant.train_step()
            contestant.train_step()
            kept = saved_bytes(contestant.forward_loss, contestant.model.parameters())
            rows.append({"row": name, "size": c.size, "kept_bytes": kept, "peak_bytes": peak})
            contestants.append(contestant)
            bar.update()
        times = [[] for _ in rows]
        for _ in range(STEPS):
            for its, contestant in zip(times, contestants, strict=True):
                its.append(milliseconds(contestant.train_step, where))
                bar.update()
    for r, its in zip(rows, times, strict=True):
        r["step_ms"] = spread(its)
    return {"card": card(where), "batch_size": s.batch_size, "seq_len": s.seq_len, "rows": rows}


def place(lines: Path) -> Path:
    """The file of the costs beside the lines: quality.jsonl -> quality-costs.json."""
    return lines.with_name(f"{lines.stem}-costs.json")


def measure(lines: Path, device: str) -> dict:
    """Measure them, unless that is done."""
    if not (found := read_costs(lines)):
        found = run(device)
        write_json(place(lines), found)
    return found


def read_costs(lines: Path) -> dict | None:
    """What was measured beside these lines; None where nothing was."""
    return read_json(place(lines)) if place(lines).exists() else None
