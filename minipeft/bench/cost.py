"""What every method costs, beside full fine-tuning: parameters, bytes, time of a training step and of a forward pass.

The physics: a frozen weight still takes part in forward and in the gradient of what comes before it; what it saves is its own
gradient (one product of three) and its optimizer state (two numbers a weight). So memory shrinks far and time little, however few
parameters are trained; and P virtual tokens make every block work on P more positions (prompt) or read P more keys (prefix).

Methods are interleaved step by step in one process, so that a machine that slows down slows all of them; the figure to quote is
a ratio. Peak memory is taken in a process of its own for each row.
"""

import copy
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..accounting import count, step_flops
from ..attention import faster, prefix_attention
from ..compiling import can_compile
from ..config import Error, GPTConfig
from ..methods import adapt, method_class
from ..methods.base import Adapted
from ..model import GPT
from ..runtime.profiling import card, saved_bytes, synchronize
from .measure import MatrixRate, card_line, columns, milliseconds, peak_bytes, spread

# Size of the methods that have no virtual tokens: their defaults, named.
SIZES = {"lora": {"r": 8}, "adapter": {"bottleneck_size": 8}, "llama-adapter": {"adapter_len": 10}}


@dataclass(frozen=True)
class Settings:
    """One run of the bench."""

    preset: str
    config: GPTConfig
    methods: tuple[str, ...]
    num_virtual_tokens: tuple[int, ...]
    batch_size: int
    seq_len: int
    steps: int
    seed: int
    device: str
    dtype: str
    compile: bool


def rows_of(s: Settings) -> list[tuple[str, dict]]:
    """(method, what its cost depends on) of every row: full first, then prompts and prefixes at every length, a hard prompt at the
    shortest, and the others at their default size. Raises Error when one does not fit."""
    if min(s.num_virtual_tokens) < 1:
        raise Error(f"num_virtual_tokens must be 1 or more, not {min(s.num_virtual_tokens)}")
    rows = [("full", {})]
    lengths = list(dict.fromkeys(s.num_virtual_tokens))
    for method in dict.fromkeys(s.methods):
        if method_class(method).freezes_base:
            sizes = {"prompt": lengths, "prefix": lengths, "hard-prompt": [min(lengths)]}.get(method)
            rows += [(method, {"num_virtual_tokens": P}) for P in sizes] if sizes else [(method, dict(SIZES[method]))]
    longest = max(h.get("num_virtual_tokens", 0) for _, h in rows)
    if longest + s.seq_len > s.config.block_size:
        raise Error(f"{longest} virtual + {s.seq_len} real tokens do not fit the block size of {s.config.block_size}")
    return rows


class Contestant:
    """A model with one method, its optimizer, and a batch to work on."""

    def __init__(self, s: Settings, method: str, hyperparameters: dict, base: GPT):
        self.device, self.dtype = torch.device(s.device), getattr(torch, s.dtype)
        self.trains = method != "hard-prompt"
        if self.trains:
            self.model: Adapted = adapt(base, method, **hyperparameters)
            self.optimizer = torch.optim.AdamW(self.model.trainable_parameters(), lr=1e-4, fused=True)
        else:
            self.model = adapt(base, method, tokens=torch.zeros(hyperparameters["num_virtual_tokens"], dtype=torch.int64))
        self.model.compile_blocks(s.compile)
        g = torch.Generator().manual_seed(s.seed)
        tokens = torch.randint(s.config.vocab_size, (s.batch_size, s.seq_len + 1), generator=g).to(self.device)
        self.idx, self.targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def forward_loss(self) -> Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.model.loss(self.idx, self.targets)

    def train_step(self) -> None:
        """Nothing, where nothing is trained."""
        if not self.trains:
            return
        self.optimizer.zero_grad(set_to_none=True)
        self.forward_loss().backward()
        self.optimizer.step()

    @torch.no_grad()
    def inference(self) -> Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.model(self.idx)

    def optimizer_bytes(self) -> int:
        if not self.trains:
            return 0
        states = (t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, Tensor))
        return sum(t.numel() * t.element_size() for t in states)


