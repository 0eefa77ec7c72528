"""What serving costs: many tasks in one batch, and a long prefix that all rows share.

The physics: decoding one token reads every weight once for the whole batch, so a batch of many rows is cheap and one of few is not.
Tasks that are prefixes leave the weights shared: rows of 64 tasks still read them once, where 64 fully tuned copies are read one after
the other. And a prefix shared by the rows is read once for all of them, as one product with all queries (Hydragen, 2402.05099), while
copies of it in each row's cache are read, and held, once a row.

Every row decodes greedily from the same prompts with a cache of keys and values, on random weights; token by token in turn, so that a
machine that slows down slows all rows. Peak memory is taken in a process of its own for each row, the base and its cache included.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..accounting import base_parameters
from ..attention import prefix_attention
from ..config import GPTConfig
from ..inference.generation import read_slots
from ..inference.task_bank import TaskBank
from ..methods import adapt
from ..model import GPT
from ..runtime.profiling import card, synchronize
from ..slots import KVCache, Prefix
from .measure import card_line, columns, milliseconds, peak_bytes, spread


@dataclass(frozen=True)
class Settings:
    preset: str
    config: GPTConfig  # with a block size that the longest prefix fits
    batch_size: int
    seq_len: int  # of the prompts that rows go on from
    tasks: tuple[int, ...]
    num_virtual_tokens: int  # of every task
    prefixes: tuple[int, ...]
    steps: int
    seed: int
    device: str


@dataclass(frozen=True)
class Row:
    """One way to serve a batch: kind "base", "prefix tasks", "lora tasks", "full copies" (n of them) or a prefix, "shared" or "copied"."""

    kind: str
    n: int = 0  # tasks
    P: int = 0  # virtual tokens


def rows_of(s: Settings) -> list[Row]:
    rows = [Row("base")]
    rows += [Row("prefix tasks", n, s.num_virtual_tokens) for n in s.tasks]
    rows += [Row("lora tasks", n) for n in s.tasks]
    rows += [Row("full copies", n) for n in s.tasks if n > 1]
    return rows + [Row(kind, P=P) for P in s.prefixes if P for kind in ("shared", "copied")]


class Decoder:
    """Rows of a batch that are read and then decoded, a token a step."""

    def __init__(self, base: GPT, idx: Tensor, slots: dict, steps: int, copied: Prefix | None = None):
        self.base = base
        B, T = idx.shape
        self.cache, self.slots = read_slots(base, slots, B, T + steps)
        if copied is not None:  # the prefix lies in every row's cache, before what is read
            P = copied.k.size(3)
            c = base.config
            k, v = base.wte.weight.new_empty(2, c.n_layer, B, c.n_kv, P + T + steps, c.head_size)
            k[:, :, :, :P], v[:, :, :, :P] = copied.k, copied.v
            self.cache = KVCache(k, v, read=P)
        self.idx = idx

    @torch.no_grad()
    def step(self) -> None:
        x = self.base.hidden(self.idx, **self.slots, cache=self.cache)[:, -1]
        self.cache = self.cache.after(self.idx.size(1))
        self.idx = F.linear(x, self.base.head).argmax(dim=-1, keepdim=True)  # (B, 1)


def build(s: Settings, row: Row, base: GPT | None = None) -> list[Decoder]:
    """The decoders of a row: one, or as many as there are copies of the base."""
    torch.manual_seed(s.seed)
    c, steps = s.config, s.steps + 2
    idx = torch.randint(c.vocab_size, (s.batch_size, s.seq_len), device=s.device)
    if row.kind == "full copies":
        return [Decoder(new_base(s), part, {}, steps) for part in idx.tensor_split(row.n)]
    base = new_base(s) if base is None else base
    if row.kind == "base":
        return [Decoder(base, idx, {}, steps)]
    if row.kind in ("shared", "copied"):
        k, v = torch.randn(2, c.n_layer, 1, c.n_kv, row.P, c.head_size, device=s.device)
        if row.kind == "copied":
            return [Decoder(base, idx, {}, steps, copied=Prefix(k, v))]
        return [Decoder(base, idx, {"prefix": Prefix(k, v)}, steps)]
    tasks = {}
    for i in range(row.n):
        h = {"num_virtual_tokens": row.P} if row.kind == "prefix tasks" else {"r": 8}
        tasks[str(i)] = adapt(base, "prefix" if row.kind == "prefix tasks" else "lora", **h)
    bank = TaskBank(base, tasks)
    rows = bank.rows([str(i % row.n) for i in range(s.batch_size)])
    return [Decoder(base, idx, rows.slots(), steps)]


def new_base(s: Settings) -> GPT:
    return GPT(s.config).to(s.device)


def decode_three(s: Settings, row: Row) -> None:
    """What the peak-memory process does: read the prompts and decode two tokens."""
    decoders = build(s, row)
    for _ in range(3):
        for d in decoders:
            d.step()
    synchronize(torch.device(s.device))


def bytes_needed(s: Settings, row: Row) -> int:
    """What the row holds for certain beside the base: what would not fit is not tried."""
    if row.kind == "full copies":
        return 4 * row.n * base_parameters(s.config)
    return 4 * 2 * s.config.n_layer * s.config.n_kv * s.config.head_size * row.P * (s.batch_size if row.kind == "copied" else max(1, row.n))


def bytes_free(device: torch.device) -> float:
    """Memory that can still be had; unlimited where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return math.inf


