"""Text to ids and back: bytes for the embedded base, `tokenizer.json` for a base that brings one.

Both give the same names:

    encode(text)   ids; nothing is added, but special tokens written out in the text (<|im_start|>) are recognised
    decode(ids)    text; special tokens are dropped
    begin          the ids that go before every text ([] for most)
    end, stops     the id put after every answer; all ids that end one
    vocab_size     how many ids there are
    save(folder)   what a base saved there needs to read text
"""

import json
import math
import re
import shutil
from pathlib import Path

from ..config import Error, shown
from ..files.atomic import is_there, read_json, write_atomically, write_json
from ..files.tensors import rust
from ..runtime.console import shown_as

PADDING = 1024  # published models round their vocabulary up: so many ids may belong to no token


class ByteTokenizer:
    """Ids 0–255 are the bytes of UTF-8, 256 marks the end of an answer. No vocabulary file, nothing unknown."""

    begin = []
    end = 256
    stops = [256]
    vocab_size = 257

    def encode(self, text: str) -> list[int]:
        """Text -> ids. Raises Error for half a surrogate pair, which is no character."""
        return list(_utf8(text))

    def decode(self, ids) -> str:
        """Ids -> text; the end mark is dropped, and bytes that are no UTF-8 show as the replacement character."""
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")

    def save(self, folder) -> None:
        """Nothing: bytes need no file."""


class FileTokenizer:
    """The tokenizer of a Hugging Face folder: tokenizer.json, and the end marks that the configurations beside it name.

    vocab_size is the model's: ids that no token has count too. Raises Error when the package is missing, a file is torn, the
    model's vocabulary is another one, or no file says what ends an answer.
    """

    def __init__(self, folder, vocab_size: int):
        path = Path(folder) / "tokenizer.json"
        if not is_there(path):
            raise Error(f"{path} is missing")
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise Error(f"reading {path} needs: pip install tokenizers") from None
        _check_work(path)
        with rust(f"{path} is torn or no tokenizer"):
            self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_truncation()  # what a file asks for here is about somebody else's batches
        self._tokenizer.no_padding()
        if getattr(self._tokenizer.model, "dropout", None):
            self._tokenizer.model.dropout = None  # and this about somebody else's training: other ids for a text each time
        its_own = self._tokenizer.get_vocab(with_added_tokens=False).values()
        if len(set(its_own)) < len(its_own):
            raise Error(f"{path} gives one id to several tokens")
        ids = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        if not vocab_size - PADDING <= ids <= vocab_size:
            raise Error(f"{path} has {ids} ids and the model {vocab_size}: it must be the model's own (as many, or up to {PADDING} fewer)")
        self.folder, self.vocab_size = Path(folder), vocab_size
        self.stops = self._read_stops(Path(folder))
        self.end = self.stops[0]
        marked = self._encode("a", add_special_tokens=True)
        self.begin = marked.ids[: (*marked.special_tokens_mask, 0).index(0)]

    def encode(self, text: str) -> list[int]:
        """Text -> ids. Raises Error for half a surrogate pair, which is no character."""
        _utf8(text)
        return self._encode(text, add_special_tokens=False).ids

    def _encode(self, text: str, add_special_tokens: bool):
        with rust(f"{self.folder / 'tokenizer.json'} cannot encode {shown(text)}"):
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, ids) -> str:
        """Ids -> text; special tokens, and ids that no token has, are dropped."""
        with rust(f"{self.folder / 'tokenizer.json'} cannot decode"):
            return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def save(self, folder) -> None:
        """Put the tokenizer into another base's folder: its files as they are, and what ends an answer."""
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
            if is_there(self.folder / name) and self.folder.resolve() != Path(folder).resolve():
                write_atomically(Path(folder) / name, lambda to, name=name: shutil.copyfile(self.folder / name, to))
        settings = Path(folder) / "generation_config.json"
        write_json(settings, (read_json(settings) if is_there(settings) else {}) | {"eos_token_id": self.stops})

    def _read_stops(self, folder: Path) -> list[int]:
        for name in ("generation_config.json", "config.json"):
            found = read_json(folder / name).get("eos_token_id") if is_there(folder / name) else None
            stops = found if isinstance(found, list) else [] if found is None else [found]
            for i in stops:
                if type(i) is not int or not 0 <= i < self.vocab_size:
                    wanted = f"an id below {self.vocab_size} or a list of them"
                    raise Error(f"{folder / name}: eos_token_id must be {wanted}, not {shown(found)}")
            if stops:
                return stops
        path = folder / "tokenizer_config.json"
        token = read_json(path).get("eos_token") if is_there(path) else None
        token = token.get("content") if isinstance(token, dict) else token
        if not isinstance(token, str):
            raise Error(
                f"{folder} does not say what ends an answer: no eos_token_id in generation_config.json or config.json, "
                "no eos_token in tokenizer_config.json"
            )
        with rust(f"{path}: its eos_token {shown(token)} is no text"):
            end = self._tokenizer.token_to_id(token)
        if end is None:
            raise Error(f"{path}: its eos_token {shown(token)} is no token of tokenizer.json")
        return [end]


