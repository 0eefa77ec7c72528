"""Damaged and forged files, thousands of them: each is read right or refused in one line.

python -m tests.faults files --count 5000 --out docs/results/faults-files.json
python -m tests.faults files --seed 4711 --count 1 --keep runs/faults      the same file again

Each is a good file (originals.py) with one mutation (mutations.py), read in a process of its own.

    right      the reader returns exactly the tensors (and config, or rows) in the file: the saved
               ones if it is damaged, the forged ones if it is forged, as read by plain readers
               that share no code with minipeft's
    refused    one minipeft.Error of one line that names the file or its folder
    failed     anything else: other tensors, another exception, a dead process, over 5 seconds,
               over 64 MB + 8 times the file of memory (limited by the system), or code that ran
"""

import argparse
import collections
import contextlib
import csv
import io
import json
import multiprocessing
import os
import random
import shutil
import stat
import tempfile
import threading
import traceback
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from minipeft.bench.measure import card_line, columns
from minipeft.checks import Error
from minipeft.data.tasks import Example
from minipeft.files import families
from minipeft.files.atomic import write_json
from minipeft.runtime.console import Parser, seed
from minipeft.runtime.profiling import card
from tests.faults import mutations
from tests.faults.originals import (
    KINDS,
    PLAIN_FACTS,
    Held,
    Original,
    Readers,
    build,
    library_tokenizer,
    names_in_file,
    notes_of,
    parsed,
    tensors_of,
)
from tests.faults.pickles import MARKER

SECONDS = 5
ROOM, TIMES = 64 << 20, 8  # reading may take ROOM bytes and TIMES the bytes of the files
WEIGHTS = {"adapter": 8, "combination": 3, "base": 6, "shards": 3, "state": 4, "tokenizer": 4, "data": 5}


def arguments(argv) -> argparse.Namespace:
    p = Parser(__doc__, prog="python -m tests.faults files")
    p.add_argument("--count", type=int, default=5000, metavar="N", help="files")
    p.add_argument("--seed", type=seed, default=0, help="of the first file; the others count up from it")
    p.add_argument("--workers", type=int, default=2, metavar="N", help="processes that read")
    p.add_argument("--only", choices=KINDS, help="files of one kind (default: all)")
    p.add_argument("--keep", default="runs/faults", metavar="FOLDER",
                   help="folder for files that failed, named by their seed")
    p.add_argument("--out", metavar="FILE", help="also write the counts as JSON")
    args = p.parse_args(argv)
    for name in ("count", "workers"):
        if getattr(args, name) < 1:
            raise Error(f"--{name} must be at least 1, not {getattr(args, name)}")
    return args


# ---- expected results


def expected(original: Original, folder: Path, forged: dict | None) -> list[Held]:
    """The right results of reading this folder, found by plain means; [] if it must be refused.

    forged: as `mutate` returns it.
    """
    if original.kind == "tokenizer":
        return [library_tokenizer(folder)]
    if original.kind == "data":
        return [Held({}, rows(folder / original.file))]
    if original.kind == "state":
        named = [Held(tensors, None) for tensors in (forged or {}).values()]
        return [*original.held, *named]
    if forged == {}:
        return []
    if original.kind in ("base", "shards"):
        return [of_base(original, folder, forged or {})]
    tensors, facts = {}, {}
    for part in original.held[0].facts:
        path, config, notes = place(folder / part if original.kind == "combination" else folder, "adapter")
        found = contents(path, notes, forged or {}, None)
        if found is None:  # as it was saved
            found = {name.partition("/")[2]: t for name, t in original.held[0].tensors.items()
                     if name.startswith(f"{part}/")}
        found = {name: t.float() if t.is_floating_point() else t for name, t in found.items()}  # as it is trained
        tensors |= {f"{part}/{name}": t for name, t in found.items()}
        plain = {name: config[name] for name in PLAIN_FACTS if config.get(name) is not None}
        facts[part] = original.held[0].facts[part] if "config" in notes else plain
    return [Held(tensors, facts)]


def of_base(original: Original, folder: Path, forged: dict) -> Held:
    path, config, notes = place(folder, "base")
    if "config" in notes:
        facts = original.held[0].facts
    else:
        sizes = families.CONFIG_FIELDS.get(config["model_type"], {name: name for name in original.held[0].facts})
        if config["model_type"] == "gemma3_text":
            sizes = sizes | {name: name for name in ("head_dim", "sliding_window", "rope_local_base_freq")}
        facts = {ours: config[theirs] for theirs, ours in sizes.items() if config.get(theirs) is not None}
    names, tensors = names_in_file(original.base), {}
    for file in sorted(folder.glob(f"*{path.suffix}")):
        found = contents(file, notes, forged, original.folder / file.name)
        if found is None:
            return Held(original.held[0].tensors, facts)
        for name, t in found.items():
            spellings = (name, f"transformer.{name}", f"model.{name}")
            ours, transposed = next((names[n] for n in spellings if n in names), (name, False))
            if ours in tensors or (ours not in original.held[0].tensors and name != "lm_head.weight"):
                return Held({}, facts)  # a name twice, or an unknown one: no reading is right
            if ours in original.held[0].tensors:
                tensors[ours] = t.t() if transposed else t
    if "wte.weight" in tensors:  # a model computes in one type
        tensors = {name: t.to(tensors["wte.weight"].dtype) for name, t in tensors.items()}
    return Held(tensors, facts)


