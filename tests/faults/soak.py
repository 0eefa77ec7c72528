"""A long run of tune, save, detach, load, generate, detach: does anything pile up?

python -m tests.faults soak --out docs/results/soak.json

A round adapts the embedded base by one method, trains it for some steps, saves it, detaches it, loads it, generates and detaches again.
The methods take turns, so that a leak in any of them shows; when all have had theirs, a TaskBank mixes what they saved. Every round
checks that the base is bit for bit what it was, that what is loaded is bit for bit what was tuned and answers alike, and that no file
is left over. After every round the process is looked at from outside (Linux's /proc): resident memory, handles, threads.

What must be flat, the last quarter of the steps against the second:

    memory    median resident bytes, and the private part of them, at most 2 % more. Medians, since a round of `full` holds a second base
              and its optimizer and one of `prompt` next to nothing: the largest sample says which round ran, not what stayed behind.
              The private part, since the system may drop pages of library files meanwhile, and so hide a leak from the sum.
    tensors   those alive in Python when all methods have had their turn: not one more. It finds a leak too small for the 2 %.
    handles   of files, and threads: not one more

The first quarter is left out: caches and the allocator's pools fill up there. Less is no leak, and passes.

Flat is not a ruled line. safetensors 0.8.0 keeps two small numbers, 64 bytes, of every tensor it reads, which is about 1 MB in 10,000
steps (14,000 reads without minipeft show the same), and the samples kept here are a third of that. tracemalloc finds nothing else.
"""

import argparse
import contextlib
import copy
import gc
import io
import os
import shlex
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from minipeft.adapters import load_adapter
from minipeft.attach import Adapted, adapt
from minipeft.bench.measure import card_line, columns
from minipeft.config import Error
from minipeft.data import NANO
from minipeft.data.batches import TaskData
from minipeft.data.encoding import collate
from minipeft.data.tasks import find_task
from minipeft.data.tokenizer import tokenizer_for
from minipeft.files.atomic import write_json
from minipeft.files.tensors import digest
from minipeft.inference.generation import generate
from minipeft.inference.task_bank import TaskBank
from minipeft.model import GPT
from minipeft.runtime.console import Parser, seed
from minipeft.runtime.profiling import card
from minipeft.training.loop import train

ALLOWED = 1.02  # of the second quarter's memory
POINTS = 200  # of the curve in the result file, at most
MB = 1e6


class Kind(NamedTuple):
    """What a round tunes: a method, or several, in one of their forms."""

    name: str
    method: str | list[str]
    hyperparameters: dict


KINDS = (
    Kind("prompt", "prompt", {}),
    Kind("prefix", "prefix", {}),
    Kind("prefix-hidden", "prefix", {"space": "hidden"}),
    Kind("prefix-projection", "prefix", {"prefix_projection": True}),
    Kind("lora", "lora", {}),
    Kind("adapter", "adapter", {}),
    Kind("llama-adapter", "llama-adapter", {}),
    Kind("lora+prefix", ["lora", "prefix"], {}),
    Kind("hard-prompt", "hard-prompt", {"tokens": torch.tensor(list(b"reverse:"))}),
    Kind("full", "full", {}),
)
MIXED = ("prompt", "prefix", "prefix-hidden", "prefix-projection", "lora", "lora+prefix", "hard-prompt")  # what a TaskBank can


@dataclass(frozen=True)
class Settings:
    steps: int  # of optimizers, over all rounds
    seed: int
    steps_per_round: int = 10
    batch_size: int = 4
    new_tokens: int = 6


class Sample(NamedTuple):
    """The process after a round. tensors and tensor_bytes: only when all methods have had their turn, since counting takes long."""

    step: int
    resident: int
    private: int
    handles: int
    threads: int
    tensors: int | None = None
    tensor_bytes: int | None = None


def look(step: int, count: bool) -> Sample:
    """The process as it is now. Raises Error where the system does not tell."""
    try:
        resident, shared = (int(pages) * os.sysconf("SC_PAGE_SIZE") for pages in Path("/proc/self/statm").read_text().split()[1:3])
        handles, threads = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    except OSError:
        raise Error("the soak reads memory and handles from /proc/self, which only Linux has") from None
    return Sample(step, resident, resident - shared, handles, threads, *(live_tensors() if count else ()))


def live_tensors() -> tuple[int, int]:
    """How many tensors Python holds, and their bytes, each storage once. What only waits for the collector is collected first."""
    gc.collect()
    found = [o for o in gc.get_objects() if issubclass(type(o), Tensor)]  # isinstance would wake lazy modules
    storages = {}
    for t in found:
        with contextlib.suppress(RuntimeError, NotImplementedError):  # a fake tensor has none
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
    return len(found), sum(storages.values())


