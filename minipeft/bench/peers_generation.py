"""Greedy generation with a prefix, here and in peft + transformers, eagerly.

Both have the same weights, prefix and input, and append 48 tokens with their own generate(),
interleaved. *ms a token* is the time of the whole call, its pass over the input included, over 48.
*floor ms* is the time to read the weights once, as every token must, at the memory bandwidth
measured in the same run. *departures* counts tokens whose logit in the program's own full forward
pass is below the largest by more than rounding: minipeft must have none. Needs the extras of
requirements-extra.txt.
"""

import argparse
import copy
import functools
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..adapters import load_adapter
from ..attach import adapt
from ..checks import Error
from ..files.huggingface import find_base, read_base_config
from ..inference.generation import generate
from ..methods.prefix_tuning import PrefixTuning
from ..model import GPT
from ..runtime.console import Parser
from ..runtime.profiling import card
from . import flags
from .measure import MS, ReadRate, card_line, cell, columns, time_all
from .peers import check_in_transformers, extras, open_in_transformers, versions

NEW = 48  # tokens of a continuation


@dataclass(frozen=True, kw_only=True)
class GenerationSettings(flags.PeerSettings):
    batch_sizes: tuple[int, ...]
    seq_len: int
    steps: int


def add_flags(p: Parser) -> None:
    flags.add_peer_flags(p)
    add = p.add_argument_group("generation").add_argument
    add("--generate", action="store_true", required=True,
        help="this measurement, of those of bench.py peers")
    add("--batch-sizes", type=int, nargs="+", default=[1, 8], metavar="B", help="rows of a batch")
    add("--seq-len", type=int, default=16, metavar="T", help="tokens of the input")
    flags.add_machine_flags(p, 5, "timed generations of each")


def settings(args: argparse.Namespace) -> GenerationSettings:
    """Raises Error for a batch without rows, and for tokens that do not fit."""
    if min(args.batch_sizes) < 1:
        raise Error(f"--batch-sizes must be at least 1, not {min(args.batch_sizes)}")
    config, _ = read_base_config(find_base(args.base))
    check_in_transformers(config)
    extras()
    flags.check_fits(args.num_virtual_tokens, args.seq_len + NEW, config)
    return flags.from_flags(GenerationSettings, args)


def ours(base: GPT, start: str):
    """minipeft's generate(), and the logits of a full forward pass."""
    model = load_adapter(base, start)
    return lambda idx: generate(model, idx, NEW), model


def theirs(s: GenerationSettings, start: str):
    """PEFT's."""
    base = open_in_transformers(find_base(s.base), s.dtype, s.device)
    base.generation_config.eos_token_id = None  # no row ends early
    model = extras()[0].PeftModel.from_pretrained(base, start).eval()

    def generated(idx: Tensor) -> Tensor:
        return model.generate(input_ids=idx, attention_mask=torch.ones_like(idx), max_new_tokens=NEW,
                              do_sample=False, pad_token_id=0)

    return generated, lambda idx: model(input_ids=idx).logits


@torch.no_grad()
def departures(out: Tensor, logits_of: Callable[[Tensor], Tensor],
               in_float32: Callable[[Tensor], Tensor]) -> int:
    """Generated tokens whose logit in a full forward pass is below the largest by more than
    rounding: twice what the logits of that position differ from those in float32, and 1e-4 of the
    largest."""
    logits, exact = (f(out[:, :-1])[:, -NEW:].float() for f in (logits_of, in_float32))  # (B, NEW, V)
    gap = logits.amax(-1) - logits.gather(-1, out[:, -NEW:, None]).squeeze(-1)
    return int((gap > 2 * (logits - exact).abs().amax(-1) + 1e-4 * logits.abs().amax()).sum())


def run(s: GenerationSettings) -> dict:
    """{"card", "settings", "bandwidth", "floor_ms", "rows"}, ready for JSON."""
    device, rows, calls, rate = torch.device(s.device), [], [], ReadRate(torch.device(s.device))
    torch.manual_seed(s.seed)
    base = GPT.from_pretrained(s.base, getattr(torch, s.dtype)).to(device)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as start:
        warnings.simplefilter("ignore")
        adapt(base, PrefixTuning.name, num_virtual_tokens=s.num_virtual_tokens).save(start)
        rivals = {"minipeft": ours(base, start), "peft": theirs(s, start)}
        _, in_float32 = ours(copy.deepcopy(base).float(), start)
        for B in s.batch_sizes:
            idx = torch.randint(base.config.vocab_size, (B, s.seq_len)).to(device)
            for name, (generated, logits_of) in rivals.items():
                calls.append(functools.partial(generated, idx))
                n = departures(calls[-1](), logits_of, in_float32)
                if n and name == "minipeft":
                    raise Error(f"{n} of {B * NEW} generated tokens are not the full forward pass's")
                rows.append({"rival": name, "B": B, "tokens": B * NEW, "departures": n})
        with tqdm(total=s.steps, unit="round", desc="peers", dynamic_ncols=True) as bar:
            (times,) = time_all([calls], s.steps, device, bar, rate)
    floor = 1000 * (sum(p.nbytes for p in base.h.parameters()) + base.head.nbytes) / rate.value
    for row, ms in zip(rows, times, strict=True):
        row["token_ms"] = {name: value / NEW for name, value in ms.items()}
    for row in rows:
        peft = next(r for r in rows if r["B"] == row["B"] and r["rival"] == "peft")
        row["against_peft"] = row["token_ms"]["median"] / peft["token_ms"]["median"]
        row["floor_against_peft"] = floor / peft["token_ms"]["median"]
    return {"card": card(device) | versions(), "settings": asdict(s), "bandwidth": rate.value, "floor_ms": floor,
            "rows": rows}


def table(result: dict) -> str:
    """The result as aligned text."""
    s, rows = result["settings"], result["rows"]
    cells = {  # heading: cell of a row
        "": cell("rival", "{}"),
        "B": cell("B", "{}"),
        "ms a token (p10–p90)": cell("token_ms", MS),
        "× peft": cell("against_peft", "{:.2f}"),
        "floor ms": lambda r: f"{result['floor_ms']:,.1f}",
        "floor × peft": cell("floor_against_peft", "{:.2f}"),
        "departures": lambda r: f"{r['departures']} of {r['tokens']}",
    }
    setting = (f"{Path(s['base']).name}: {s['dtype']}, a prefix of {s['num_virtual_tokens']}, T {s['seq_len']}, "
               f"{NEW} new tokens, {s['steps']} generations, seed {s['seed']}; memory read at "
               f"{result['bandwidth'] / 1e9:,.1f} GB/s")
    return "\n".join([card_line(result["card"]), setting, "", *columns(cells, rows),
                      "departures: generated tokens that the program's own full forward pass would not choose"])
