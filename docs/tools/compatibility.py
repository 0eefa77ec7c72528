#!/usr/bin/env python3
"""Files of other programs and versions, opened by minipeft: the table of docs/compatibility.md.

python docs/tools/compatibility.py --python side/*/bin/python

writers.py is run by this Python and by each of the given ones, which have other versions of
transformers, PEFT and pandas, and writes files with these programs' own functions. Then each file
is opened here. It opens if it holds what its writer holds: a model's logits to 1e-4 of their
largest, a table's rows, a tokenizer's ids, begin and end marks and chat prompt. Otherwise the error
must be minipeft's one line. The exit code is 1 if anything else happens.
"""

import contextlib
import functools
import io
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from docs.tools import writers
from docs.tools.results import read
from minipeft import GPT, Error, load_adapter
from minipeft.data.files import read_examples
from minipeft.data.tokenizer import tokenizer_for
from minipeft.files.atomic import write_json
from minipeft.runtime import console

TOLERANCE = 1e-4  # of the largest logit
IDS = torch.arange(5, 25)[None]  # those of writers.logits
VOCABULARY = 320  # ids of the model that a tokenizer is opened for
OPENS, REFUSED, WRONG = "opens", "refused", "wrong"


def write(python: str, folder: Path, only: Iterable[str] = ("",)) -> dict:
    """Run writers.py with this Python. Returns what it has written, {"versions", "files", …}."""
    command = [python, str(ROOT / "docs" / "tools" / "writers.py"), str(folder), "--only", *only]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8")
    if done.returncode:
        raise Error(f"{python} wrote no files: {done.stderr.strip().splitlines()[-1][:300]}")
    return json.loads((folder / "written.json").read_text(encoding="utf-8"))


def tried(row: dict, folder: Path) -> dict:
    """The row with what came of its file: {"outcome", "line": the line printed, "difference"}."""
    path, printed = folder / row["path"], io.StringIO()
    expected = torch.load(folder / f"{row['path']}.expected", weights_only=True)
    outcome = {}
    try:
        with contextlib.redirect_stderr(printed):
            outcome |= _compared(row, path, expected)
    except Error as e:
        outcome = {"outcome": REFUSED, "line": str(e)}
    except Exception as e:  # a fault: what minipeft raises on purpose is an Error
        outcome = {"outcome": WRONG, "line": f"{type(e).__name__}: {e}"}
    line = outcome.get("line") or printed.getvalue().strip()
    file = f"data{row['ending']}" if row["ending"] else "FOLDER"
    line = line.replace(str(path), file).replace("FOLDER/", "")
    kept = {k: v for k, v in row.items() if k != "path"}
    return kept | outcome | {"line": " ".join(line.split())}


def _compared(row: dict, path: Path, expected: dict) -> dict:
    if "rows" in expected:
        found = [[e.input or "", e.target] for e in read_examples(path)]
        return {"outcome": OPENS if found == expected["rows"] else WRONG}
    if "ids" in expected:
        tokenizer = tokenizer_for(VOCABULARY, path)
        found = {"ids": [tokenizer.encode(s) for s in writers.SENTENCES], "end": tokenizer.end,
                 "begin": tokenizer.begin}
        if "chat" in expected and tokenizer.chat:
            found["chat"] = tokenizer.chat.prompt([(m["role"], m["content"]) for m in writers.CHAT])
        return {"outcome": OPENS if found == expected else WRONG}
    if (path / "adapter_config.json").exists():
        model = load_adapter(GPT.from_pretrained(path.parent / row["on"]), path)
    else:
        model = GPT.from_pretrained(path, torch.float32)
    with torch.no_grad():
        found = model(IDS)
    difference = ((found - expected["logits"]).abs().max() / expected["logits"].abs().max()).item()
    is_same = difference <= TOLERANCE  # False for NaN
    return {"outcome": OPENS if is_same else WRONG, "difference": difference}


