"""Examples from files: JSONL, CSV or TSV.

    .jsonl, .json   one object a line: {"input": …, "target": …}, {"text": …}, or
                    {"messages": [{"role": …, "content": …}, …]}
    .csv, .tsv      a first row of column names: input and target, or mr and ref, as in the E2E data

Every error names the file and the line.
"""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

from ..checks import Error, shown
from ..files.atomic import file_exists
from .tasks import Example

COLUMNS = ("input", "target")
E2E = ("mr", "ref")  # meaning representation, and a description of it
MAX_LINE = 1 << 20  # characters; a line of brackets takes some twenty times that as Python lists


def read_examples(path, columns: tuple[str, str] | None = None) -> list[Example]:
    """The examples of a file, in its order. Raises Error for any row that is not an example.

    columns: names of the fields or columns of input and target, where they are not the usual ones.
    """
    path = Path(path)
    readers = {".jsonl": _jsonl, ".json": _jsonl, ".csv": _csv, ".tsv": _csv}
    if path.suffix.lower() not in readers:
        raise Error(f"{path} must be .jsonl (or .json, one object a line), .csv or .tsv")
    examples = []
    for where, e in readers[path.suffix.lower()](path, columns):
        try:
            texts = [e.input or "", e.target, *(text for turn in e.turns for text in turn)]
            "".join(texts).encode("utf-8")
        except UnicodeEncodeError:
            raise Error(f"{where} holds half a surrogate pair, which is no character") from None
        if not e.target:
            raise Error(f"{where} has an empty {'text' if e.input is None else 'target'}")
        examples.append(e)
    if not examples:
        raise Error(f"{path} holds no examples")
    return examples


def _lines(path: Path, newline: str | None) -> Iterator[str]:
    if not file_exists(path):
        raise Error(f"no data at {path}: there is no such file")
    try:
        data = path.read_bytes()
        data.decode("utf-8-sig")  # only to name a wrong byte
    except UnicodeDecodeError as e:
        raise Error(f"{path} is not UTF-8 text (byte {e.start})") from None
    except OSError as e:
        raise Error(f"{path} cannot be read: {e.strerror}") from None
    lines = io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline=newline)  # never the text twice
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_LINE:
            raise Error(f"{path} line {number} has {len(line):,} characters, over {MAX_LINE:,}")
        yield line


def _jsonl(path: Path, columns: tuple[str, str] | None) -> Iterator[tuple[str, Example]]:
    kind = None
    for number, line in enumerate(_lines(path, None), 1):
        where = f"{path} line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as e:
            reason = getattr(e, "msg", "a number of too many digits, or nested too deep")
            raise Error(f"{where} is not JSON (one object a line): {reason}") from None
        if not isinstance(row, dict):
            raise Error(f"{where} must be a JSON object, not {type(row).__name__}")
        found = columns or _kind(row, where)
        kind = kind or found
        if found != kind:
            raise Error(f"{where} holds {_names(found)}, but the lines before it {_names(kind)}")
        if kind == ("messages",):
            yield where, _conversation(row["messages"], where)
        else:
            values = [_field(row, name, where) for name in kind]
            yield where, Example(*values) if len(values) == 2 else Example(None, *values)


def _kind(row: dict, where: str) -> tuple[str, ...]:
    """The fields that identify this kind of line."""
    kinds = (COLUMNS, ("text",), ("messages",))
    for kind in kinds:
        if any(name in row for name in kind):
            return kind
    raise Error(f"{where} has neither {', nor '.join(map(_names, kinds))}: there is {_names(row)}")


def _field(row: dict, name: str, where: str) -> str:
    if name not in row:
        raise Error(f"{where} has no {_names((name,))}: there is {_names(row)}")
    if not isinstance(row[name], str):
        raise Error(f"{where}: {_names((name,))} must be a string, not {type(row[name]).__name__}")
    return row[name]


def _conversation(messages, where: str) -> Example:
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise Error(f'{where}: "messages" must be a list of {{"role": …, "content": …}}')
    turns = tuple((_field(m, "role", where), _field(m, "content", where)) for m in messages)
    if [role for role, _ in turns[-2:]] != ["user", "assistant"]:
        ends = ", ".join(shown(role) for role, _ in turns[-2:]) or "nothing"
        raise Error(f"{where}: messages must end with user and assistant, not with {ends}")
    return Example(turns[-2][1], turns[-1][1], turns[:-2])


def _csv(path: Path, columns: tuple[str, str] | None) -> Iterator[tuple[str, Example]]:
    kind, dialect = ("TSV", "excel-tab") if path.suffix.lower() == ".tsv" else ("CSV", "excel")
    reader = csv.reader(_lines(path, ""), dialect, strict=True)
    header = None
    while True:
        where = f"{path} line {reader.line_num + 1}"  # where the row starts
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            raise Error(f"{where} is not {kind}: {e}") from None
        if not row:
            continue
        if header is None:
            header = row
            is_e2e = set(E2E) <= set(header) and not set(COLUMNS) <= set(header)
            wanted = columns or (E2E if is_e2e else COLUMNS)
            for name in wanted:
                if header.count(name) != 1:
                    wrong = "has no column" if name not in header else "has more than one column"
                    raise Error(f"{where} {wrong} {_names((name,))}: there is {_names(header)}")
        elif len(row) != len(header):
            raise Error(f"{where} has {len(row)} of the {len(header)} columns {_names(header)}")
        else:
            yield where, Example(*(row[header.index(name)] for name in wanted))


def _names(names) -> str:
    """Names for a message: quoted, and only the first of many."""
    names = [json.dumps(str(name)[:40]) for name in names]
    return ", ".join(names[:8] + ["…"] * (len(names) > 8)) or "nothing"