def run(s: Settings) -> dict:
    """{"card", "settings", "rows", "ratios"}, ready for JSON."""
    device = torch.device(s.device)
    rows = [r for r in rows_of(s) if 1.2 * bytes_needed(s, r) < bytes_free(device)]
    left_out = [r for r in rows_of(s) if r not in rows]
    with tqdm(total=2 * len(rows) + s.steps, unit="row", desc="peak memory", dynamic_ncols=True) as bar:
        peaks = {}
        for row in rows:
            peaks[row] = peak_bytes(device, decode_three, s, row)
            bar.update()
        bar.set_description("reading")
        torch.manual_seed(s.seed)
        base = new_base(s)
        decoders = {}
        for row in rows:
            if 1.2 * bytes_needed(s, row) >= bytes_free(device):  # beside the others
                left_out.append(row)
                continue
            decoders[row] = build(s, row, base)
            for d in decoders[row]:
                d.step()  # the prompts
                d.step()  # and a first token, untimed
            bar.update()
        bar.set_description("decoding")
        times: dict[Row, list[float]] = {row: [] for row in decoders}
        for _ in range(s.steps):
            for row, ds in decoders.items():
                times[row].append(milliseconds(lambda ds=ds: [d.step() for d in ds], device))
            bar.update()
    del decoders
    results = []
    for row, samples in times.items():
        step = spread(samples)
        extra = None if peaks[row] is None else peaks[row] - peaks[rows[0]]
        per_s = 1000 * s.batch_size / step["median"]
        results.append({**asdict(row), "step_ms": step, "tokens_per_s": per_s, "peak_bytes": peaks[row], "extra_bytes": extra})
    for r in results:
        r["against_base"] = r["tokens_per_s"] / results[0]["tokens_per_s"]
    missing = [{**asdict(row), "bytes_needed": bytes_needed(s, row)} for row in left_out]
    alone = attention_alone(s, [r["P"] for r in results if r["kind"] == "copied"], device)
    result = {"card": card(device), "settings": asdict(s), "rows": results, "left_out": missing, "attention": alone}
    return result | {"ratios": ratios(results, alone)}


@torch.no_grad()
def attention_alone(s: Settings, prefixes: list[int], device: torch.device) -> list[dict]:
    """One token's attention in all layers, in turn, over a shared prefix beside the cache and over a cache with its copies."""
    c, results = s.config, []
    T = s.seq_len + s.steps // 2
    for P in prefixes:
        q = torch.randn(s.batch_size, c.n_head, 1, c.head_size, device=device)
        cached = [torch.randn(2, s.batch_size, c.n_kv, T, c.head_size, device=device) for _ in range(c.n_layer)]
        shared = [torch.randn(2, 1, c.n_kv, P, c.head_size, device=device) for _ in range(c.n_layer)]
        k, v = (torch.cat([x.expand(s.batch_size, -1, -1, -1), y], dim=2) for x, y in zip(shared[0], cached[0], strict=True))
        times: dict[str, list[float]] = {"shared": [], "copied": []}
        for i in range(2 + 3 * s.steps):
            layer = i % c.n_layer
            beside = milliseconds(lambda a=cached[layer], b=shared[layer], q=q: prefix_attention(q, *a, *b), device)
            within = milliseconds(lambda q=q, k=k, v=v: prefix_attention(q, k, v), device)
            if i >= 2:
                times["shared"].append(beside)
                times["copied"].append(within)
        results.append({"P": P, "T": T, **{f"{kind}_ms": spread(samples) for kind, samples in times.items()}})
    return results