TOKENIZER_BYTES = 1 << 26  # that a tokenizer.json may have: room for vocabularies several times as large as most
MOST_WORK = 1000  # published tokenizers stay below 100


def _check_work(path: Path) -> None:
    """Raise Error for a tokenizer.json whose steps could blow a text up, or take for ever: the library would go on until memory ends."""
    if (size := path.stat().st_size) > TOKENIZER_BYTES:
        raise Error(f"{path} has {size:,} bytes: no tokenizer here needs more than {TOKENIZER_BYTES:,}")
    try:
        value = json.loads(path.read_bytes())
        work = math.prod(_work(value.get(name)) for name in ("normalizer", "pre_tokenizer", "decoder"))
    except (OSError, ValueError, AttributeError, RecursionError) as e:
        raise Error(f"{path} is torn or no tokenizer ({type(e).__name__})") from None
    if work > MOST_WORK:
        raise Error(f"{path} may make {shown(work)} characters or more of one, step by step: no more than {MOST_WORK:,} are read")


def _work(part) -> int:
    """How many times as long a text may become by these steps, which multiply, or how often their patterns are repeated."""
    if isinstance(part, list):
        return math.prod(map(_work, part))
    if not isinstance(part, dict):
        return 1
    kind, pattern = part.get("type"), str(part.get("Regex", ""))
    work = {"Replace": len(str(part.get("content"))), "Prepend": 1 + len(str(part.get("prepend"))), "Precompiled": 18, "ByteLevel": 2}
    repeats = math.prod(int(n[-9:]) or 1 for n in re.findall(r"(\d+)\}", pattern))
    return max(1, work.get(kind, 1) if isinstance(kind, str) else 1) * repeats * _work(list(part.values()))


Tokenizer = ByteTokenizer | FileTokenizer


def tokenizer_for(vocab_size: int, folder) -> Tokenizer:
    """The tokenizer of a base with this many ids: the tokenizer.json of its folder, or bytes where there is none.

    folder: a path; None or "nano" for the embedded base. Raises Error when there is none and the ids are not 257.
    """
    if folder not in (None, "nano") and is_there(Path(folder) / "tokenizer.json"):
        return FileTokenizer(folder, vocab_size)
    if vocab_size != ByteTokenizer.vocab_size:
        raise Error(f"{folder or 'the base'} has {vocab_size} ids and no tokenizer.json: without one text is bytes, which needs "
            f"{ByteTokenizer.vocab_size}")  # fmt: skip
    return ByteTokenizer()


def in_letters(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Ids as one line that a terminal can show; marks that decoding drops are shown by their ids."""
    text = tokenizer.decode(ids)
    if tokenizer.encode(text) != ids:
        text = "".join(tokenizer.decode([i]) or f"<{i}>" for i in ids)
    return shown_as(text)


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise Error(f"{ascii(text[:40])} holds half a surrogate pair, which is no character") from None
