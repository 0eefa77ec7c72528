"""A training step here and in peft + transformers, on the same weights and the same batch.

Both get a base of the same shape and the same random weights (written by one, read by the other), the same trained tensors, the
same tokens, the same fused AdamW, no dropout. The losses before the first step and after it stand side by side; they and the norm
of the first gradient must agree. Steps are interleaved in one process. Each runs eagerly and through torch.compile (here the
blocks, there the whole model, where PEFT allows it). Needs the extras of requirements-extra.txt.
"""

import tempfile
import warnings
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..accounting import step_flops
from ..compiling import can_compile
from ..config import Error, GPTConfig
from ..methods import adapt
from ..methods.lora import lora_targets
from ..model import GPT
from ..runtime.profiling import card, saved_bytes, synchronize
from .measure import (
    MatrixRate,
    card_line,
    columns,
    geometric_mean,
    milliseconds,
    peak_bytes,
    restart_peak,
    spread,
)

METHODS = ("full", "prompt", "prefix", "lora")  # what both have
RIVALS = ("minipeft", "minipeft compiled", "peft", "peft compiled")


@dataclass(frozen=True)
class Settings:
    preset: str
    config: GPTConfig
    methods: tuple[str, ...]
    num_virtual_tokens: int
    batch_size: int
    seq_len: int
    supervised: float
    steps: int
    seed: int
    device: str
    dtype: str
    compile: bool


def batch(s: Settings) -> tuple[Tensor, Tensor]:
    """idx and targets (B, T); a share `supervised` of the targets counts, the rest is -100. The last one never does:
    transformers takes targets from the labels shifted by one, and has none there."""
    g = torch.Generator().manual_seed(s.seed)
    tokens = torch.randint(s.config.vocab_size, (s.batch_size, s.seq_len + 1), generator=g)
    counts = torch.rand(s.batch_size, s.seq_len, generator=g) < s.supervised
    counts[:, -1] = False
    return tokens[:, :-1].contiguous().to(s.device), torch.where(counts, tokens[:, 1:], -100).to(s.device)


class Ours:
    def __init__(self, s: Settings, method: str, base: GPT, compile: bool):
        self.model = adapt(base, method, **hyperparameters(s, method))
        self.model.compile_blocks(compile)
        self.idx, self.targets = batch(s)
        parameters = list(self.model.trainable_parameters())
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, fused=True)

    def loss(self) -> Tensor:
        return self.model.loss(self.idx, self.targets)