def place(folder: Path, kind: str) -> tuple[Path, dict, dict]:
    """The (first) file of a folder's tensors, its config, and the notes saved with the tensors."""
    name = "config.json" if kind == "base" else "adapter_config.json"
    config = json.loads((folder / name).read_text(encoding="utf-8"))
    files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin"))
    path = next((p for p in files if p.suffix == ".safetensors"), files[0])
    notes = notes_of(path) if path.suffix == ".safetensors" else config.get("minipeft", {})
    return path, config, notes


def contents(path: Path, notes: dict, forged: dict, untouched: Path | None) -> dict[str, Tensor] | None:
    """The tensors of this file; None: the saved ones, by a checksum of minipeft's or of the zip."""
    if path in forged:
        return forged[path]
    if path.suffix == ".safetensors":
        return None if "sha256" in notes else parsed(path)
    return tensors_of(untouched) if forged and untouched is not None else None


def values(text: str):
    """The JSON values of a text, one after the other."""
    while text:
        value, end = json.JSONDecoder().raw_decode(text)
        yield value
        text = text[end:].strip()


def rows(path: Path) -> list[Example]:
    text = path.read_bytes().decode("utf-8-sig")
    if path.suffix in (".jsonl", ".json"):
        lines = json.loads(text) if text.strip()[:1] == "[" else list(values(text.strip()))
        talks = [[(m["role"], m["content"]) for m in line["messages"]] if "messages" in line else line
                 for line in lines]
        return [
            Example(t[-2][1], t[-1][1], tuple(t[:-2])) if isinstance(t, list)
            else Example(t["prompt"], t["completion"]) if "prompt" in t
            else Example(t["input"], t["target"]) if "input" in t or "target" in t else Example(None, t["text"])
            for t in talks
        ]
    if path.suffix == ".tsv":
        table = [line.split("\t") for line in text.replace("\r", "\n").split("\n") if line]
    else:
        table = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    names = ("input", "target") if "input" in table[0] else ("mr", "ref")
    return [Example(*(row[table[0].index(name)] for name in names)) for row in table[1:]]


def is_right(read: Held, want: Held) -> bool:
    if read.tensors.keys() != want.tensors.keys():
        return False
    if not all(same(t, want.tensors[name]) for name, t in read.tensors.items()):
        return False
    if not isinstance(want.facts, dict):
        return want.facts is None or read.facts == want.facts
    flat = [(read.facts.get(k, {}), v) if isinstance(v, dict) else (read.facts, want.facts)
            for k, v in want.facts.items()]
    return all(has.get(name) == value for has, values in flat for name, value in values.items())


def same(a: Tensor, b: Tensor) -> bool:
    """True if equal bit for bit; a may have a wider type, which the reader takes for a whole file."""
    if a.dtype != b.dtype:
        if torch.promote_types(a.dtype, b.dtype) != a.dtype:
            return False
        b = b.to(a.dtype)
    a_bytes, b_bytes = (t.contiguous().flatten().view(torch.uint8) for t in (a, b))
    return a.shape == b.shape and a_bytes.equal(b_bytes)


# ---- one file


class Case:
    """File number n, in a folder."""

    def __init__(self, n: int, originals: list[Original], only: str | None, work: Path):
        which = random.Random(f"which {n}")
        self.kind = which.choices(KINDS, [WEIGHTS[kind] for kind in KINDS])[0] if only is None else only
        rng = random.Random(f"{self.kind} {n}")
        self.original = rng.choice([o for o in originals if o.kind == self.kind])
        self.folder = work / "case"
        shutil.copytree(self.original.folder, self.folder)
        self.mutation, self.forged, self.holds = mutations.mutate(rng, self.original, originals, self.folder)

    def judge(self, readers: Readers) -> str:
        """Read it. Returns "right", "refused" or a description of the failure."""
        try:
            with limited(self.folder):
                read = readers.read(self.original, self.folder)
        except Error as e:
            message = str(e)
            if type(e) is not Error or len(message.splitlines()) != 1:
                outcome = f"message: {message!r}"
            elif str(self.folder) not in message:
                outcome = f"message names no file: {message!r}"
            else:
                outcome = "memory" if "MemoryError" in message else "refused"
        except MemoryError:
            outcome = "memory"
        except BaseException as e:
            where = traceback.extract_tb(e.__traceback__)[-1]
            outcome = f"exception: {type(e).__name__}: {str(e)[:200]} ({Path(where.filename).name}:{where.lineno})"
        else:
            outcome = self.compare(read)
        return "code ran" if list(self.folder.parent.rglob(MARKER)) else outcome

    def compare(self, read: Held) -> str:
        try:
            options = expected(self.holds, self.folder, self.forged)
        except BaseException as e:  # a file that plain readers cannot read is malformed
            return f"wrong: read, though it is malformed ({type(e).__name__}: {str(e)[:100]})"
        return "right" if any(is_right(read, want) for want in options) else "wrong: it holds something else"


