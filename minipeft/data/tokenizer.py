"""Text to token ids and back: bytes for the embedded base, tokenizer.json for a base that has one.

Both classes have the same names:

    encode(text)   ids; adds nothing, but recognises special tokens in the text (<|im_start|>).
                   Raises Error for half a surrogate pair, which is no character
    decode(ids)    text, without special tokens
    begin          ids before every text ([] for most tokenizers)
    end, stops     the id after every completion, which is the first of all ids that end one
    adds_prefix    True if encode() puts a space before a text, as Llama 2's does
    marks          {id: text} of the tokens that encode() recognises in a text
    chat           the folder's ChatTemplate, or None
    vocab_size     number of ids
    save(folder)   write the files that a base saved there needs to read text
"""

import json
import math
import re
import shutil
from functools import cached_property
from pathlib import Path

from ..checks import Error, shown
from ..files.atomic import file_exists, read_json, write_atomically, write_json
from ..files.tensors import library_errors
from ..runtime.console import printable
from .chat import ChatTemplate, read_special_tokens

MAX_BYTES = 1 << 26  # of a tokenizer.json: several times what the largest vocabularies need
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
         "chat_template.jinja")
GUARDS = ("\n", ":", "a")  # to stand before a text that goes on: one of them shares no token with it
MAX_GROWTH = 1000  # of a text by a tokenizer's steps; published tokenizers stay below 100


class ByteTokenizer:
    """Ids 0-255 are the bytes of UTF-8, 256 is the end mark. It needs no file."""

    begin = []
    end = 256
    stops = [256]
    adds_prefix = False
    marks = {}
    chat = None
    vocab_size = 257

    def encode(self, text: str) -> list[int]:
        return list(_utf8(text))

    def decode(self, ids) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")

    def save(self, folder) -> None:
        """Remove the files of another tokenizer: bytes need none."""
        for name in (*FILES, "generation_config.json"):
            (Path(folder) / name).unlink(missing_ok=True)


class FileTokenizer:
    """A Hugging Face folder's tokenizer.json, and the end marks that the files beside it name.

    vocab_size is the model's, ids without a token included. Added tokens may lie beyond it, as the
    marks of images in a text model's file: no text may hold one. Raises Error when the package is
    missing, a file is torn, the vocabulary is another model's, or no file names an end mark.
    """

    def __init__(self, folder, vocab_size: int):
        path = Path(folder) / "tokenizer.json"
        if not file_exists(path):
            raise Error(f"{path} is missing")
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise Error(f"reading {path} needs: pip install tokenizers") from None
        _check_growth(path)
        with library_errors(f"{path} is torn or no tokenizer"):
            self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_truncation()  # both were set for someone else's batches
        self._tokenizer.no_padding()
        if getattr(self._tokenizer.model, "dropout", None):
            self._tokenizer.model.dropout = None  # for someone else's training: other ids each time
        ids = self._tokenizer.get_vocab(with_added_tokens=False).values()
        if len(set(ids)) < len(ids):
            raise Error(f"{path} gives one id to several tokens")
        n = max(ids, default=-1) + 1
        if n > vocab_size:  # fewer are usual: models round their vocabulary up, some by thousands
            raise Error(f"{path} has {n} ids and the model {vocab_size}: it must be the model's "
                        "own (as many, or fewer)")
        self.folder, self.vocab_size = Path(folder), vocab_size
        added = self._tokenizer.get_added_tokens_decoder()
        self.marks = {i: token.content for i, token in added.items() if i < vocab_size}
        self.stops = self._read_stops()
        marked = self._encode("a", add_special_tokens=True)
        self.begin = marked.ids[: (*marked.special_tokens_mask, 0).index(0)]
        if max(self.begin, default=0) >= vocab_size:
            raise Error(f"{path} begins texts with the id {max(self.begin)}, and the model has {vocab_size}")
        letter = "".join(self._encode("a", add_special_tokens=False).tokens)
        self.adds_prefix = letter != "a" and letter.endswith("a")

    @property
    def end(self) -> int:
        return self.stops[0]

    @cached_property
    def chat(self) -> ChatTemplate | None:
        return ChatTemplate.find(self.folder)

    def encode(self, text: str) -> list[int]:
        _utf8(text)
        ids = self._encode(text, add_special_tokens=False).ids
        if (last := max(ids, default=0)) >= self.vocab_size:
            raise Error(f"{shown(text)} holds {shown(self._tokenizer.id_to_token(last))}: its id is "
                        f"{last}, and the model has {self.vocab_size}")
        return ids

    def _encode(self, text: str, add_special_tokens: bool):
        with library_errors(f"{self.folder / 'tokenizer.json'} cannot encode {shown(text)}"):
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, ids) -> str:
        with library_errors(f"{self.folder / 'tokenizer.json'} cannot decode"):
            return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def save(self, folder) -> None:
        """Copy the tokenizer's files, in place of the folder's own, and add the end marks."""
        folder = Path(folder)
        for name in FILES:
            source, target = self.folder / name, folder / name
            if not file_exists(source):
                target.unlink(missing_ok=True)
            elif source.resolve() != target.resolve():
                write_atomically(target, lambda to, source=source: shutil.copyfile(source, to))
        path = folder / "generation_config.json"
        settings = read_json(path) if file_exists(path) else {}
        write_json(path, settings | {"eos_token_id": self.stops})

    def _read_stops(self) -> list[int]:
        for path in (self.folder / "generation_config.json", self.folder / "config.json"):
            found = read_json(path).get("eos_token_id") if file_exists(path) else None
            stops = found if isinstance(found, list) else [] if found is None else [found]
            if any(type(i) is not int or not 0 <= i < self.vocab_size for i in stops):
                raise Error(f"{path}: eos_token_id must be an id below {self.vocab_size} or a list "
                            f"of them, not {shown(found)}")
            if stops:
                return stops
        token = read_special_tokens(self.folder).get("eos_token")
        if token is None:
            raise Error(f"{self.folder} does not say what ends an answer: no eos_token_id in "
                        "(generation_)config.json, no eos_token in tokenizer_config.json")
        with library_errors(f"{self.folder}: its eos_token {shown(token)} is no text"):
            end = self._tokenizer.token_to_id(token)
        if end is None or end >= self.vocab_size:
            raise Error(f"{self.folder}: its eos_token {shown(token)} is no token of the model")
        return [end]


