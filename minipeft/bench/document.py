"""A document as a prefix: how much of it P rows keep, by every way, and what that costs.

Of every document the first --tokens are the text, and the --held-out tokens right behind it the
test: KL from the base behind the whole text to the base behind P rows, in nats a token, and the
loss there. With --tables N the documents are N tables of facts (data/tasks.py), the test is
questions for all of them, and exact match is the share of those answered right. Self-study KL is
that on self-study texts which distillation does not read. Ways:

    none        no document at all
    first, last the P rows at the text's begin, or its first and the P - 1 at its end, in their places
    attended    the P rows of every key head with most attention when the text is read again, as they are
    summary     P tokens that the base writes behind the text, in the text's place (of tables none: it writes facts)
    match       attention matching (2602.16284): keys chosen, bias and values fitted, no training
    distil      the prefix of `match`, trained on self-study (2506.06266); its seeds draw other texts
    text        all n rows: the reference

Seconds are those of building the prefix; of `distil` with its matching, and self-study beside.
Decode: milliseconds of a token behind the prefix, one row, of 16 tokens, for which the weights may
be laid out anew.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from ..attach import adapt
from ..checks import Error
from ..data.batches import Epochs
from ..data.encoding import Encoded, collate, tokenize
from ..data.files import read_text
from ..data.tasks import FACTS, draw_facts, entries
from ..data.template import Template
from ..data.tokenizer import ByteTokenizer, Tokenizer, tokenizer_for
from ..documents import divergence, match, prefill, rows, write_self_study
from ..documents.matching import match_by_attention
from ..documents.self_study import ROOM
from ..files.huggingface import find_base
from ..inference.generation import generate
from ..inference.task_bank import SlottedBase
from ..methods.prefix_tuning import PrefixTuning
from ..model import GPT
from ..runtime.console import Parser, local_path, note
from ..runtime.memory import resident_peak
from ..runtime.profiling import card
from ..slots import Prefix, Slots
from ..training.document_run import BATCH_SIZE, EPOCHS, LEARNING_RATE, PLAIN, SELF_STUDY
from ..training.loop import train
from . import flags
from .measure import card_line, cell, columns

DOCUMENTS = ("docs/lessons/2-the-ladder.md", "docs/own-data.md")
TOKENS, HELD_OUT = 1024, 256  # of the document, and behind it
DECODED = 16  # tokens whose time is measured
IN_SHORT = "\n\nIn short, the text above says that"  # asks for a summary
APART = 8  # self-study texts that are learnt for each that is held out


@dataclass(frozen=True, kw_only=True)
class DocumentSettings:
    base: str
    documents: tuple[str, ...] | None  # this and the two sizes: None for tables
    tables: int | None
    tokens: int | None
    held_out: int | None
    compression: tuple[int, ...]
    distil: tuple[int, ...]
    self_study: int
    epochs: int
    seeds: int
    device: str


def add_flags(p: Parser) -> None:
    add = p.add_argument_group("base").add_argument
    add("--base", default="nano", metavar="FOLDER", type=local_path,
        help="a base; SmolLM2-135M for real text")
    add = p.add_argument_group("document").add_argument
    add("--documents", nargs="+", metavar="FILE", type=local_path,
        help=f"texts (default: {' '.join(DOCUMENTS)})")
    add("--tables", type=int, metavar="N",
        help="N tables of facts as documents, in place of --documents")
    add("--tokens", type=int, metavar="N",
        help=f"of each text that are the document (default: {TOKENS})")
    add("--held-out", type=int, metavar="T",
        help=f"tokens behind them, the test (default: {HELD_OUT})")
    add("--compression", type=int, nargs="+", default=[1, 4, 8, 16, 32, 64], metavar="X",
        help="P = N / X")
    add("--distil", type=int, nargs="*", metavar="X",
        help="those at which to distil, too (default: 4, 16 and 64, if in --compression)")
    add("--self-study", type=int, default=SELF_STUDY, metavar="N", help="texts to distil on")
    add("--epochs", type=int, default=EPOCHS, metavar="E", help="over them")
    add("--seeds", type=int, default=1, metavar="S", help="runs of each distillation")
    flags.add_machine_flags(p)


def settings(args: argparse.Namespace) -> DocumentSettings:
    """Raises Error for sizes that are none."""
    counts = ("tokens", "self_study", "epochs", "seeds", "compression", "distil", "tables")
    least = {"held_out": 2} | dict.fromkeys(counts, 1)
    for name, bound in least.items():
        given = getattr(args, name)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and value < bound:
                raise Error(f"--{name.replace('_', '-')} must be at least {bound}, not {value}")
    for name, default in (("documents", DOCUMENTS), ("tokens", TOKENS), ("held_out", HELD_OUT)):
        if args.tables is not None and getattr(args, name) is not None:
            raise Error(f"--{name.replace('_', '-')} is of texts: it does not go with --tables")
        if args.tables is None and getattr(args, name) is None:
            setattr(args, name, default)
    possible = [x for x in args.compression if x > 1]
    args.distil = [x for x in possible if x in (4, 16, 64)] if args.distil is None else args.distil
    if not {*args.distil} <= {*possible}:
        raise Error(f"--distil {' '.join(map(str, args.distil))} must be of --compression, and above 1")
    return flags.from_flags(DocumentSettings, args)


def run(s: DocumentSettings) -> dict:
    """{"card", "settings", "rows", "study_seconds", "peak_bytes"}, ready for JSON."""
    folder = find_base(s.base)
    base = GPT.from_pretrained(folder, torch.float32).to(s.device).requires_grad_(False)
    tokenizer = tokenizer_for(base.config.vocab_size, folder)
    found, studies = [], {}
    for document in list(documents(s, base, tokenizer)):  # all are read before the first is measured
        ways = Ways(s, base, tokenizer, document)
        for row in ways.rows():
            found.append({"document": document.name, "tokens": len(document.tokens), **row})
            note("{document} {way} {rows}: KL {kl:.4f}".format(**found[-1]))
        studies |= {document.name: ways.study_seconds}
    return {"card": card(torch.device(s.device)), "settings": asdict(s), "rows": found, "study_seconds": studies,
            "peak_bytes": resident_peak()}


class Document(NamedTuple):
    """A text, and what it is tested on."""

    name: str
    tokens: Tensor  # (n,) int64
    held: list[Tensor]  # texts (T,) that stand behind it
    questions: Tensor | None = None  # (N, T), each behind it
    answers: Tensor | None = None  # (N,): the token behind each
    seeds: list[str] | None = None  # inputs of self-study, where not those of seeds.txt


def documents(s: DocumentSettings, base: GPT, tokenizer: Tokenizer) -> Iterator[Document]:
    """Those of the files, or --tables tables. Raises Error for a text that is too short."""
    if s.tables is not None:
        if not isinstance(tokenizer, ByteTokenizer):
            raise Error(f"--tables are for a base that reads bytes, such as lookup: {s.base} has a tokenizer")
        for seed in range(s.tables):
            document = table_of_facts(seed, tokenizer, s.device)
            if len(document.tokens) < max(s.compression):
                raise Error(f"a table has {len(document.tokens)} tokens: too few for --compression "
                            f"{max(s.compression)}")
            yield document
        return
    names = [Path(path).name for path in s.documents]
    for path, name in zip(s.documents, names, strict=True):
        ids = torch.tensor(tokenizer.encode(read_text(path)), device=s.device)
        behind = max(s.held_out, len(tokenizer.encode(IN_SHORT)) + 1, ROOM)  # the test, a summary, self-study
        n = min(s.tokens, len(ids) - s.held_out, base.config.block_size - behind)
        if n < max(s.compression):
            raise Error(f"{path} has {len(ids):,} tokens, the base's block size is {base.config.block_size:,}, and "
                        f"{behind} stand behind it: too few for --compression {max(s.compression)}")
        yield Document(name if names.count(name) == 1 else path, ids[:n], [ids[n : n + s.held_out]])


def table_of_facts(seed: int, tokenizer: Tokenizer, device: str) -> Document:
    """A table that no example of pretraining is, and every fact of it as a question."""
    rng = Random(f"table/{seed}")
    facts = draw_facts(rng, FACTS)
    keys = rng.sample(list(facts), len(facts))

    def ids(texts: list[str]) -> Tensor:
        return torch.tensor([tokenizer.encode(text) for text in texts], device=device)

    return Document(f"table {seed}", ids([f"{entries(facts, facts)} "])[0], [ids([f"-> {entries(facts, keys)}"])[0]],
                    ids([f"-> {key}" for key in keys]), ids([facts[key] for key in keys])[:, 0], ["-> "])


class Study(NamedTuple):
    """Self-study texts: to distil on, and apart from them."""

    records: list[Encoded]
    held: list[Tensor]  # (T,): one for every APART of the others


class Ways:
    """The rows of one document."""

    def __init__(self, s: DocumentSettings, base: GPT, tokenizer: Tokenizer, document: Document):
        self.s, self.base, self.tokenizer, self.document = s, base, tokenizer, document
        self.tokens, self.held = document.tokens, document.held
        self.whole, self.study_seconds = prefill(base, self.tokens), []
        self.studies: list[Study] = []

    def rows(self):
        n, s = len(self.tokens), self.s
        yield self.row("none", lambda: None)
        for x in s.compression:
            P = n // x
            if x == 1:
                yield self.row("text", lambda: prefill(self.base, self.tokens))
                yield self.row("match", lambda: match(self.base, self.tokens, n))
                continue
            first = torch.arange(P, device=self.tokens.device)
            last = torch.cat([first[:1], torch.arange(n - P + 1, n, device=self.tokens.device)])
            yield self.row("first", lambda keep=first: rows(self.whole, keep))
            yield self.row("last", lambda keep=last: rows(self.whole, keep))
            yield self.row("attended", lambda P=P: match_by_attention(self.base, self.tokens, P))
            if self.document.questions is None:
                yield self.row("summary", lambda P=P: self.summary(P))
            studies = [self.study(seed) for seed in range(s.seeds if x in s.distil else 0)]
            yield self.row("match", lambda P=P: match(self.base, self.tokens, P), studies=studies)
            for seed, study in enumerate(studies):
                yield self.row("distil", lambda P=P, study=study, seed=seed: self.distilled(
                    match(self.base, self.tokens, P), study, seed), seed, [study])

    def row(self, way: str, build, seed: int = 0, studies: "Sequence[Study]" = ()) -> dict:
        began = time.perf_counter()
        prefix = build()
        seconds = time.perf_counter() - began
        kl, loss = divergence(self.base, self.whole, prefix, self.held)
        on_study = [divergence(self.base, self.whole, prefix, study.held).kl for study in studies]
        held = [] if prefix is None else [t for t in (prefix.k, prefix.v, prefix.bias) if t is not None]
        kept = 0 if prefix is None else prefix.k.size(3)  # a summary may have no room for P
        return {"way": way, "rows": kept, "seed": seed, "kl": kl, "loss": loss,
                "study_kl": fmean(on_study) if on_study else None, "exact_match": self.exact_match(prefix),
                "seconds": seconds, "bytes": sum(t.nbytes for t in held), "decode_ms": self.decode(prefix)}

    @torch.no_grad()
    def exact_match(self, prefix: Prefix | None) -> float | None:
        """Share of the questions whose answer is the most likely token."""
        if self.document.questions is None:
            return None
        found = self.base(self.document.questions, prefix=prefix)[:, -1].argmax(-1)
        return float((found == self.document.answers).float().mean())

    def decode(self, prefix: Prefix | None) -> float:
        """Milliseconds of a token, one row, greedily: of DECODED more, the least of three times."""
        model, idx = SlottedBase(self.base, Slots(prefix=prefix)), self.held[0][None, :8]

        def seconds(new: int) -> float:
            began = time.perf_counter()
            generate(model, idx, new)
            return time.perf_counter() - began

        return 1000 * min(seconds(1 + DECODED) - seconds(1) for _ in range(3)) / DECODED

    def summary(self, P: int) -> Prefix:
        """P tokens by the base, asked for the text in short; they take the text's positions."""
        ask = torch.tensor(self.tokenizer.encode(IN_SHORT), device=self.tokens.device)
        room = self.base.config.block_size - len(self.tokens) - len(ask)
        written = generate(SlottedBase(self.base, Slots(prefix=self.whole)), ask[None], min(P, room))[0, len(ask) :]
        return prefill(self.base, written)._replace(positions=len(self.tokens))

    def study(self, seed: int) -> Study:
        """Self-study of a seed; written once for all P."""
        if seed == len(self.studies):
            began = time.perf_counter()
            count = self.s.self_study + -(-self.s.self_study // APART)
            with tempfile.TemporaryDirectory() as folder:
                examples = write_self_study(self.base, self.tokenizer, self.tokens, Path(folder) / "study.jsonl", count,
                                            seeds=self.document.seeds, seed=1000 * seed)
            records = [tokenize(e, self.tokenizer, Template(PLAIN)) for e in examples]
            held = [torch.tensor([*r.prompt, *r.completion], device=self.tokens.device) for r in records[:: APART + 1]]
            self.studies.append(Study([r for i, r in enumerate(records) if i % (APART + 1)], held))
            self.study_seconds.append(time.perf_counter() - began)
        return self.studies[seed]

    def distilled(self, start: Prefix, study: Study, seed: int) -> Prefix:
        """The prefix trained on the study, as train.py --how distil does."""
        epochs = Epochs([record.length for record in study.records], BATCH_SIZE, seed)

        def batch(step: int):
            return collate([study.records[i] for i in epochs.batch(step)], self.tokenizer.end)

        torch.manual_seed(seed)
        model = adapt(self.base, PrefixTuning.name, init=start)
        model.distil_from(self.whole)
        train(model, batch, self.s.epochs * epochs.steps, LEARNING_RATE)
        with torch.no_grad():
            prefix = model.method.ladder_value()
        prefix = prefix._replace(**{x: getattr(prefix, x).clone() for x in ("k", "v", "bias")})
        model.detach()
        self.base.requires_grad_(False)
        return prefix


def table(result: dict) -> str:
    """The result as aligned text."""
    s = result["settings"]
    where = f"{s['base']}: the {s['held_out']} tokens behind each document"
    if s["tables"] is not None:
        where = f"{s['base']}: questions for all facts of each table"
    cells = {"document": cell("document", "{}"), "way": cell("way", "{}"), "rows": cell("rows", "{:,}"),
             "KL": cell("kl", "{:.4f}"), "loss": cell("loss", "{:.3f}"),
             "KL, self-study": cell("study_kl", "{:.4f}"), "exact": cell("exact_match", "{:.3f}"),
             "seconds": cell("seconds", "{:.1f}"),
             "KB": lambda row: f"{row['bytes'] / 1000:,.0f}", "decode ms": cell("decode_ms", "{:.1f}")}
    return "\n".join([card_line(result["card"]), where, "", *columns(cells, result["rows"])])