def measure(pythons: list[str], only: Iterable[str] = ("",)) -> dict:
    """All files of all these Pythons, tried: {"versions": one for each Python, "rows", "not_written"}."""
    versions, rows, missing = [], {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        for n, python in enumerate(pythons):
            folder = Path(temporary) / str(n)
            written = write(python, folder, only)
            versions.append(written["versions"])
            for row in written["files"]:
                key = tuple(row[k] for k in ("program", "version", "on", "holds", "saved", "ending"))
                rows.setdefault(key, tried(row, folder))
            for row in written["not_written"]:
                missing.setdefault(tuple(row.values())[:5], row)
            console.note(f"{python}: {len(written['files'])} files")
    return {"versions": versions, "rows": list(rows.values()), "not_written": list(missing.values())}


# The page's tables: of these programs' files, and whether they are adapters
GROUPS: dict[str, Callable[[dict], bool]] = {
    "bases": lambda row: row["program"] == "transformers" and not row["on"],
    "adapters": lambda row: row["on"] in writers.BASES,
    "tensors": lambda row: row["program"] in ("torch", "safetensors", "gguf") or row["on"] == "gguf",
    "tokenizers": lambda row: row["on"] == "tokenizer",
    "tables": lambda row: bool(row["ending"])}
HEAD = ["", "it holds", "saved by", "written by", "outcome", "line printed"]
LONGEST = 200  # characters of a printed line; the middle of a longer one is left out


def result() -> dict:
    """The result file."""
    return read("compatibility")


def group(name: str) -> str:
    """A group's files as a table: those alike but for base and version in one line."""
    alike: dict[tuple, dict[str, list[str]]] = {}
    for row in filter(GROUPS[name], result()["rows"]):
        saved = row["saved"] if row["saved"] != writers.SAVE else ""
        key = row["holds"], saved, row["ending"], row["outcome"], row["line"]
        of_base = alike.setdefault(key, {}).setdefault(row["on"], [])
        of_base += [f"{row['program']} {row['version']}"] * (row["version"] not in of_base)
    lines = []
    for (holds, saved, ending, outcome, line), by_base in alike.items():
        merged: dict[tuple, list[str]] = {}
        for base, by in by_base.items():
            merged.setdefault(tuple(sorted(by, key=_by_version)), []).append(base)
        for by, bases in merged.items():
            on = f"data.{ending}".replace("..", ".") if ending else ", ".join(filter(None, bases))
            what = holds if ending else code(holds)
            lines.append([code(on), what, code(saved), _versions(by), outcome, code(_cut(line))])
    first = {"adapters": "base", "tables": "file"}.get(name)
    used = [i for i in range(len(HEAD)) if any(line[i] for line in lines) and (i or first)]
    head = [HEAD[i] or first for i in used]
    rows = [head, ["---"] * len(used), *([line[i] for i in used] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def code(text: str) -> str:
    """Text as code in a cell of a table."""
    mark = "``" if "`" in text else "`"
    return f"{mark}{text}{mark}".replace("|", "\\|") if text else ""


def _by_version(text: str) -> tuple:
    name, _, version = text.rpartition(" ")
    return name, [int(part) if part.isdigit() else 0 for part in version.split("+")[0].split(".")]


def _versions(by: tuple[str, ...]) -> str:
    """Versions after their program's name: PEFT 0.10.0, 0.14.0."""
    programs: dict[str, list[str]] = {}
    for text in by:
        name, _, version = text.rpartition(" ")
        programs.setdefault(name, []).append(version.partition("+")[0])
    return code(", ".join(f"{name} {', '.join(found)}" for name, found in programs.items()))


def _cut(line: str) -> str:
    half = LONGEST // 2
    return line if len(line) <= LONGEST else f"{line[:half]} … {line[-half:]}"


def summary() -> str:
    """Number of files tried, and of each result."""
    rows = result()["rows"]
    counts = Counter(row["outcome"] for row in rows)
    largest = max(row.get("difference", 0) for row in rows if row["outcome"] == OPENS)
    lines = [["files", OPENS, REFUSED, WRONG, "largest difference"], ["---:"] * 5,
             [f"{len(rows):,}", *(f"{counts[k]:,}" for k in (OPENS, REFUSED, WRONG)), f"{largest:.0e}"]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def versions() -> str:
    """The versions of each Python that wrote files."""
    found = result()["versions"]
    names = list(dict.fromkeys(name for of in found for name in of))
    lines = [[code(name) for name in names], ["---"] * len(names)]
    lines += [[of.get(name, "-").partition("+")[0] for name in names] for of in found]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


BLOCKS: dict[str, Callable[[], str]] = {
    "compatibility": summary, "compatibility-versions": versions,
    **{f"compatibility-{name}": functools.partial(group, name) for name in GROUPS}}


def main(argv: list[str] | None = None) -> None:
    p = console.Parser(__doc__)
    p.add_argument("--python", nargs="*", default=[], metavar="PATH",
                   help="other Pythons that write files, each with its own versions")
    p.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="only lines with one of these texts")
    p.add_argument("--out", type=Path, help="result file")
    args = p.parse_args(argv)
    result = measure([sys.executable, *args.python], args.only)
    counts = Counter(row["outcome"] for row in result["rows"])
    for row in result["rows"]:
        if row["outcome"] == WRONG:
            print(f"{row['program']} {row['version']} {row['on']} {row['holds']} {row['saved']}: "
                  f"{row['line'] or row.get('difference', 'not the same')}")
    print(", ".join(f"{n} {outcome}" for outcome, n in counts.items()))
    if args.out:
        command = "python docs/tools/compatibility.py --python side/*/bin/python --out docs/results/compatibility.json"
        write_json(args.out, {"command": command} | result)
    if counts[WRONG]:
        sys.exit(1)


if __name__ == "__main__":
    raise SystemExit(console.run("compatibility.py", main))
