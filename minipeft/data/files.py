"""Examples from files: JSON, JSONL, CSV or TSV.

    .jsonl, .json   objects, one a line or over several lines, or one array of them
    .csv            a first row of column names, divided by , ; | or tabs, with CSV's quotes
    .tsv            the same, divided by tabs; there is no quoting: a quote is a character

The names of FORMS, or those in `columns`, say which fields are read. A line on stderr says which
others are left out. Every error names the file, and the line if it is about one.
"""

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from ..checks import Error, shown
from ..files.atomic import file_exists
from ..runtime.console import note, printable
from .tasks import Example

ALPACA = ("instruction", "output")  # with "input", which may be empty
PROMPT = ("prompt", "completion")  # texts, or lists of messages
CHATS = (("messages",), ("conversations",))  # of {"role", "content"}, or ShareGPT's {"from", "value"}
FORMS = (("input", "target"), ("mr", "ref"), ALPACA, PROMPT, *CHATS, ("text",))  # mr, ref: E2E
ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's names
MAX_LINE = 1 << 20  # characters; a line of brackets takes some twenty times that as Python lists
JSON_NAMES = {dict: "an object", list: "an array", str: "a string", int: "a number",
              float: "a number", bool: "true or false", type(None): "null"}
DECODER, SPACES = json.JSONDecoder(), re.compile(r"\s*")