@contextlib.contextmanager
def limited(folder: Path):
    """Limit the memory taken in here to ROOM and TIMES the files' bytes, if the system can."""
    try:
        import resource

        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        yield
        return
    size = sum(s.st_size for p in folder.rglob("*") if stat.S_ISREG((s := p.lstat()).st_mode))
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + ROOM + TIMES * size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# ---- many files


def work_through(pipe, root: Path, work: Path, originals: list[Original], only: str | None) -> None:
    """A worker process: receives a number, sends kind and mutation, then the outcome."""
    torch.set_num_threads(1)
    os.environ["RUST_BACKTRACE"] = "0"  # printing one maps every library: too much memory
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # warnings for someone who resumes a run
    readers = Readers(root)
    for o in originals:  # memory of imports and caches does not count
        readers.read(o, o.folder)
    while (n := pipe.recv()) is not None:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        case = Case(n, originals, only, work)
        pipe.send((case.kind, case.mutation))
        pipe.send(case.judge(readers))


class Worker:
    """A reading process, replaced when it hangs or dies."""

    def __init__(self, *settings):
        self.settings, self.process = settings, None

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work_through, args=(theirs, *self.settings), daemon=True)
        self.process.start()
        theirs.close()

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None

    def run(self, n: int) -> tuple[str, str, str]:
        """Kind, mutation and outcome of file number n."""
        if self.process is None:
            self.start()
        kind = mutation = "?"
        try:
            self.pipe.send(n)
            kind, mutation = self.pipe.recv()
            if self.pipe.poll(SECONDS):
                return kind, mutation, self.pipe.recv()
            outcome = "hang"
        except (EOFError, OSError):
            self.process.join()
            outcome = f"crash: exit code {self.process.exitcode}"
        self.end()
        return kind, mutation, outcome


def run(args: argparse.Namespace, root: Path) -> tuple[dict, list[str]]:
    """Try all files. Returns {(kind, mutation): {"right" | "refused" | "failed": count}} and a line
    for every failure."""
    originals = build(root)
    counts, failures = collections.defaultdict(collections.Counter), []
    numbers, lock = iter(range(args.seed, args.seed + args.count)), threading.Lock()
    errors = []

    def drive(work: Path) -> None:
        worker = Worker(root, work, originals, args.only)
        try:
            while not errors:
                with lock:
                    if (n := next(numbers, None)) is None:
                        return
                kind, mutation, outcome = worker.run(n)
                with lock:
                    counts[kind, mutation][outcome if outcome in ("right", "refused") else "failed"] += 1
                    if outcome not in ("right", "refused"):
                        failures.append(f"seed {n}: {kind}, {mutation}: {outcome}")
                        keep(work / "case", Path(args.keep) / f"{kind}-{n}", failures[-1])
                    bar.update()
                    bar.set_postfix(failed=len(failures))
        except BaseException as e:
            errors.append(e)
        finally:
            worker.end()

    with tqdm(total=args.count, unit="file", dynamic_ncols=True) as bar:
        threads = [threading.Thread(target=drive, args=(root / f"work-{i}",)) for i in range(args.workers)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException as e:  # Ctrl-C: the threads see it before their next file
            errors.append(e)
            raise
    if errors:
        raise errors[0]
    return counts, failures


def keep(case: Path, to: Path, line: str) -> None:
    """Copy a file that failed, with its failure; pipes and devices are not copied."""
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    with contextlib.suppress(shutil.Error, OSError):
        shutil.copytree(case, to / "case", symlinks=True)
    (to / "failure.txt").write_text(line + "\n", encoding="utf-8", errors="backslashreplace")


def main(argv=None) -> None:
    """Raises Error when any file was neither read right nor refused in one line."""
    args = arguments(argv)
    with tempfile.TemporaryDirectory() as root:
        counts, failures = run(args, Path(root))
    rows = [{"kind": kind, "mutation": mutation, "tried": c.total(), **c}
            for (kind, mutation), c in sorted(counts.items())]
    total = sum(counts.values(), collections.Counter())
    rows.append({"kind": "all", "mutation": "", "tried": total.total(), **total})
    head = card(torch.device("cpu"))
    print(card_line(head))
    cells = {"kind": lambda r: r["kind"], "mutation": lambda r: r["mutation"]}
    cells |= {name: lambda r, name=name: f"{r.get(name, 0):,}" for name in ("tried", "right", "refused", "failed")}
    print("\n".join(columns(cells, rows)))
    print("\n".join(failures[:50]))
    if args.out:
        settings = {"count": args.count, "seed": args.seed, "only": args.only}
        result = {"card": head, "settings": settings, "counts": rows, "failures": failures}
        write_json(Path(args.out), result)
    if failures:
        raise Error(f"{len(failures)} of {args.count} files were neither read right nor refused in "
                    f"one line: they are in {args.keep}")
