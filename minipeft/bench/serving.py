"""Cost of serving: many tasks in one batch, and a long prefix that all rows share.

Decoding one token reads every weight once for the whole batch, so tokens are cheap in large
batches. Tasks that are prefixes share the weights: a batch of 64 tasks reads them once, 64 fully
tuned copies are read one after the other. A prefix that rows share is read once for all of them, as
one matmul with all queries (Hydragen, 2402.05099); copies of it in the rows' caches are stored and
read once per row.

Every way of serving decodes greedily from the same prompts with a key-value cache, on random
weights, interleaved token by token with the others. Peak memory is measured in a new process per
way, base and cache included. *floor ms* is the time that a token's matmuls take at the speed of
large matmuls, or reading weights, keys and values at the memory bandwidth, whichever is longer,
both measured in the same rounds.
"""

import argparse
import functools
import math
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from ..accounting import base_parameters, inference
from ..accounting.shapes import PRESETS
from ..attach import Adapted, adapt
from ..attention import prefix_attention
from ..checks import Error
from ..inference.generation import allocate_cache
from ..inference.task_bank import TaskBank
from ..methods.full import Full
from ..methods.lora import LoRA
from ..methods.prefix_tuning import PrefixTuning
from ..model import GPT
from ..runtime.console import Parser
from ..runtime.matmul import product
from ..runtime.memory import available_memory
from ..runtime.profiling import card, synchronize
from ..slots import KVCache, Prefix, Slots
from . import flags
from .measure import MS, MatmulRate, ReadRate, cell, columns, header, milliseconds, peak_bytes, spread, time_all

SAME = 1e-3  # relative distance of hidden states that only rounding can make


@dataclass(frozen=True, kw_only=True)
class ServingSettings(flags.WorkSettings):
    """config: its block size fits the longest prefix; seq_len: tokens of the prompts."""

    tasks: tuple[int, ...]
    num_virtual_tokens: int  # of every task
    prefixes: tuple[int, ...]


def add_flags(p: Parser) -> None:
    flags.add_base_flags(p, "gpt2")
    add = p.add_argument_group("tasks and prefixes").add_argument
    add("--tasks", type=int, nargs="+", default=[1, 8, 64], metavar="N",
        help="numbers of tasks in a batch")
    add("--num-virtual-tokens", type=int, default=20, metavar="P", help="of every task")
    add("--prefixes", type=int, nargs="+", default=[128, 1024, 16384], metavar="P",
        help="lengths of a prefix that all rows share; the base's block size grows with them")
    flags.add_batch_flags(p, 64, 16, "tokens of the prompts")
    flags.add_machine_flags(p, 12, "timed tokens of each")


def settings(args: argparse.Namespace) -> ServingSettings:
    """Raises Error for sizes below 1, and for more tasks than rows."""
    for name in ("tasks", "num_virtual_tokens", "prefixes"):
        if min(value if isinstance(value := getattr(args, name), list) else [value]) < 1:
            raise Error(f"--{name.replace('_', '-')} must be at least 1")
    if max(args.tasks) > args.batch_size:
        raise Error(f"{max(args.tasks)} tasks do not fit a batch of {args.batch_size} rows: "
                    "every row has one")
    longest = max(*args.prefixes, args.num_virtual_tokens) + args.seq_len + args.steps + 2
    config = PRESETS[args.preset]
    config = replace(config, block_size=max(config.block_size, longest))
    return flags.from_flags(ServingSettings, args, config)


@dataclass(frozen=True)
class Row:
    """One way to serve a batch."""

    kind: str  # "base", "prefix tasks", "lora tasks", "full copies", or a prefix: "shared", "copied"
    n: int = 0  # tasks, or copies
    P: int = 0  # virtual tokens


def rows_of(s: ServingSettings) -> list[Row]:
    rows = [Row("base")]
    rows += [Row("prefix tasks", n, s.num_virtual_tokens) for n in s.tasks]
    rows += [Row("lora tasks", n) for n in s.tasks]
    rows += [Row("full copies", n) for n in s.tasks if n > 1]
    return rows + [Row(kind, P=P) for P in s.prefixes if P for kind in ("shared", "copied")]