def train_two_steps(s: Settings, method: str, hyperparameters: dict) -> None:
    """What the peak-memory process does: build the base and train, the optimizer's state included.

    Eagerly, since a compiler's own memory is not the method's.
    """
    torch.manual_seed(s.seed)
    contestant = Contestant(replace(s, compile=False), method, hyperparameters, GPT(s.config).to(s.device))
    contestant.train_step()
    contestant.train_step()
    synchronize(contestant.device)


def check_attention(s: Settings, rows: list[tuple[str, dict]] | None = None) -> dict[str, float]:
    """Largest error of the attention the model runs ("auto", for a compiled model what that takes), and of its gradients, relative
    to the textbook's largest value.

    At the bench's own shape (two rows of the batch), in its dtype, against float64. Raises Error when it is more than rounding.
    """
    c, dtype, device = s.config, getattr(torch, s.dtype), torch.device(s.device)
    P = max(h.get("num_virtual_tokens", 0) for _, h in rows or rows_of(s))
    g = torch.Generator().manual_seed(s.seed)
    B = min(2, s.batch_size)
    sizes = [(B, c.n_head, s.seq_len), *[(B, c.n_kv, s.seq_len)] * 2, *[(1, c.n_kv, P)] * 2]
    given = [torch.randn(*size, c.head_size, generator=g).to(dtype) for size in sizes]
    upstream = torch.randn(given[0].shape, generator=g).to(dtype)

    def run(backend: str, where: torch.device, as_dtype: torch.dtype) -> list[Tensor]:
        inputs = [x.to(where, as_dtype).requires_grad_() for x in given]
        out = prefix_attention(*inputs, backend=backend)
        grads = torch.autograd.grad(out, inputs, upstream.to(where, as_dtype), allow_unused=P == 0)
        return [x.detach().to("cpu", torch.float64) for x in (out, *grads) if x is not None]  # None: no prefix, no gradient

    names = ("output", "dq", "dk", "dv", "dprefix_k", "dprefix_v")
    backend = faster(given[0].to(device), compiling=True) if s.compile else "auto"
    pairs = zip(run(backend, device, dtype), run("reference", torch.device("cpu"), torch.float64), strict=False)
    errors = {n: float((a - b).abs().max() / b.abs().max()) for n, (a, b) in zip(names, pairs, strict=False) if b.numel()}
    bound = 1e-4 if dtype == torch.float32 else 5e-2
    if not all(e <= bound for e in errors.values()):
        raise Error(f"attention is wrong: relative errors {errors} exceed {bound:g}")
    return errors


def stored_bytes(model: Adapted, trained_bytes: int) -> int:
    """What the method leaves on the disk for one task: the adapter folder as it is written, or (full) every weight."""
    if not model.method.freezes_base:
        return trained_bytes
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        return sum(f.stat().st_size for f in Path(folder).iterdir())


