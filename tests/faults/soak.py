"""Soak test: rounds of tune, save, detach, load, generate and detach, thousands of steps long.

python -m tests.faults soak --out docs/results/soak.json

A round adapts the embedded base with one method, trains it some steps, saves it, detaches it, loads
it, generates and detaches again. The methods take turns, so a leak in any of them shows; after each
turn of all, a TaskBank mixes the saved adapters. Every round checks that the base is bit for bit
unchanged, that the loaded tensors are the saved ones and generate the same, and that no extra file
is left. After every round /proc tells resident memory, file handles and threads (Linux only).

The last quarter of the steps, compared with the second:

    memory    median resident bytes, and the private part of them: at most 2 % more. Medians, since
              a round of `full` holds a second base and its optimizer, and one of `prompt` little.
              The private part, since the system may drop pages of libraries and so hide a leak.
    tensors   alive in Python after each turn of all methods: not one more. This finds leaks too
              small for the 2 %.
    handles   of files, and threads: not one more

The first quarter is left out, while caches and the allocator's pools fill up. A decrease passes.

Growth within the limits is known: safetensors 0.8.0 keeps 64 bytes of every tensor it reads, about
1 MB in 10,000 steps (14,000 reads without minipeft show the same), and the samples kept here take a
third of that. tracemalloc finds nothing else.
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
from torch._subclasses import FakeTensor
from tqdm import tqdm

from minipeft.adapters import load_adapter
from minipeft.attach import Adapted, adapt
from minipeft.bench.measure import card_line, columns
from minipeft.checks import Error
from minipeft.config import GPTConfig
from minipeft.data import NANO
from minipeft.data.batches import TaskData
from minipeft.data.encoding import collate
from minipeft.data.tasks import find_task
from minipeft.data.tokenizer import tokenizer_for
from minipeft.files.atomic import write_json
from minipeft.files.tensors import digest
from minipeft.inference.generation import generate
from minipeft.inference.task_bank import TaskBank
from minipeft.methods import METHODS
from minipeft.methods.base import Method
from minipeft.model import GPT
from minipeft.parts.quantised_base import BASE_DTYPES, dtype_named
from minipeft.runtime.console import Parser, seed
from minipeft.runtime.profiling import card
from minipeft.training.loop import train

ALLOWED = 1.02  # of the second quarter's memory
POINTS = 200  # of the curve in the result file, at most
MB = 1e6


class Kind(NamedTuple):
    """The methods of a round, with their hyper-parameters."""

    name: str
    method: str | list[str]
    hyperparameters: dict


def kinds_of(c: GPTConfig, quantised: bool = False) -> list[Kind]:
    """Every method with its defaults that this base can have, forms of a prefix, and a combination."""
    found = []
    for name, method in METHODS.items():
        if quantised and not method.freezes_base:
            continue
        h = {"tokens": torch.tensor(list(b"reverse:"))} if "tokens" in method.arguments() else {}
        with contextlib.suppress(Error):  # a method may refuse a base
            method.shapes(c, **method.with_defaults(c, {}))
            found.append(Kind(name, name, h))
    return [*found, Kind("prefix-hidden", "prefix", {"space": "hidden"}),
            Kind("prefix-projection", "prefix", {"prefix_projection": True}),
            Kind("lora+prefix", ["lora", "prefix"], {})]


def is_quantised(base: GPT) -> bool:
    return "quantised" in vars(base)


def methods_of(kind: Kind) -> list[type[Method]]:
    return [METHODS[name] for name in ([kind.method] if isinstance(kind.method, str) else kind.method)]


def mixtures(c: GPTConfig, kinds: list[Kind]) -> list[list[str]]:
    """Names of kinds that one bank can mix: those without hooks, and those of one method that has some."""
    found: dict[tuple, list[str]] = {}
    for kind in kinds:
        methods = methods_of(kind)
        if all(method.mixing is None for method in methods):
            hooking = tuple(m.name for m in methods if m.cost(c, 1, **m.with_defaults(c, {})).hooks)
            found.setdefault(hooking, []).append(kind.name)
    return [names + found.get((), []) for hooking, names in found.items() if hooking]


@dataclass(frozen=True)
class Settings:
    steps: int  # of optimizers, over all rounds
    seed: int
    steps_per_round: int = 10
    batch_size: int = 4
    new_tokens: int = 6


class Sample(NamedTuple):
    """The process after a round. Counting tensors is slow, so it is done once per turn of all."""

    step: int
    resident: int
    private: int
    handles: int
    threads: int
    tensors: int | None = None
    tensor_bytes: int | None = None


def take_sample(step: int, count: bool) -> Sample:
    """Measure the process now. Raises Error where there is no /proc."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1:3]
        resident, shared = (int(n) * os.sysconf("SC_PAGE_SIZE") for n in pages)
        handles, threads = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    except OSError:
        raise Error("the soak reads memory and handles from /proc/self, which only Linux has") from None
    return Sample(step, resident, resident - shared, handles, threads, *(live_tensors() if count else ()))