def read_examples(path, columns: tuple[str, str] | None = None) -> list[Example]:
    """The examples of a file, in its order. Raises Error for any row that is not an example.

    columns: names of the fields or columns of input and target, where they are not the usual ones.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in (".jsonl", ".json", ".csv", ".tsv"):
        raise Error(f"{path} must be .jsonl, .json, .csv or .tsv")
    rows = _table(path, kind, columns) if kind in (".csv", ".tsv") else _objects(path)
    examples, form, left_out = [], None, Counter()
    for where, row in rows:
        found = columns or _form(row, where)
        form = form or found
        if found != form:
            raise Error(f"{where} holds {_names(found)}, but the lines before it {_names(form)}")
        has_input = form == ALPACA and not columns and row.get("input")
        used = ("instruction", "input", "output") if has_input else form
        e = _example(row, used, where)
        messages = [m for k in used if isinstance(row[k], list) for m in row[k]]
        unread = [_unread(row, used), *(_unread(m, _keys(m)) for m in messages)]
        left_out.update(dict.fromkeys(chain.from_iterable(unread), 1))
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
    if left_out:
        names = [f"{_names((name,))} (in {n:,})" for name, n in left_out.most_common(8)]
        more = ", …" * (len(left_out) > len(names))
        note(f"{path}: of {len(examples):,} examples, left out: {', '.join(names)}{more}")
    return examples


def _form(names, where: str) -> tuple[str, ...]:
    """The form whose names are all among these, or else the first that has one of them."""
    for fits in (set.issuperset, set.intersection):
        for form in FORMS:
            if fits(set(names), form):
                return form
    raise Error(f"{where} has neither {', nor '.join(map(_names, FORMS))} (--columns names others): "
                f"there is {_names(names)}")


def _unread(fields: dict, used: tuple[str, ...]) -> list[str]:
    """Names of the fields that hold something and are not among those used."""
    return [k for k in fields if k not in used and fields[k] not in ("", None, [], {})]


def _keys(message: dict) -> tuple[str, str]:
    """Names of the speaker and the text of a message."""
    return ("from", "value") if "from" in message else ("role", "content")


def _example(row: dict, names: tuple[str, ...], where: str) -> Example:
    if names in CHATS:
        return _conversation(row[names[0]], names[0], where)
    if names == PROMPT and all(isinstance(row.get(name), list) for name in names):
        return _conversation(row["prompt"] + row["completion"], "prompt and completion", where)
    *inputs, target = (_field(row, name, where) for name in names)
    return Example("\n".join(inputs) if inputs else None, target)


def _field(row: dict, name: str, where: str) -> str:
    if name not in row:
        raise Error(f"{where} has no {_names((name,))}: there is {_names(row)}")
    if not isinstance(row[name], str):
        raise Error(f"{where}: {_names((name,))} must be a string, not {JSON_NAMES[type(row[name])]}")
    return row[name]


def _conversation(messages, name: str, where: str) -> Example:
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise Error(f'{where}: "{name}" must be a list of {{"role": …, "content": …}}')
    turns = []
    for m in messages:
        role, content = _keys(m)
        speaker = _field(m, role, where)
        turns.append((ROLES.get(speaker, speaker), _field(m, content, where)))
    if [role for role, _ in turns[-2:]] != ["user", "assistant"]:
        ends = ", ".join(shown(role) for role, _ in turns[-2:]) or "nothing"
        raise Error(f"{where}: {name} must end with user and assistant, not with {ends}")
    return Example(turns[-2][1], turns[-1][1], tuple(turns[:-2]))


def read_text(path: str | Path) -> str:
    """A text file. Raises Error for one that is missing, unreadable or not UTF-8."""
    return _open(Path(path), None).read()


def _open(path: Path, newline: str | None) -> io.TextIOWrapper:
    if not file_exists(path):
        raise Error(f"no data at {path}: there is no such file")
    try:
        data = path.read_bytes()
        data.decode("utf-8-sig")  # only to name a wrong byte
    except UnicodeDecodeError as e:
        is_utf16 = data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        hint = ", but UTF-16: save it as UTF-8" * is_utf16
        raise Error(f"{path} is not UTF-8 text (byte {e.start}){hint}") from None
    except OSError as e:
        raise Error(f"{path} cannot be read: {e.strerror}") from None
    return io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline=newline)  # never the text twice


def _objects(path: Path) -> Iterator[tuple[str, dict]]:
    """The place and the value of each JSON object, with or without an array around them."""
    file, line, is_array = _open(path, None), 1, False
    text, i = "", 0  # text[i:] is not read yet and begins in this line
    before = ""  # "{" after an object, or the array's mark: "[", "," or "]"
    while True:
        if len(text) - i <= MAX_LINE:
            text, i = text[i:] + file.read(2 * MAX_LINE), 0
        start, i = i, SPACES.match(text, i).end()
        line += text.count("\n", start, i)
        where = f"{path} line {line}"
        if i == len(text):
            if i > start:
                continue  # more may follow the spaces
            if is_array and before != "]":
                raise Error(f"{where}: the array is not closed, so the file may be torn")
            return
        c = text[i]
        is_mark = c == "]" and before in ("[", "{") or c == "," and before == "{"
        if c == "[" and not before or is_array and is_mark:
            before, is_array, i = c, True, i + 1
        elif before == "]":
            raise Error(f"{where}: something follows the end of the array")
        elif is_array and before == "{":
            raise Error(f"{where} is not JSON: a comma is missing between two objects")
        else:
            row, end = _value(text, i, where, line)
            if not isinstance(row, dict):
                raise Error(f"{where} must be a JSON object, not {JSON_NAMES[type(row)]}")
            yield where, row
            line, before, i = line + text.count("\n", i, end), "{", end


def _value(text: str, i: int, where: str, line: int) -> tuple[object, int]:
    """The JSON value that begins at text[i], and where it ends."""
    reason = None
    try:
        row, end = DECODER.raw_decode(text, i)
    except json.JSONDecodeError as e:
        at = line + text.count("\n", i, e.pos)
        reason = e.msg + (f", in line {at}" if at > line else "")
        is_cut = e.msg.startswith("Unterminated") or e.pos + 12 >= len(text)  # 12: an escape, a word
        end = len(text) if is_cut else i
    except (ValueError, RecursionError):
        reason, end = "a number of too many digits, or nested too deep", i
    if end - i > MAX_LINE:  # it was too long, or so long that text holds the beginning only
        raise Error(f"{where} begins an object of over {MAX_LINE:,} characters")
    if reason:
        raise Error(f"{where} is not JSON: {reason}")
    return row, end


def _table(path: Path, kind: str, columns: tuple[str, str] | None) -> Iterator[tuple[str, dict]]:
    """The place of each row, and its cells by the names of their columns."""
    lines, head, is_tsv = _lines(path), [], kind == ".tsv"
    for line in lines:
        head.append(line)
        if line.strip("\r\n"):
            break
    quoting = csv.QUOTE_NONE if is_tsv else csv.QUOTE_MINIMAL
    delimiter = "\t" if is_tsv else _delimiter(head[-1:], columns)
    csv.field_size_limit(max(MAX_LINE, csv.field_size_limit()))
    reader = csv.reader(chain(head, lines), delimiter=delimiter, quoting=quoting, strict=True)
    header = None
    while True:
        where = f"{path} line {reader.line_num + 1}"  # where the row starts
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            raise Error(f"{where} is not {kind[1:].upper()} ({e}): a cell that begins with a quote "
                        "ends with one, and a quote inside it is written twice") from None
        if not row:
            continue
        hint = ""
        if is_tsv and any('"' in cell for cell in row):
            hint = ": a TSV has no quoting; one with quotes is read under the name .csv"
            in_quotes = [cell for cell in row if _is_quoted(cell) or header is None and cell[:1] == '"']
            if cell := next(iter(in_quotes), None):
                raise Error(f"{where} holds {_names((cell,))}, quoted as in a CSV{hint}")
        if header is None:
            header, wanted = row, columns or _form(row, where)
            for name in (*wanted, "input"):
                if header.count(name) > 1 or name in wanted and name not in header:
                    wrong = "has no column" if name not in header else "has more than one column"
                    raise Error(f"{where} {wrong} {_names((name,))}: there is {_names(header)}")
        elif len(row) != len(header):
            raise Error(f"{where} has {len(row)} of the {len(header)} columns {_names(header)}{hint}")
        else:
            yield where, dict(zip(header, row, strict=True))


def _lines(path: Path) -> Iterator[str]:
    for number, line in enumerate(_open(path, ""), 1):
        if len(line) > MAX_LINE:
            raise Error(f"{path} line {number} has {len(line):,} characters, over {MAX_LINE:,}")
        yield line


def _delimiter(header: list[str], columns: tuple[str, str] | None) -> str:
    """The delimiter that divides the line into known names; Excel's is the locale's."""
    for delimiter in ",;|\t":
        try:
            names = set(next(csv.reader(header, delimiter=delimiter), ()))
        except csv.Error:
            break
        if any(names.issuperset(form) for form in ([columns] if columns else FORMS)):
            return delimiter
    return ","


def _is_quoted(cell: str) -> bool:
    """True for a cell within quotes that holds quotes, each of them twice."""
    inner = cell[1:-1]
    return (cell[:1] == cell[-1:] == '"' and '""' in inner
            and '"' not in inner.replace('""', ""))


def _names(names) -> str:
    """Names for a message: quoted, and only the first of many."""
    names = [json.dumps(printable(str(name)[:40]), ensure_ascii=False) for name in names]
    return ", ".join(names[:8] + ["…"] * (len(names) > 8)) or "nothing"