class Decoder:
    """Greedy decoding of a batch: the first step processes the prompts, each later one a token."""

    def __init__(self, base: GPT, idx: Tensor, slots: Slots, steps: int,
                 copied: Prefix | None = None):
        self.base, self.idx, (B, T) = base, idx, idx.shape
        self.cache, self.slots = allocate_cache(base, slots, B, T + steps)
        if copied is not None:  # a prefix in every row's cache, before the prompt
            P, c = copied.k.size(3), base.config
            shape = (2, c.n_layer, B, c.n_kv, P + T + steps, c.head_size)
            k, v = base.wte.weight.new_empty(shape)
            k[:, :, :, :P], v[:, :, :, :P] = copied.k, copied.v
            self.cache = KVCache(k, v, read=P, virtual=P)

    @torch.no_grad()
    def step(self) -> None:
        self.last = x = self.base.hidden(self.idx, *self.slots, cache=self.cache)[:, -1]  # (B, C)
        self.cache = self.cache.after(self.idx.size(1))
        self.idx = product(x, self.base.head).argmax(dim=-1, keepdim=True)  # (B, 1)


def build(s: ServingSettings, row: Row, base: GPT | None = None) -> list[Decoder]:
    """The decoders of a row: one, or one per copy of the base."""
    torch.manual_seed(s.seed)
    c, steps = s.config, s.steps + 2
    idx = torch.randint(c.vocab_size, (s.batch_size, s.seq_len), device=s.device)
    if row.kind == "full copies":
        return [Decoder(GPT(s.config).to(s.device), part, Slots(), steps) for part in idx.tensor_split(row.n)]
    base = GPT(s.config).to(s.device) if base is None else base
    if row.kind == "base":
        return [Decoder(base, idx, Slots(), steps)]
    if row.kind in ("shared", "copied"):
        k, v = torch.randn(2, c.n_layer, 1, c.n_kv, row.P, c.head_size, device=s.device)
        if row.kind == "copied":
            return [Decoder(base, idx, Slots(), steps, copied=Prefix(k, v))]
        return [Decoder(base, idx, Slots(prefix=Prefix(k, v)), steps)]
    method, h = row.kind.removesuffix(" tasks"), {"num_virtual_tokens": row.P} if row.P else {}
    bank = TaskBank(base, {str(i): random_task(base, method, h) for i in range(row.n)})
    rows = bank.rows([str(i % row.n) for i in range(s.batch_size)])
    return [Decoder(base, idx, rows.slots(), steps)]


def random_task(base: GPT, method: str, h: dict) -> Adapted:
    """A task that changes what the base computes, as the initial values of some methods do not."""
    model = adapt(base, method, **h)
    for p in model.trainable_parameters():
        p.detach().normal_(std=0.02)
    return model


def step_all(decoders: list[Decoder]) -> None:
    for d in decoders:
        d.step()


def check_states(states: dict[Row, Tensor]) -> None:
    """Raise Error unless each row's last hidden states (B, C) differ from the base's, and a copied
    prefix gives those of a shared one, a mixed batch those of one task in its first row."""
    base = states[Row("base")]
    for row, x in states.items():
        if row.kind in ("base", "full copies"):
            continue
        same = replace(row, kind="shared") if row.kind == "copied" else replace(row, n=min(1, row.n))
        twin = states.get(same, x)[: 1 if row.n else None]
        if not (distance(x, base) > SAME >= distance(x[: len(twin)], twin)):
            raise Error(f"{row} decodes wrongly: its hidden states differ by {distance(x, base):.1e} from the base's, "
                        f"by {distance(x[: len(twin)], twin):.1e} from those of {same}")


def distance(x: Tensor, y: Tensor) -> float:
    return float((x - y).norm() / y.norm())


def decode_three(s: ServingSettings, row: Row) -> None:
    """The work of the peak-memory process: process the prompts and decode two tokens."""
    decoders = build(s, row)
    for _ in range(3):
        step_all(decoders)
    synchronize(torch.device(s.device))