class Theirs:
    def __init__(self, s: Settings, method: str, base: nn.Module, compile: bool):
        import peft

        base.config.use_cache = False  # as its Trainer has it: no copies of keys and values for a generation that does not come
        kinds = {"prompt": peft.PromptTuningConfig, "prefix": peft.PrefixTuningConfig, "lora": peft.LoraConfig}
        if method in kinds:
            h = hyperparameters(s, method)
            if method == "lora":
                h |= {"target_modules": list(lora_targets(s.config)), "fan_in_fan_out": s.config.projections == "joined"}
            base = peft.get_peft_model(base, kinds[method](task_type="CAUSAL_LM", **h))
        self.model = base.train()
        for module in base.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        self.run = torch.compile(base) if compile else base
        self.idx, targets = batch(s)
        self.labels = torch.full_like(targets, -100)
        self.labels[:, 1:] = targets[:, :-1]
        self.optimizer = torch.optim.AdamW([p for p in base.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.0, fused=True)

    def loss(self) -> Tensor:
        return self.run(input_ids=self.idx, labels=self.labels).loss


def hyperparameters(s: Settings, method: str) -> dict:
    return {"full": {}, "lora": {"r": 8}}.get(method, {"num_virtual_tokens": s.num_virtual_tokens})


def train_step(rival) -> Tensor:
    rival.optimizer.zero_grad(set_to_none=True)
    loss = rival.loss()
    loss.backward()
    rival.optimizer.step()
    return loss.detach()


def build(s: Settings, method: str, name: str):
    """A rival with weights of its own: the same numbers for all, by way of one folder. Raises Error without the extras."""
    try:
        import peft  # noqa: F401
        import transformers
    except ImportError:
        raise Error("bench.py peers compares with peft and transformers: pip install -r requirements-extra.txt") from None
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(s.seed)
    base, dtype = GPT(s.config), getattr(torch, s.dtype)
    compile = name.endswith("compiled")
    if name.startswith("minipeft"):
        return Ours(s, method, base.to(s.device, dtype), compile)
    with tempfile.TemporaryDirectory() as folder:
        base.save_pretrained(folder)
        del base
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    return Theirs(s, method, theirs.to(s.device), compile)


def same_start(ours: Ours, theirs: Theirs, method: str) -> None:
    """What is trained starts from the same numbers: PEFT's, copied over."""
    if method == "full":
        return
    with torch.no_grad():
        for mine, p in zip(ours.model.trainable_parameters(), (p for p in theirs.model.parameters() if p.requires_grad), strict=True):
            mine.copy_(p)


def train_two_steps(s: Settings, method: str, name: str) -> None:
    """What the peak-memory process does; how the rival was built does not count."""
    rival = build(s, method, name)
    restart_peak(torch.device(s.device))
    train_step(rival)
    train_step(rival)
    synchronize(torch.device(s.device))


def measure(s: Settings, method: str, rate: MatrixRate, bar: tqdm) -> list[dict]:
    """One row a rival."""
    device = torch.device(s.device)
    names = [n for n in RIVALS if s.compile or not n.endswith("compiled")]
    rivals = {n: build(s, method, n) for n in names}
    rows = []
    for name, rival in list(rivals.items()):
        if isinstance(rival, Ours):
            same_start(rival, rivals["peft"], method)
        row = {"method": method, "rival": name, "error": None}
        try:
            row["first_step_s"] = milliseconds(lambda r=rival, row=row: row.update(loss=train_step(r).item()), device) / 1000
        except Exception as e:  # whatever torch.compile cannot do with PEFT is a result too
            if name != "peft compiled":
                raise
            row["error"] = f"{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e).strip() else ''}"
            del rivals[name]
        else:
            row["gradient_norm"] = gradient_norm(rival)  # of the first step, still in place
            row["second_loss"] = train_step(rival).item()
            row["saved_bytes"] = saved_bytes(rival.loss, rival.model.parameters())
        rows.append(row)
        bar.update()
    same_work(rows, 1e-4 if s.dtype == "float32" else 2e-2)
    times = {name: [] for name in rivals}
    for _ in range(s.steps):
        rate()
        for name, rival in rivals.items():
            times[name].append(milliseconds(lambda r=rival: train_step(r), device))
        bar.update()
    del rivals, rival
    rows = [r for r in rows if not r["error"]] + [r for r in rows if r["error"]]
    for row in (r for r in rows if not r["error"]):
        row["step_ms"] = spread(times[row["rival"]])
        if not row["rival"].endswith("compiled"):  # a compiler's own memory is not the method's
            row["peak_bytes"] = peak_bytes(device, train_two_steps, s, method, row["rival"])
    eager = next(r for r in rows if r["rival"] == "peft")
    for row in (r for r in rows if not r["error"]):
        row["against_peft"] = row["step_ms"]["median"] / eager["step_ms"]["median"]
        row["saved_against_peft"] = row["saved_bytes"] / eager["saved_bytes"]
    return rows


def gradient_norm(rival) -> float:
    parameters = [p for group in rival.optimizer.param_groups for p in group["params"]]
    return float(torch.stack([p.grad.float().norm() for p in parameters]).norm())


def same_work(rows: list[dict], bound: float) -> None:
    """Raise Error unless the first step's gradient and the losses before and after it are those of PEFT run eagerly."""
    theirs = next(r for r in rows if r["rival"] == "peft")
    for row in (r for r in rows if not r["error"]):
        for x in ("loss", "gradient_norm", "second_loss"):
            if not abs(row[x] - theirs[x]) <= bound * abs(theirs[x]):
                raise Error(
                    f"{row['method']}: {row['rival']} does other work than peft: {x.replace('_', ' ')} {row[x]} against {theirs[x]}"
                )


def run(s: Settings) -> dict:
    """{"card", "settings", "rate", "rows", "means"}, ready for JSON."""
    import importlib.metadata

    device = torch.device(s.device)
    s = replace(s, compile=s.compile and can_compile(device.type))
    rate = MatrixRate(getattr(torch, s.dtype), device)
    rows = []
    with warnings.catch_warnings(), tqdm(total=len(s.methods) * (4 + s.steps), unit="round", desc="peers", dynamic_ncols=True) as bar:
        warnings.simplefilter("ignore")
        for method in s.methods:
            rows += measure(s, method, rate, bar)
    share = float((batch(s)[1] != -100).float().mean())
    for row in (r for r in rows if not r["error"]):
        flops = step_flops(s.config, row["method"], s.batch_size, s.seq_len, share, **hyperparameters(s, row["method"]))
        row["against_floor"] = row["step_ms"]["median"] / 1000 * rate.value / flops
    versions = {name: importlib.metadata.version(name) for name in ("peft", "transformers")}
    means = {}
    for name in RIVALS:
        mine = [r for r in rows if r["rival"] == name and not r["error"]]
        if len(mine) == len(s.methods):
            means[name] = {x: geometric_mean([r[x] for r in mine]) for x in ("against_peft", "saved_against_peft", "against_floor")}
    return {"card": card(device) | versions, "settings": asdict(s), "rate": rate.value, "rows": rows, "means": means}


def table(result: dict) -> str:
    """The result as aligned text."""
    s = result["settings"]
    shape = s["config"]
    lines = [
        card_line(result["card"]),
        f"{s['preset']}: L {shape['n_layer']}, C {shape['n_embd']}, nh {shape['n_head']}, V {shape['vocab_size']}; B {s['batch_size']}, "
        f"T {s['seq_len']}, P {s['num_virtual_tokens']}, {s['dtype']}, {100 * s['supervised']:.0f} % of the targets supervised, "
        f"{s['steps']} steps, seed {s['seed']}; large matrix products {result['rate'] / 1e9:,.0f} GFLOP/s",
        "",
    ]
    none = "-"
    cells = {
        "method": lambda r: r["method"],
        "": lambda r: r["rival"],
        "loss": lambda r: none if r["error"] else f"{r['loss']:.4f}",
        "then": lambda r: none if r["error"] else f"{r['second_loss']:.4f}",
        "step ms (p10–p90)": lambda r: none if r["error"] else "{median:,.1f} ({p10:,.1f}–{p90:,.1f})".format(**r["step_ms"]),
        "× peft": lambda r: none if r["error"] else f"{r['against_peft']:.2f}",
        "× floor": lambda r: none if r["error"] else f"{r['against_floor']:.2f}",
        "kept MB": lambda r: none if r["error"] else f"{r['saved_bytes'] / 1e6:,.1f}",
        "× peft ": lambda r: none if r["error"] else f"{r['saved_against_peft']:.2f}",
        "peak MB": lambda r: f"{r['peak_bytes'] / 1e6:,.0f}" if r.get("peak_bytes") else none,
        "first step s": lambda r: none if r["error"] else f"{r['first_step_s']:.1f}",
    }
    lines += columns(cells, result["rows"])
    lines += [f"{r['method']}, {r['rival']}: {r['error']}" for r in result["rows"] if r["error"]]
    lines += ["", "geometric means over the methods, against peft run eagerly:"]
    lines += [
        f"{name}: step {m['against_peft']:.2f}, saved {m['saved_against_peft']:.2f}, step over floor {m['against_floor']:.2f}"
        for name, m in result["means"].items()
    ]
    if len(result["means"]) == len(RIVALS):
        ratio = result["means"]["minipeft compiled"]["against_peft"] / result["means"]["peft compiled"]["against_peft"]
        lines.append(f"both compiled: step of minipeft over that of peft {ratio:.2f}")
    return "\n".join(lines)