def live_tensors() -> tuple[int, int]:
    """Tensors alive in Python after a garbage collection, and their bytes, each storage once."""
    gc.collect()
    found = [o for o in gc.get_objects() if issubclass(type(o), Tensor)]  # isinstance would load lazy modules
    storages = {}
    for t in found:
        with contextlib.suppress(RuntimeError, NotImplementedError):  # sparse ones have no storage
            if not isinstance(t, FakeTensor):  # nor has a fake one, and asking warns
                storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
    return len(found), sum(storages.values())


def tuned(model: Adapted) -> dict[str, Tensor]:
    """The tensors a model saves."""
    if not model.method.freezes_base:
        return model.base.state_dict()
    return {f"{part.name}/{name}": t for part in model.method.parts() for name, t in part.tensors().items()}


class Rounds:
    """The base, the data and the folder of all rounds."""

    def __init__(self, s: Settings, base: GPT, folder: Path):
        self.s, self.base, self.folder = s, base, folder
        self.tokenizer = tokenizer_for(base.config.vocab_size, None)
        self.data = TaskData(find_task("reverse"), self.tokenizer, s.seed, s.batch_size, held_out=2)
        self.inputs = torch.tensor([list(record.prompt) for record in self.data.held_out])  # (2, T)
        self.before = self.state()
        self.step, self.files = 0, None
        self.kinds = kinds_of(base.config, is_quantised(base))
        self.mixed = mixtures(base.config, self.kinds)

    def state(self) -> tuple[str, list[bool]]:
        return digest(self.base.state_dict()), [p.requires_grad for p in self.base.parameters()]

    def tune(self, kind: Kind) -> None:
        """One round. Raises Error when the base has changed, or the loaded model is not the tuned one."""
        base = self.base if all(m.freezes_base for m in methods_of(kind)) else copy.deepcopy(self.base)
        model = adapt(base, kind.method, **kind.hyperparameters)
        if any(True for _ in model.trainable_parameters()):
            self.train(model)
        if hasattr(model.method, "weight_changes"):
            with contextlib.suppress(Error) if is_quantised(base) else contextlib.nullcontext():
                model.merge()
                self.generate(model)
                model.unmerge()
        generated = self.generate(model)
        model.save(self.folder / kind.name)
        model.detach()
        self.check_base(kind.name, "tuned")

        loaded = load_adapter(self.base, self.folder / kind.name)
        if digest(tuned(loaded)) != digest(tuned(model)):
            raise Error(f"step {self.step}, {kind.name}: the loaded tensors are not the saved ones")
        if not torch.equal(self.generate(loaded), generated):
            raise Error(f"step {self.step}, {kind.name}: the loaded model generates other tokens")
        loaded.detach()
        self.check_base(kind.name, "loaded")

    def train(self, model: Adapted) -> None:
        steps = min(self.s.steps_per_round, self.s.steps - self.step)
        first = self.step
        # hundreds of progress bars of train() would bury the bar of the soak
        with contextlib.redirect_stderr(io.StringIO()):
            train(model, lambda step: collate(self.data.batch(first + step), self.tokenizer.end), steps)
        self.step += steps

    def generate(self, model: Adapted) -> Tensor:
        return generate(model, self.inputs, self.s.new_tokens)

    def mix(self) -> None:
        """Sample batches in which every row has another of the saved adapters that can be mixed, or none."""
        for names in self.mixed:
            bank = TaskBank(self.base, {name: self.folder / name for name in names})
            tasks = [None, *names]
            inputs = self.inputs[:1].expand(len(tasks), -1)
            generate(bank.rows(tasks), inputs, self.s.new_tokens, 1.0, top_k=20, top_p=0.95,
                     stop_token=self.tokenizer.stops)
        self.check_base("TaskBank", "mixed")

    def check_base(self, name: str, did: str) -> None:
        if self.state() != self.before:
            raise Error(f"step {self.step}: {name} was {did} and detached, and the base is not what it was")

    def check_files(self, name: str) -> None:
        """Raise Error if files changed since the first turn of all, or a temporary one is left."""
        found = {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*")
                 if path.is_file()}
        changed = sorted(found ^ (found if self.files is None else self.files))
        if left := [f for f in found if f.endswith(".tmp")] or changed:
            raise Error(f"step {self.step}: after {name} the folder has other files than before, such as {left[0]}")
        if name == "TaskBank" and self.files is None:
            self.files = found