def tuned(model: Adapted) -> dict[str, Tensor]:
    """What this round's file holds."""
    if not model.method.freezes_base:
        return model.base.state_dict()
    return {f"{part.name}/{name}": t for part in model.method.parts() for name, t in part.tensors().items()}


class Rounds:
    """The base, the data and the folder that all rounds share, and one method a kind of round."""

    def __init__(self, s: Settings, base: GPT, folder: Path):
        self.s, self.base, self.folder = s, base, folder
        self.tokenizer = tokenizer_for(base.config.vocab_size, None)
        self.data = TaskData(find_task("reverse"), self.tokenizer, s.seed, s.batch_size, held_out=2)
        self.asked = torch.tensor([list(record.prompt) for record in self.data.held_out])  # (2, T)
        self.before = self.state()
        self.step, self.files = 0, None

    def state(self) -> tuple[str, list[bool]]:
        return digest(self.base.state_dict()), [p.requires_grad for p in self.base.parameters()]

    def tune(self, kind: Kind) -> None:
        """One round. Raises Error when the base has changed, or when what is loaded is not what was tuned."""
        base = copy.deepcopy(self.base) if kind.method == "full" else self.base
        model = adapt(base, kind.method, **kind.hyperparameters)
        if any(True for _ in model.trainable_parameters()):
            self.train(model)
        if kind.name == "lora":
            model.merge()
            self.answer(model)
            model.unmerge()
        said = self.answer(model)
        model.save(self.folder / kind.name)
        model.detach()
        self.check_base(kind.name, "tuned")

        loaded = load_adapter(self.base, self.folder / kind.name)
        if digest(tuned(loaded)) != digest(tuned(model)):
            raise Error(f"step {self.step}, {kind.name}: what was loaded is not what was saved")
        if not torch.equal(self.answer(loaded), said):
            raise Error(f"step {self.step}, {kind.name}: what was loaded does not answer as what was saved did")
        loaded.detach()
        self.check_base(kind.name, "loaded")

    def train(self, model: Adapted) -> None:
        steps = min(self.s.steps_per_round, self.s.steps - self.step)
        first = self.step
        # train() draws a bar on the stderr that it finds; hundreds of them would bury the one of the whole run
        with contextlib.redirect_stderr(io.StringIO()):
            train(model, lambda step: collate(self.data.batch(first + step), self.tokenizer.end), steps)
        self.step += steps

    def answer(self, model: Adapted) -> Tensor:
        return generate(model, self.asked, self.s.new_tokens)

    def mix(self) -> None:
        """One batch of everything that rows can have side by side, drawn instead of chosen."""
        bank = TaskBank(self.base, {name: self.folder / name for name in MIXED})
        tasks = [None, *MIXED]
        asked = self.asked[:1].expand(len(tasks), -1)
        generate(bank.rows(tasks), asked, self.s.new_tokens, 1.0, top_k=20, top_p=0.95, stop_token=self.tokenizer.stops)
        self.check_base("TaskBank", "mixed")

    def check_base(self, name: str, did: str) -> None:
        if self.state() != self.before:
            raise Error(f"step {self.step}: {name} was {did} and detached, and the base is not what it was")

    def check_files(self, name: str) -> None:
        """The same files after every round, once every kind has written its own."""
        found = {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()}
        if left := [f for f in found if f.endswith(".tmp")] or sorted(found ^ (found if self.files is None else self.files)):
            raise Error(f"step {self.step}: after {name} the folder has other files than before, such as {left[0]}")
        if name == "TaskBank" and self.files is None:
            self.files = found