def bytes_needed(s: ServingSettings, row: Row) -> int:
    """A lower bound of the row's memory beside the base; rows that cannot fit are skipped."""
    c = s.config
    if row.kind == "full copies":
        return 4 * row.n * base_parameters(c)
    prefixes = s.batch_size if row.kind == "copied" else max(1, row.n)
    return 4 * 2 * c.n_layer * c.n_kv * c.head_size * row.P * prefixes


def work(s: ServingSettings, row: Row) -> tuple[int, int]:
    """FLOPs, and bytes read (weights, keys, values), of the middle timed token, in float32."""
    c, B, T = s.config, s.batch_size, s.seq_len + 1 + s.steps // 2
    method, h = Full.name, {}
    if row.P:
        method, h = PrefixTuning.name, {"num_virtual_tokens": row.P}
    elif row.kind == "lora tasks":
        method = LoRA.name
    i = inference(c, method, B, T, **h)
    looked_up = (not c.tied) * c.vocab_size + (c.position == "learned") * c.block_size  # rows of embeddings
    weights = base_parameters(c) - looked_up * c.n_embd
    prefixes = B if row.kind == "copied" else row.n or 1
    copies = row.n if row.kind == "full copies" else 1
    return B * i.token_flops, 4 * copies * weights + i.cache_bytes + prefixes * i.shared_bytes


def fits(s: ServingSettings, row: Row) -> bool:
    left = available_memory(torch.device(s.device))
    return 1.2 * bytes_needed(s, row) < (math.inf if left is None else left)


def run(s: ServingSettings) -> dict:
    """{"card", "settings", "flops_per_s", "bytes_per_s", "rows", "left_out", "attention", "ratios"}, for JSON."""
    device, every = torch.device(s.device), rows_of(s)
    rows = [row for row in every if fits(s, row)]
    left_out = [row for row in every if row not in rows]
    total, peaks, decoders, states = 2 * len(rows) + s.steps, {}, {}, {}
    with tqdm(total=total, unit="row", desc="peak memory", dynamic_ncols=True) as bar:
        for row in rows:
            peaks[row] = peak_bytes(device, decode_three, s, row)
            bar.update()
        bar.set_description("prompts")
        torch.manual_seed(s.seed)
        base = GPT(s.config).to(s.device)
        for row in rows:
            if not fits(s, row):  # beside the others
                left_out.append(row)
                continue
            decoders[row] = build(s, row, base)
            step_all(decoders[row])  # the prompts
            states[row] = torch.cat([d.last for d in decoders[row]])
            step_all(decoders[row])  # a first token, not timed
            bar.update()
        check_states(states)
        bar.set_description("decoding")
        calls = [functools.partial(step_all, ds) for ds in decoders.values()]
        matmuls, reads = MatmulRate(torch.float32, device), ReadRate(device)
        (times,) = time_all([calls], s.steps, device, bar, lambda: (matmuls(), reads()))
    results = []
    for row, step in zip(decoders, times, strict=True):
        peak, (flops, read) = peaks[row], work(s, row)
        results.append({**asdict(row), "step_ms": step,
                        "floor_ms": 1000 * max(flops / matmuls.value, read / reads.value),
                        "tokens_per_s": 1000 * s.batch_size / step["median"], "peak_bytes": peak,
                        "extra_bytes": None if peak is None else peak - peaks[rows[0]]})
    del decoders, calls
    for r in results:
        r["against_base"] = r["tokens_per_s"] / results[0]["tokens_per_s"]
    alone = attention_alone(s, [r["P"] for r in results if r["kind"] == "copied"], device)
    missing = [{**asdict(row), "bytes_needed": bytes_needed(s, row)} for row in left_out]
    return {"card": card(device), "settings": asdict(s), "flops_per_s": matmuls.value,
            "bytes_per_s": reads.value, "rows": results, "left_out": missing,
            "attention": alone, "ratios": ratios(results, alone)}


