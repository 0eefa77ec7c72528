"""Self-study (Eyuboglu et al. 2025, "Cartridges", 2506.06266 §4): the model writes on a document.

Three kinds, all of them examples {"input": …, "target": …} that any --data flag reads:

    a question       the input is a line of SEEDS about a passage of the document; the target what the base, with the
                     document before it, writes behind it
    a continuation   the input is the begin of a passage; the target what the base, likewise, writes on
    a passage        the input is its begin, the target the rest, as the document has it

Four in six are questions. The last lines of SEEDS leave open what to write: texts that merely
follow the document are most like those that will. Passages are few: few rows cannot recite, so
their KL is by far the largest, and they would rule the training.

Distilled on these, a prefix learns to answer like the document, and not to recite it. Targets of
the teacher are whole distributions (Adapted.distil_from), so one sampled text teaches more than its
tokens.
"""

import contextlib
import json
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from ..checks import Error, at_least_one
from ..data.encoding import tokenize
from ..data.files import read_examples, read_text
from ..data.tasks import Example
from ..data.template import Template
from ..data.tokenizer import Tokenizer, decode_behind, with_begin
from ..files.atomic import file_exists, write_text
from ..inference.generation import generate
from ..inference.task_bank import SlottedBase
from ..model import GPT
from ..runtime.console import progress
from ..slots import Slots
from .text import prefill

SEEDS = Path(__file__).parent / "seeds.txt"  # one a line; \n is a line break, {passage} a passage of the document
TEXT_KINDS = ("passage", "question", "question", "continuation", "question", "question")  # of eight texts each, in turn
BEGIN, PASSAGE = 12, 96  # tokens of a passage's begin, and of a passage
ROOM = BEGIN + 2  # tokens that the document must leave of the base's block size
TARGET = 64  # tokens that the model writes
BATCH = 8
TEMPERATURE = 0.8  # of its writing
PLAIN = "{input}"  # template: the input follows the document directly


def read_seeds(path: str | Path = SEEDS) -> list[str]:
    """Lines of a file of seed prompts that do not begin with #. Raises Error if there is none."""
    lines = read_text(path).splitlines()
    seeds = [line.replace("\\n", "\n") for line in lines if line.strip() and not line.startswith("#")]
    if not seeds:
        raise Error(f"{path} holds no seed prompt: one a line")
    return seeds


def write_self_study(base: GPT, tokenizer: Tokenizer, tokens: Tensor, path: str | Path, count: int = 128,
                     temperature: float = TEMPERATURE, seeds: list[str] | None = None, seed: int = 0,
                     max_length: int | None = None, template: Template | None = None) -> list[Example]:
    """Fill a JSONL up to `count` examples about the document, tokens (n,) int64; return them all.

    They are fewer if the base keeps repeating itself, and more if the file already held more.

    Lines that the file holds already are kept, so a stopped run goes on, and an edited file is
    completed; equal texts are written once. Sampled tokens may decode to a text of more tokens: one
    that does not fit is dropped.

    max_length: tokens of the document and a text behind it (None: the base's block size); template:
    as training fills it (None: the input alone). Raises Error as `prefill` does, and for a document
    that leaves no room behind it.
    """
    at_least_one("count", count)
    text, path, room = prefill(base, tokens), Path(path), room_behind(base, tokens, max_length)
    template = template or Template(PLAIN)
    found, model, seeds = read_lines(path), SlottedBase(base, Slots(prefix=text)), seeds or read_seeds()
    with progress(total=count, initial=min(len(found), count), desc="self-study", unit="text") as bar:
        for batch in range(len(found) // BATCH, 20 * count // BATCH + 20):
            if len(found) >= count:
                break
            kind = TEXT_KINDS[batch % len(TEXT_KINDS)]
            with torch.random.fork_rng():
                torch.manual_seed(seed + batch)
                written = texts(model, tokenizer, tokens, Random(f"{seed}/{batch}"), kind, seeds, room,
                                temperature)
            new = [e for e in dict.fromkeys(written) if e.target.strip() and e not in found]
            cut = ((e, e._replace(input="")) for e in new)  # training cuts inputs, not targets
            fitting = [e for e, least in cut if tokenize(least, tokenizer, template).length <= room]
            new = fitting[: count - len(found)]
            with open(path, "a", encoding="utf-8") as f:
                f.writelines(json.dumps({"input": e.input, "target": e.target}, ensure_ascii=False) + "\n" for e in new)
            found += new
            bar.update(len(new))
    return found


def room_behind(base: GPT, tokens: Tensor, max_length: int | None = None) -> int:
    """Tokens that a text behind the document may have. Raises Error if too few for self-study."""
    block_size = base.config.block_size
    max_length = block_size if max_length is None else min(max_length, block_size)
    if (room := max_length - len(tokens)) < ROOM:
        limit = "the base's block size" if max_length == block_size else "max_length"
        raise Error(f"the document's {len(tokens):,} tokens leave {max(0, room)} of {limit} {max_length:,}: "
                    f"self-study needs {ROOM}")
    return room


def read_lines(path: Path) -> list[Example]:
    """Examples of a self-study file, [] without one; a last line cut short is removed."""
    if not file_exists(path):
        return []
    text = read_text(path)
    whole, last = text[: text.rfind("\n") + 1], text[text.rfind("\n") + 1 :]
    if last:
        with contextlib.suppress(ValueError):  # whole, but an editor left out its line break
            json.loads(last)
            whole = f"{text}\n"
        write_text(path, whole)
    return read_examples(path) if whole.strip() else []


def texts(model: SlottedBase, tokenizer: Tokenizer, tokens: Tensor, rng: Random, kind: str, seeds: list[str], room: int,
          temperature: float) -> list[Example]:
    """BATCH examples of one kind."""
    length = min(PASSAGE, room - 1, len(tokens))
    starts = [rng.randint(0, len(tokens) - length) for _ in range(BATCH)]
    passages = [whole_characters(tokenizer, tokens[a : a + length].tolist()) for a in starts]
    fronts = [whole_characters(tokenizer, passage[:BEGIN]) for passage in passages]
    begins = [tokenizer.decode(front) for front in fronts]
    if kind == "passage":
        return [Example(begin, decode_behind(tokenizer, passage[len(front) :]))
                for begin, front, passage in zip(begins, fronts, passages, strict=True)]
    inputs = begins if kind == "continuation" else [rng.choice(seeds).replace("{passage}", begin) for begin in begins]
    ids = [with_begin(tokenizer, text)[: room - 1] for text in inputs]  # as training and generation read them
    lengths = torch.tensor([len(row) for row in ids], device=tokens.device)
    T = int(lengths.max())
    idx = torch.tensor([row + [tokenizer.end] * (T - len(row)) for row in ids], device=tokens.device)
    out = generate(model, idx, min(TARGET, room - T), temperature, stop_token=tokenizer.stops,
                   lengths=lengths)
    written = []
    for text, row, n in zip(inputs, out.tolist(), lengths.tolist(), strict=True):
        new = row[n:]
        end = next((i for i, token in enumerate(new) if token in tokenizer.stops), None)
        written.append(Example(text, decode_behind(tokenizer, whole_characters(tokenizer, new[:end]))))
    return written


def whole_characters(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """The ids without those of a character of several tokens that was cut at either end."""
    for _ in range(3):  # a character is at most four bytes
        text = tokenizer.decode(ids)
        ids = ids[text.startswith("\ufffd") : len(ids) - text.endswith("\ufffd")]
    return ids
