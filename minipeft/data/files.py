"""Your own data: JSONL, CSV or TSV, as examples.

    .jsonl, .json   one object a line: {"input": …, "target": …}, {"text": …}, or {"messages": [{"role": …, "content": …}, …]}
    .csv, .tsv      a first row of column names: input and target, or mr and ref, as the E2E data has them

Every refusal names the file and the line.
"""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

from ..config import Error, shown
from ..files.atomic import is_there
from .tasks import Example

COLUMNS = ("input", "target")
LINE = 1 << 20  # characters that a line may have: as Python's lists, brackets and commas take some twenty times that in memory
E2E = ("mr", "ref")  # what is to be said, and one way of saying it


def read_examples(path, columns: tuple[str, str] | None = None) -> list[Example]:
    """The examples of a file, in its order; blank lines are passed over.

    columns: the names of the fields or columns to take as input and target, where they are others than the above.
    Raises Error for a file that cannot be read, or any row that is not an example.
    """
    path = Path(path)
    readers = {".jsonl": _jsonl, ".json": _jsonl, ".csv": _csv, ".tsv": _csv}
    if path.suffix.lower() not in readers:
        raise Error(f"{path} must be .jsonl (or .json, one object a line), .csv or .tsv")
    examples = []
    for where, example in readers[path.suffix.lower()](path, columns):
        try:
            "".join([example.input or "", example.target, *(text for turn in example.turns for text in turn)]).encode("utf-8")
        except UnicodeEncodeError:
            raise Error(f"{where} holds half a surrogate pair, which is no character") from None
        if not example.target:
            raise Error(f"{where} has an empty {'text' if example.input is None else 'target'}: there is nothing to learn from it")
        examples.append(example)
    if not examples:
        raise Error(f"{path} holds no examples")
    return examples


def _lines(path: Path, newline: str | None) -> Iterator[str]:
    if not is_there(path):
        raise Error(f"no data at {path}: there is no such file")
    try:
        data = path.read_bytes()
        data.decode("utf-8-sig")  # so that the byte is named; read line by line, as it is below, the text is never there twice
    except UnicodeDecodeError as e:
        raise Error(f"{path} is not UTF-8 text (byte {e.start})") from None
    except OSError as e:
        raise Error(f"{path} cannot be read: {e.strerror}") from None
    for number, line in enumerate(io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline=newline), 1):
        if len(line) > LINE:
            raise Error(f"{path} line {number} has {len(line):,} characters: no example here has more than {LINE:,}")
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
            reason = "nested too deep" if isinstance(e, RecursionError) else getattr(e, "msg", "a number of too many digits")
            raise Error(f"{where} is not JSON (one object a line): {reason}") from None
        if not isinstance(row, dict):
            raise Error(f"{where} must be a JSON object, not {type(row).__name__}")
        found = columns or _kind(row, where)
        kind = kind or found
        if found != kind:
            raise Error(f"{where} holds {_names(found)}, but the lines before it {_names(kind)}: one file, one kind of line")
        if kind == ("messages",):
            yield where, _conversation(row["messages"], where)
        else:
            values = [_field(row, name, where) for name in kind]
            yield where, Example(*values) if len(values) == 2 else Example(None, *values)


def _kind(row: dict, where: str) -> tuple[str, ...]:
    """Which of the kinds of line this is, as the fields that it must have."""
    for kind in (COLUMNS, ("text",), ("messages",)):
        if any(name in row for name in kind):
            return kind
    raise Error(f"{where} has neither {_names(COLUMNS)}, nor {_names(('text',))}, nor {_names(('messages',))}: there is {_names(row)}")


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
        raise Error(f"{where}: messages must end with one of the user and the assistant's answer, not with {ends}")
    return Example(turns[-2][1], turns[-1][1], turns[:-2])


def _csv(path: Path, columns: tuple[str, str] | None) -> Iterator[tuple[str, Example]]:
    tab = path.suffix.lower() == ".tsv"
    reader = csv.reader(_lines(path, ""), "excel-tab" if tab else "excel", strict=True)
    header = None
    while True:
        where = f"{path} line {reader.line_num + 1}"  # where the row begins: it may go on over several lines
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            raise Error(f"{where} is not {'TSV' if tab else 'CSV'}: {e}") from None
        if not row:
            continue
        if header is None:
            header = row
            wanted = columns or (E2E if set(E2E) <= set(header) and not set(COLUMNS) <= set(header) else COLUMNS)
            for name in wanted:
                if header.count(name) != 1:
                    missing = "has no column" if name not in header else "has more than one column"
                    raise Error(f"{where} {missing} {_names((name,))}: there is {_names(header)}")
        elif len(row) != len(header):
            raise Error(f"{where} has {len(row)} of the {len(header)} columns {_names(header)}")
        else:
            yield where, Example(*(row[header.index(name)] for name in wanted))


def _names(names) -> str:
    """Names as they stand in a message: quoted, and the first few of many."""
    names = [json.dumps(str(name)[:40]) for name in names]
    return ", ".join(names[:8] + ["…"] * (len(names) > 8)) or "nothing"