def run(s: Settings, base: GPT) -> dict:
    """All rounds, then what they left behind: see the top of this file. Raises Error at the first round that did something wrong."""
    trained = sum(kind.name != "hard-prompt" for kind in KINDS)
    if s.steps < (least := 4 * trained * s.steps_per_round):
        raise Error(f"a soak needs at least {least:,} steps, for all methods to run in every quarter of them, not {s.steps:,}")
    torch.manual_seed(s.seed)
    samples, start = [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, tqdm(total=s.steps, unit="step", desc="soak", dynamic_ncols=True) as bar:
        rounds = Rounds(s, base, Path(folder))
        while rounds.step < s.steps:
            for kind in KINDS:
                if rounds.step == s.steps:
                    break
                rounds.tune(kind)
                rounds.check_files(kind.name)
                samples.append(look(rounds.step, count=False))
                bar.update(rounds.step - bar.n)
            else:
                rounds.mix()
                rounds.check_files("TaskBank")
                samples.append(look(rounds.step, count=True))
            bar.set_postfix(resident=f"{samples[-1].resident / MB:.0f} MB", handles=samples[-1].handles)
        files = len(rounds.files)
    quarters = [quarter(samples, s.steps, i) for i in range(4)]
    return {
        "settings": {**vars(s), "kinds": [kind.name for kind in KINDS], "parameters": sum(p.numel() for p in base.parameters())},
        "seconds": round(time.perf_counter() - start, 1),
        "rounds": len(samples),
        "files": files,
        "quarters": quarters,
        "resident_ratio": ratio(quarters, "resident_mb"),
        "private_ratio": ratio(quarters, "private_mb"),
        "leaks": leaks(quarters),
        "curve": curve(samples),
    }


def quarter(samples: list[Sample], steps: int, i: int) -> dict:
    """What the samples of steps i/4 … (i + 1)/4 say."""
    own = [x for x in samples if 4 * (x.step - 1) // steps == i]
    counted = [x for x in own if x.tensors is not None]
    resident = [x.resident / MB for x in own]
    return {
        "steps": f"{i * steps // 4 + 1}-{(i + 1) * steps // 4}",
        "resident_mb": round(statistics.median(resident), 3),
        "resident_mb_min": round(min(resident), 3),
        "resident_mb_max": round(max(resident), 3),
        "private_mb": round(statistics.median(x.private / MB for x in own), 3),
        "handles": max(x.handles for x in own),
        "threads": max(x.threads for x in own),
        "tensors": max(x.tensors for x in counted),
        "tensor_mb": round(max(x.tensor_bytes for x in counted) / MB, 3),
    }


def ratio(quarters: list[dict], what: str) -> float:
    return round(quarters[3][what] / quarters[1][what], 5)


def leaks(quarters: list[dict]) -> list[str]:
    """What the last quarter has more of than the second, in words; nothing when all is flat."""
    found = []
    for kind in ("resident", "private"):
        if (r := ratio(quarters, f"{kind}_mb")) > ALLOWED:
            second, last = (quarters[i][f"{kind}_mb"] for i in (1, 3))
            found.append(f"{kind} memory grew by {100 * (r - 1):.1f} %, {second:.1f} to {last:.1f} MB")
    for what in ("tensors", "handles", "threads"):
        if quarters[3][what] > quarters[1][what]:
            found.append(f"{what} grew from {quarters[1][what]} to {quarters[3][what]}")
    return found


def curve(samples: list[Sample]) -> list[list]:
    """[step, median resident MB] of as many consecutive rounds as leave at most POINTS points."""
    n = -(-len(samples) // POINTS)
    groups = [samples[i : i + n] for i in range(0, len(samples), n)]
    return [[g[-1].step, round(statistics.median(x.resident for x in g) / MB, 2)] for g in groups]


def table(result: dict) -> str:
    cells = {
        "steps": lambda q: q["steps"],
        "median MB": lambda q: f"{q['resident_mb']:.1f}",
        "min": lambda q: f"{q['resident_mb_min']:.1f}",
        "max": lambda q: f"{q['resident_mb_max']:.1f}",
        "private MB": lambda q: f"{q['private_mb']:.1f}",
        "handles": lambda q: str(q["handles"]),
        "threads": lambda q: str(q["threads"]),
        "tensors": lambda q: str(q["tensors"]),
        "their MB": lambda q: f"{q['tensor_mb']:.2f}",
    }
    lines = [f"{result['rounds']:,} rounds in {result['seconds']:,.0f} s; resident memory by quarter, and the most there was of the rest"]
    lines += columns(cells, result["quarters"])
    lines += [f"last to second quarter: resident {result['resident_ratio']:.4f}, private {result['private_ratio']:.4f} (at most {ALLOWED})"]
    verdict = "; ".join(result["leaks"]) or "flat: memory, tensors, handles, threads and files"
    return "\n".join([*lines, f"verdict: {verdict}"])


def arguments(argv) -> argparse.Namespace:
    p = Parser(__doc__, prog="python -m tests.faults soak")
    p.add_argument("--steps", type=int, default=10_000, metavar="N", help="optimizer steps, over all rounds")
    p.add_argument("--seed", type=seed, default=0, help="of data and initial values")
    p.add_argument("--out", type=Path, metavar="FILE", help="write what was found there too, as JSON")
    args = p.parse_args(argv)
    if args.out and args.out.is_dir():
        raise Error(f"--out {args.out} is a folder: what was found needs a file's name")
    return args


def main(argv=None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = arguments(argv)
    machine = card(torch.device("cpu"))
    print(card_line(machine), flush=True)
    result = run(Settings(args.steps, args.seed), GPT.from_pretrained(NANO))
    print(table(result))
    if args.out:
        command = shlex.join(["python", "-m", "minipeft.faults", "soak", *argv])
        write_json(args.out, {"command": command, "seed": args.seed, "card": machine, **result})
    if result["leaks"]:
        raise Error(f"not flat: {'; '.join(result['leaks'])}")
