"""Self-study (Eyuboglu et al. 2025, "Cartridges", 2506.06266 §4): texts about a document, written by the model itself.

Three kinds in turn, all of them examples {"input": …, "target": …} that any --data flag reads:

    a question       the input is a line of SEEDS about a passage of the document; the target what the base, with the
                     document before it, writes behind it
    a continuation   the input is the begin of a passage; the target what the base, likewise, writes on
    a passage        the input is its begin, the target the rest, as the document has it

Distilled on these, a prefix learns to answer like the document, and not to recite it. Targets of the teacher are whole
distributions (Adapted.distil_from), so one sampled text teaches more than its tokens.
"""

import json
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from ..checks import Error, at_least_one
from ..data.tokenizer import Tokenizer
from ..inference.generation import generate
from ..model import GPT
from ..runtime.console import progress
from ..slots import Slots
from .text import prefill

SEEDS = Path(__file__).parent / "seeds.txt"  # one a line; \n is a line break, {passage} a passage of the document
KINDS = ("question", "continuation", "passage")
BEGIN, PASSAGE = 12, 96  # tokens of a passage's begin, and of a passage
TARGET = 64  # tokens that the model writes
BATCH = 8


class Behind:
    """A base behind a prefix, as a model for `generate`."""

    def __init__(self, base: GPT, prefix):
        self.base, self._slots, self.training = base, Slots(prefix=prefix), False

    def slots(self) -> Slots:
        return self._slots

    def train(self, mode: bool = True) -> None:
        """Nothing to do: for inference only."""

    eval = train


def read_seeds(path: str | Path = SEEDS) -> list[str]:
    """The lines of a file of seed prompts. Raises Error for one without any."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    seeds = [line.replace("\\n", "\n") for line in lines if line.strip() and not line.startswith("#")]
    if not seeds:
        raise Error(f"{path} holds no seed prompt: one a line")
    return seeds


def write_self_study(base: GPT, tokenizer: Tokenizer, tokens: Tensor, path: str | Path, count: int = 128,
                     temperature: float = 0.8, seeds: list[str] | None = None, seed: int = 0) -> list[dict]:
    """Write `count` examples about the document, tokens (n,) int64, to a JSONL, and return them.

    Lines that the file holds already are kept, so a stopped run goes on, and an edited file is completed; equal texts
    are written once. Raises Error as `prefill` does, and for a document that leaves no room for a text behind it.
    """
    at_least_one("count", count)
    text, path, room = prefill(base, tokens), Path(path), base.config.block_size - len(tokens)
    if room < BEGIN + 2:
        raise Error(f"the document's {len(tokens):,} tokens leave {room} of the base's block size of "
                    f"{base.config.block_size:,}: self-study needs {BEGIN + 2}")
    found, model, seeds = read_lines(path), Behind(base, text), seeds or read_seeds()
    known = {(row["input"], row["target"]) for row in found}
    drawn = len(found)
    with progress(total=count, initial=min(len(found), count), desc="self-study", unit="text") as bar:
        for batch in range(drawn // BATCH, 20 * count // BATCH + 20):
            if len(found) >= count:
                break
            torch.manual_seed(seed + batch)
            rows = texts(model, tokenizer, tokens, Random(f"{seed}/{batch}"), KINDS[batch % len(KINDS)], seeds, room,
                         temperature)
            new = [row for row in rows if (row["input"], row["target"]) not in known and row["target"].strip()]
            new = list({(row["input"], row["target"]): row for row in new}.values())[: count - len(found)]
            with open(path, "a", encoding="utf-8") as f:
                f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in new)
            known |= {(row["input"], row["target"]) for row in new}
            found += new
            bar.update(len(new))
    return found


def read_lines(path: Path) -> list[dict]:
    """The examples of a self-study file, [] if there is none; a last line cut short by a stop is removed from it."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    try:
        rows = [json.loads(line) for line in whole.splitlines()]
        assert all(isinstance(row["input"], str) and isinstance(row["target"], str) for row in rows)
    except (ValueError, KeyError, TypeError, AssertionError):
        raise Error(f'{path} must have {{"input": "…", "target": "…"}} on every line') from None
    return rows


def texts(model: Behind, tokenizer: Tokenizer, tokens: Tensor, rng: Random, kind: str, seeds: list[str], room: int,
          temperature: float) -> list[dict]:
    """BATCH examples of one kind."""
    length = min(PASSAGE, room - 1, len(tokens))
    starts = [rng.randint(0, len(tokens) - length) for _ in range(BATCH)]
    passages = [tokens[a : a + length].tolist() for a in starts]
    begins = [tokenizer.decode(passage[:BEGIN]) for passage in passages]
    if kind == "passage":
        return [{"input": begin, "target": tokenizer.decode(passage[BEGIN:])}
                for begin, passage in zip(begins, passages, strict=True)]
    inputs = begins if kind == "continuation" else [rng.choice(seeds).replace("{passage}", begin) for begin in begins]
    ids = [tokenizer.encode(text)[: room - 1] for text in inputs]
    lengths = torch.tensor([len(row) for row in ids], device=tokens.device)
    T = int(lengths.max())
    idx = torch.tensor([row + [tokenizer.end] * (T - len(row)) for row in ids], device=tokens.device)
    out = generate(model, idx, min(TARGET, room - T), temperature, stop_token=tokenizer.stops, lengths=lengths)
    rows = []
    for text, row, n in zip(inputs, out.tolist(), lengths.tolist(), strict=True):
        new = row[n:]
        end = next((i for i, token in enumerate(new) if token in tokenizer.stops), None)
        rows.append({"input": text, "target": tokenizer.decode(new[:end])})
    return rows