def run(s: Settings, rows: list[tuple[str, dict]] | None = None) -> dict:
    """The whole measurement: {"card", "settings", "attention", "rows"}, ready for JSON.

    rows: (method, hyper-parameters), instead of those that the settings name.
    """
    rows = rows or rows_of(s)
    errors = check_attention(s, rows)
    rate = MatrixRate(getattr(torch, s.dtype), torch.device(s.device))
    s = replace(s, compile=s.compile and can_compile(torch.device(s.device).type))
    with tqdm(total=len(rows) * (2 + s.steps), unit="step", desc="peak memory", dynamic_ncols=True) as bar:
        peaks = []
        for method, h in rows:
            peaks.append(peak_bytes(torch.device(s.device), train_two_steps, s, method, h) if method != "hard-prompt" else None)
            bar.update()

        torch.manual_seed(s.seed)
        frozen = GPT(s.config).to(s.device)
        contestants = [Contestant(s, m, h, copy.deepcopy(frozen) if m == "full" else frozen) for m, h in rows]
        device = torch.device(s.device)
        saved, first = [], []
        bar.set_description("warm-up")
        for c in contestants:
            first.append([milliseconds(c.train_step, device), milliseconds(c.inference, device)])  # compiling, if asked for
            c.train_step()
            saved.append(saved_bytes(c.forward_loss, c.model.parameters()) if c.trains else None)
            bar.update()
        bar.set_description("interleaved steps")
        steps, forwards = [[] for _ in rows], [[] for _ in rows]
        for _ in range(s.steps):
            rate()
            for i, c in enumerate(contestants):
                steps[i].append(milliseconds(c.train_step, device))
                forwards[i].append(milliseconds(c.inference, device))
                bar.update()

    results = []
    for i, (method, h) in enumerate(rows):
        trained = sum(p.numel() for p in contestants[i].model.trainable_parameters())
        trains = contestants[i].trains
        step, forward = spread(steps[i]) if trains else None, spread(forwards[i])
        results.append(
            {
                "method": method,
                **h,
                "trained": trained,
                "stored": count(s.config, method, **h).stored,
                "percent": 100 * trained / sum(p.numel() for p in contestants[i].model.parameters()),  # as PEFT has it
                "adapter_bytes": stored_bytes(contestants[i].model, 4 * trained),
                "optimizer_bytes": contestants[i].optimizer_bytes(),
                "saved_bytes": saved[i],
                "peak_bytes": peaks[i],
                "step_ms": step,
                "tokens_per_s": 1000 * s.batch_size * s.seq_len / step["median"] if trains else None,
                "step_against_full": step["median"] / spread(steps[0])["median"] if trains else None,
                "step_against_floor": step["median"] / 1000 * rate.value / step_flops(s.config, method, s.batch_size, s.seq_len, **h)
                if trains
                else None,
                "forward_ms": forward,
                "forward_against_full": forward["median"] / spread(forwards[0])["median"],
                "compile_s": max(0.0, sum(first[i]) - (step["median"] if trains else 0) - forward["median"]) / 1000 if s.compile else None,
            }
        )
    settings = asdict(s)
    return {"card": card(device), "settings": settings, "attention": errors, "rate": rate.value, "rows": results}


def table(result: dict) -> str:
    """The result as aligned text: a card, then one row a method."""
    s = result["settings"]
    shape = s["config"]
    lines = [
        card_line(result["card"]),
        f"{s['preset']}: L {shape['n_layer']}, C {shape['n_embd']}, nh {shape['n_head']}, V {shape['vocab_size']}, "
        f"{shape['position']} positions; B {s['batch_size']}, T {s['seq_len']}, {s['dtype']}, "
        f"{'compiled' if s['compile'] else 'eager'}, {s['steps']} steps, seed {s['seed']}",
        "attention against the float64 textbook, relative error: " + ", ".join(f"{n} {e:.0e}" for n, e in result["attention"].items()),
        f"large matrix products: {result['rate'] / 1e9:,.0f} GFLOP/s",
        "",
    ]

    def number(name: str, text: str, scale: float = 1):
        """The cell of a figure; a dash where nothing is trained, a question mark where the system did not tell."""
        return lambda r: "-" if not r["trained"] else "?" if r[name] is None else text.format(r[name] / scale)

    cells = {  # heading: cell of a row
        "method": lambda r: r["method"],
        "size": lambda r: next((f"{short} {r[name]}" for name, short in SHORT.items() if name in r), "-"),
        "trained": lambda r: f"{r['trained']:,}",
        "stored": lambda r: f"{r['stored']:,}",
        "trained %": lambda r: f"{r['percent']:.3f}",
        "adapter KB": lambda r: f"{r['adapter_bytes'] / 1e3:,.1f}",
        "optimizer MB": number("optimizer_bytes", "{:,.2f}", 1e6),
        "kept MB": number("saved_bytes", "{:,.1f}", 1e6),
        "peak MB": number("peak_bytes", "{:,.0f}", 1e6),
        "step ms (p10–p90)": lambda r: "{median:,.1f} ({p10:,.1f}–{p90:,.1f})".format(**r["step_ms"]) if r["trained"] else "-",
        "tokens/s": number("tokens_per_s", "{:,.0f}"),
        "× full": number("step_against_full", "{:.2f}"),
        "× floor": number("step_against_floor", "{:.2f}"),
        "forward ms": lambda r: f"{r['forward_ms']['median']:,.1f}",
        "× full ": lambda r: f"{r['forward_against_full']:.2f}",
        "compile s": lambda r: "-" if r["compile_s"] is None else f"{r['compile_s']:.1f}",
    }
    return "\n".join(lines + columns(cells, result["rows"]))


SHORT = {"num_virtual_tokens": "P", "r": "r", "bottleneck_size": "m", "adapter_len": "K"}