def run(s: Settings, base: GPT) -> dict:
    """All rounds, then the comparison of quarters. Raises Error at the first round that fails."""
    kinds = kinds_of(base.config, is_quantised(base))
    trained = sum(any(method.trains() for method in methods_of(kind)) for kind in kinds)
    if s.steps < (least := 4 * trained * s.steps_per_round):
        raise Error(f"a soak needs at least {least:,} steps, so that all methods run in every quarter, "
                    f"not {s.steps:,}")
    torch.manual_seed(s.seed)
    samples, start = [], time.perf_counter()
    bar = tqdm(total=s.steps, unit="step", desc="soak", dynamic_ncols=True)
    with tempfile.TemporaryDirectory() as folder, bar:
        rounds = Rounds(s, base, Path(folder))
        while rounds.step < s.steps:
            for kind in rounds.kinds:
                if rounds.step == s.steps:
                    break
                rounds.tune(kind)
                rounds.check_files(kind.name)
                samples.append(take_sample(rounds.step, count=False))
                bar.update(rounds.step - bar.n)
            else:
                rounds.mix()
                rounds.check_files("TaskBank")
                samples.append(take_sample(rounds.step, count=True))
            bar.set_postfix(resident=f"{samples[-1].resident / MB:.0f} MB", handles=samples[-1].handles)
        files = len(rounds.files)
    quarters = [quarter(samples, s.steps, i) for i in range(4)]
    return {
        "settings": {**vars(s), "kinds": [kind.name for kind in rounds.kinds],
                     "parameters": sum(p.numel() for p in base.parameters())},
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
    """Statistics of the samples of steps i/4 … (i + 1)/4."""
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
    """The growth from the second quarter to the last, in words; [] if everything is flat."""
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
    lines = [f"{result['rounds']:,} rounds in {result['seconds']:,.0f} s; "
             "by quarter: resident memory, and the maximum of the rest"]
    lines += columns(cells, result["quarters"])
    lines += [f"last to second quarter: resident {result['resident_ratio']:.4f}, "
              f"private {result['private_ratio']:.4f} (at most {ALLOWED})"]
    verdict = "; ".join(result["leaks"]) or "flat: memory, tensors, handles, threads and files"
    return "\n".join([*lines, f"verdict: {verdict}"])


def arguments(argv) -> argparse.Namespace:
    p = Parser(__doc__, prog="python -m tests.faults soak")
    p.add_argument("--steps", type=int, default=10_000, metavar="N", help="optimizer steps of all rounds")
    p.add_argument("--seed", type=seed, default=0, help="of data and initial values")
    p.add_argument("--base-dtype", choices=BASE_DTYPES, metavar="TYPE",
                   help=f"of the base: {', '.join(BASE_DTYPES)} (default: its own)")
    p.add_argument("--out", type=Path, metavar="FILE", help="also write the result as JSON")
    args = p.parse_args(argv)
    if args.out and args.out.is_dir():
        raise Error(f"--out {args.out} is a folder, not a file")
    return args


def main(argv=None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = arguments(argv)
    machine = card(torch.device("cpu"))
    print(card_line(machine), flush=True)
    result = run(Settings(args.steps, args.seed), GPT.from_pretrained(NANO, dtype_named(args.base_dtype)))
    print(table(result))
    if args.out:
        command = shlex.join(["python", "-m", "tests.faults", "soak", *argv])
        write_json(args.out, {"command": command, "seed": args.seed, "card": machine, **result})
    if result["leaks"]:
        raise Error(f"not flat: {'; '.join(result['leaks'])}")