def _check_growth(path: Path) -> None:
    """Raise Error for a tokenizer.json whose steps could lengthen a text beyond memory or time."""
    if (size := path.stat().st_size) > MAX_BYTES:
        raise Error(f"{path} has {size:,} bytes: no tokenizer here needs more than {MAX_BYTES:,}")
    try:
        value = json.loads(path.read_bytes())
        growth = _growth([value.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")])
    except (OSError, ValueError, AttributeError, RecursionError) as e:
        raise Error(f"{path} is torn or no tokenizer ({type(e).__name__})") from None
    if growth > MAX_GROWTH:
        raise Error(f"{path} may make {shown(growth)} characters or more of one, step by step: "
                    f"no more than {MAX_GROWTH:,} are read")


def _growth(part) -> int:
    """The factor by which these steps may lengthen a text, times the repeats in their patterns."""
    if isinstance(part, list):
        return math.prod(map(_growth, part))
    if not isinstance(part, dict):
        return 1
    kind, pattern = part.get("type"), str(part.get("Regex", ""))
    growth = {"Replace": len(str(part.get("content"))), "Precompiled": 18, "ByteLevel": 2,
              "Prepend": 1 + len(str(part.get("prepend")))}
    repeats = math.prod(int(n[-9:]) or 1 for n in re.findall(r"(\d+)\}", pattern))
    own = growth.get(kind, 1) if isinstance(kind, str) else 1
    return max(1, own) * repeats * _growth(list(part.values()))


Tokenizer = ByteTokenizer | FileTokenizer


def tokenizer_for(vocab_size: int, folder) -> Tokenizer:
    """The tokenizer of a base with this many ids: its folder's tokenizer.json, or else bytes, which
    are for 257 ids. folder: a path, None for the embedded base."""
    if folder is not None and file_exists(Path(folder) / "tokenizer.json"):
        return FileTokenizer(folder, vocab_size)
    if vocab_size != ByteTokenizer.vocab_size:
        older = [name for name in ("tokenizer.model", "vocab.json")
                 if folder is not None and (Path(folder) / name).exists()]
        if older:
            raise Error(f"{folder} has {older[0]} and no tokenizer.json: save the tokenizer anew with "
                        "transformers (AutoTokenizer.from_pretrained(folder).save_pretrained(folder))")
        raise Error(f"{folder or 'the base'} has {vocab_size} ids and no tokenizer.json: "
                    f"without one text is bytes, which needs {ByteTokenizer.vocab_size}")
    return ByteTokenizer()


def with_begin(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text after the tokenizer's begin mark, which the text may hold already."""
    begin, ids = tokenizer.begin, tokenizer.encode(text)
    return ids if ids[: len(begin)] == begin else begin + ids


def encode_behind(tokenizer: Tokenizer, before, text: str) -> list[int]:
    """Ids of a text that goes on behind these ids: without the space that starts other texts.

    before: ids, soft tokens among them. Behind none, or the begin mark alone, a text starts.
    """
    if not tokenizer.adds_prefix:
        return tokenizer.encode(text)
    words = [i for i in before if i < tokenizer.vocab_size]
    if words in ([], tokenizer.begin):
        return tokenizer.encode(text)
    mark = tokenizer.marks.get(words[-1])  # behind which some tokenizers put the space again
    for guard in (mark,) if mark else GUARDS:
        front, ids = tokenizer.encode(guard), tokenizer.encode(guard + text)
        if ids[: len(front)] == front:
            return ids[len(front) :]
    return tokenizer.encode(text)


def decode_behind(tokenizer: Tokenizer, ids) -> str:
    """Text of ids that go on behind others: with the space that decode() takes from a start."""
    front = tokenizer.encode("a") if tokenizer.adds_prefix else []
    return tokenizer.decode([*front, *ids]).removeprefix(tokenizer.decode(front))


def in_letters(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Ids as one printable line; ids that decoding drops are shown as <id>."""
    text = tokenizer.decode(ids)
    if tokenizer.encode(text) != ids:
        text = "".join(tokenizer.decode([i]) or f"<{i}>" for i in ids)
    return printable(text)


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise Error(f"{ascii(text[:40])} holds half a surrogate pair, not a character") from None