def ratios(rows: list[dict], alone: list[dict]) -> list[dict]:
    """What the rows say of each other: {"of", "to", "what", "value"}."""

    def find(kind: str, **which) -> dict | None:
        return next((r for r in rows if r["kind"] == kind and all(r[x] == y for x, y in which.items())), None)

    found = []
    for kind in ("prefix tasks", "lora tasks"):
        one = find(kind, n=1)
        for r in rows:
            if one and r["kind"] == kind and r["n"] > 1:
                value = r["tokens_per_s"] / one["tokens_per_s"]
                found.append({"of": f"{r['n']} {kind} mixed", "to": "one", "what": "throughput", "value": value})
    for r in rows:
        if r["kind"] == "full copies" and (mixed := find("prefix tasks", n=r["n"])):
            value = mixed["tokens_per_s"] / r["tokens_per_s"]
            found.append({"of": f"{r['n']} prefix tasks mixed", "to": f"{r['n']} full copies", "what": "throughput", "value": value})
        if r["kind"] == "shared":
            name = f"a shared prefix of {r['P']:,}"
            found.append({"of": name, "to": "no prefix", "what": "throughput", "value": r["against_base"]})
            if copied := find("copied", P=r["P"]):
                value = r["tokens_per_s"] / copied["tokens_per_s"]
                found.append({"of": name, "to": "copies of it", "what": "throughput", "value": value})
                if r["extra_bytes"] is not None and copied["extra_bytes"]:
                    value = max(0, r["extra_bytes"]) / copied["extra_bytes"]
                    found.append({"of": name, "to": "copies of it", "what": "extra memory", "value": value})
            value = next((x["copied_ms"]["median"] / x["shared_ms"]["median"] for x in alone if x["P"] == r["P"]), None)
            if value is not None:
                found.append({"of": name, "to": "copies of it", "what": "speed of the attention alone", "value": value})
    return found


def table(result: dict) -> str:
    """The result as aligned text."""
    s = result["settings"]
    shape = s["config"]
    lines = [
        card_line(result["card"]),
        f"{s['preset']}: L {shape['n_layer']}, C {shape['n_embd']}, nh {shape['n_head']}, V {shape['vocab_size']}, block size "
        f"{shape['block_size']:,}; batch {s['batch_size']}, prompts of {s['seq_len']} tokens, {s['steps']} tokens timed, seed {s['seed']}",
        "",
    ]
    none = "-"
    cells = {
        "served": lambda r: r["kind"] + (" prefix" if r["kind"] in ("shared", "copied") else ""),
        "tasks": lambda r: str(r["n"] or none),
        "P": lambda r: f"{r['P']:,}" if r["P"] else none,
        "ms a token (p10–p90)": lambda r: "{median:,.1f} ({p10:,.1f}–{p90:,.1f})".format(**r["step_ms"]),
        "tokens/s": lambda r: f"{r['tokens_per_s']:,.0f}",
        "× base": lambda r: f"{r['against_base']:.2f}",
        "peak MB": lambda r: "?" if r["peak_bytes"] is None else f"{r['peak_bytes'] / 1e6:,.0f}",
        "beside the base MB": lambda r: "?" if r["extra_bytes"] is None else f"{r['extra_bytes'] / 1e6:,.0f}",
    }
    lines += columns(cells, result["rows"])
    for r in result["left_out"]:
        what = f"{r['n']} {r['kind']}" if r["n"] else f"{r['kind']} prefix of {r['P']:,}"
        lines.append(f"{what}: not measured, it would take {r['bytes_needed'] / 1e9:,.1f} GB")
    lines += ["", "so:"]
    lines += [f"{r['of']}: {r['value']:.3g} × the {r['what']} of {r['to']}" for r in result["ratios"]]
    return "\n".join(lines)