@torch.no_grad()
def attention_alone(s: ServingSettings, prefixes: list[int], device: torch.device) -> list[dict]:
    """Time of one token's attention in one layer: with a shared prefix, and with copies of it."""
    c, B, results = s.config, s.batch_size, []
    T = s.seq_len + s.steps // 2
    for P in prefixes:
        q = torch.randn(B, c.n_head, 1, c.head_size, device=device)
        cached, shared = (
            [torch.randn(2, rows, c.n_kv, length, c.head_size, device=device) for _ in range(c.n_layer)]
            for rows, length in ((B, T), (1, P)))
        k, v = (torch.cat([x.expand(B, -1, -1, -1), y], dim=2)
                for x, y in zip(shared[0], cached[0], strict=True))
        times: dict[str, list[float]] = {"shared": [], "copied": []}
        for i in range(2 + 3 * s.steps):
            inputs = {"shared": (q, *cached[i % c.n_layer], *shared[i % c.n_layer]),
                      "copied": (q, k, v)}
            for kind, tensors in inputs.items():
                ms = milliseconds(functools.partial(prefix_attention, *tensors), device)
                if i >= 2:  # after two warm-up rounds
                    times[kind].append(ms)
        results.append({"P": P, "T": T, **{f"{kind}_ms": spread(ms) for kind, ms in times.items()}})
    return results


def ratios(rows: list[dict], alone: list[dict]) -> list[dict]:
    """Comparisons between rows: {"of", "to", "what", "value"}."""
    found, by_size = [], {(r["kind"], r["n"] or r["P"]): r for r in rows}

    def add(of: str, to: str, value: float, what: str = "throughput") -> None:
        found.append({"of": of, "to": to, "what": what, "value": value})

    for r in rows:
        kind, n, P, speed = r["kind"], r["n"], r["P"], r["tokens_per_s"]
        if n > 1 and (one := by_size.get((kind, 1))):
            add(f"{n} {kind} mixed", "one", speed / one["tokens_per_s"])
        if kind == "full copies" and (mixed := by_size.get(("prefix tasks", n))):
            add(f"{n} prefix tasks mixed", f"{n} full copies", mixed["tokens_per_s"] / speed)
        if kind == "shared":
            name, to = f"a shared prefix of {P:,}", "copies of it"
            add(name, "no prefix", r["against_base"])
            if copied := by_size.get(("copied", P)):
                add(name, to, speed / copied["tokens_per_s"])
                if r["extra_bytes"] is not None and copied["extra_bytes"]:
                    memory = max(0, r["extra_bytes"]) / copied["extra_bytes"]
                    add(name, to, memory, "extra memory")
            for x in (x for x in alone if x["P"] == P):
                ratio = x["copied_ms"]["median"] / x["shared_ms"]["median"]
                add(name, to, ratio, "speed of the attention alone")
    return found


def table(result: dict) -> str:
    """The result as aligned text."""
    s = result["settings"]
    setting = (f", block size {s['config']['block_size']:,}; batch {s['batch_size']}, prompts of "
               f"{s['seq_len']} tokens, {s['steps']} tokens timed, seed {s['seed']}")
    cells = {  # heading: cell of a row
        "served": lambda r: r["kind"] + (" prefix" if r["kind"] in ("shared", "copied") else ""),
        "tasks": lambda r: str(r["n"] or "-"),
        "P": lambda r: f"{r['P']:,}" if r["P"] else "-",
        "ms a token (p10–p90)": cell("step_ms", MS),
        "floor ms": cell("floor_ms", "{:,.1f}"),
        "tokens/s": cell("tokens_per_s", "{:,.0f}"),
        "× base": cell("against_base", "{:.2f}"),
        "peak MB": cell("peak_bytes", "{:,.0f}", 1e6, missing="?"),
        "beside the base MB": cell("extra_bytes", "{:,.0f}", 1e6, missing="?"),
    }
    lines = [*header(result, setting), "", *columns(cells, result["rows"])]
    for r in result["left_out"]:
        what = f"{r['n']} {r['kind']}" if r["n"] else f"{r['kind']} prefix of {r['P']:,}"
        lines.append(f"{what}: not measured, it would take {r['bytes_needed'] / 1e9:,.1f} GB")
    lines += ["", "so:"]
    lines += [f"{r['of']}: {r['value']:.3g} × the {r['what']} of {r['to']}" for r in result["ratios"]]
    return "\n".join(lines)
