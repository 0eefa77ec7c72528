"""A training step here and in peft + transformers, on the same weights and the same batch.

Both have a base of one shape with the same random weights (written by one, read by the other), the
same trained tensors, tokens and fused AdamW, no dropout. The losses before and after the first step
stand side by side; they, the norm of the first gradient and what a step changes of the loss must
agree. Steps are interleaved in one process. Each library runs eagerly and through torch.compile
(here the blocks, there the whole model, if PEFT allows it).

On a bfloat16 base, PEFT's default multiplies the adapter's matrices in float32, minipeft in
bfloat16. "peft bfloat16" is PEFT with bfloat16 adapters (autocast_adapter_dtype=False), to compare
like with like. Full fine-tuning runs in float32 only: minipeft trains no bfloat16 weights. Needs
the extras of requirements-extra.txt.

    python bench.py peers --generate             generation with a prefix instead of a training step
    python bench.py peers --job FILE.jsonl       a whole job, by train.py's loop and by Trainer

Both have their own flags: add --help.
"""

import argparse
import functools
import importlib.metadata
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import geometric_mean

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..accounting import step_flops
from ..accounting.parameters import declared, methods_that_fit
from ..accounting.shapes import PRESETS
from ..accounting.storage import files
from ..attach import adapt
from ..checks import Error
from ..config import GPTConfig
from ..files.families import architecture
from ..methods import METHODS, WHOLE
from ..model import GPT
from ..runtime.compiling import can_compile
from ..runtime.console import Parser
from ..runtime.profiling import card, saved_bytes, synchronize
from . import flags
from .measure import MS, MatmulRate, cell, columns, first_line, header, milliseconds, peak_bytes, restart_peak, time_all

RIVALS = ("minipeft", "minipeft compiled", "peft", "peft compiled", "peft bfloat16",
          "peft bfloat16 compiled")


@dataclass(frozen=True, kw_only=True)
class PeersSettings(flags.WorkSettings):
    methods: tuple[str, ...]
    num_virtual_tokens: int
    supervised: float
    dtype: str
    compile: bool


def add_flags(p: Parser) -> None:
    flags.add_base_flags(p, "gpt2")
    add = p.add_argument_group("methods").add_argument
    add("--methods", nargs="+", metavar="METHOD",
        help="some that both libraries have (default: all of them)")
    add("--num-virtual-tokens", type=int, default=20, metavar="P",
        help="length of prompt and prefix")
    add = flags.add_batch_flags(p, 4, 128).add_argument
    add("--supervised", type=float, default=1.0, metavar="SHARE", help="of the target tokens")
    add = flags.add_machine_flags(p, 5, "timed steps of each").add_argument
    add("--dtype", default="float32", choices=flags.DTYPES,
        help="of the base; adapters train in float32")
    add("--compile", action=argparse.BooleanOptionalAction, default=True,
        help="also run both through torch.compile")


def settings(args: argparse.Namespace) -> PeersSettings:
    """Raises Error for a method that one library lacks, and for sizes that do not fit."""
    if not 0 < args.supervised <= 1:
        raise Error(f"--supervised must be above 0 and at most 1, not {args.supervised:g}")
    config = PRESETS[args.preset]
    if config.projections == "joined":
        config = replace(config, position="learned")  # as transformers' GPT-2
    if args.num_virtual_tokens < 1:
        raise Error(f"--num-virtual-tokens must be at least 1, not {args.num_virtual_tokens}")
    if args.seq_len < 2:
        raise Error("--seq-len must be at least 2: the last token has no target in transformers")
    flags.check_fits(args.num_virtual_tokens, args.seq_len, config)
    both = in_both(config)
    if args.dtype != "float32":
        if WHOLE in (args.methods or ()):
            raise Error(f"--methods {WHOLE} needs --dtype float32: minipeft trains the whole base in float32")
        both.remove(WHOLE)
    args.methods = args.methods or both
    check_methods(args.methods, both)
    return flags.from_flags(PeersSettings, args, config)


def extras():
    """The modules peft and transformers. Raises Error without them."""
    try:
        import peft
        import transformers
    except ImportError:
        raise Error("bench.py peers compares with peft and transformers: "
                    "pip install -r requirements-extra.txt") from None
    return peft, transformers


def open_in_transformers(folder: str | Path, dtype: str, device: str) -> nn.Module:
    """A base as transformers opens it, without its messages."""
    _, transformers = extras()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    load = transformers.AutoModelForCausalLM.from_pretrained
    return load(folder, dtype=getattr(torch, dtype), attn_implementation="sdpa").to(device)


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("peft", "transformers")}


def check_in_transformers(c: GPTConfig) -> None:
    """Raise Error unless transformers has the architecture."""
    if architecture(c) == "minipeft":
        raise Error("transformers has no architecture of this shape (docs/architectures.md has those that it has)")


def in_both(c: GPTConfig) -> list[str]:
    """Both libraries' methods on this shape: full fine-tuning, and those that PEFT opens."""
    known = extras()[0].PEFT_TYPE_TO_CONFIG_MAPPING
    return [name for name in methods_that_fit(c) if name == WHOLE
            or METHODS[name].peft is None and files(c, declared(c, name, {})).config["peft_type"] in known]


def check_methods(methods: list[str], both: list[str]) -> None:
    for method in methods:
        if method not in both:
            raise Error(f"--methods must be of {', '.join(both)}, which both libraries have, not {method!r}")


def peft_config(s: PeersSettings, method: str):
    """PEFT's config of the method, to train."""
    saved = files(s.config, declared(s.config, method, hyperparameters(s, method))).config
    return extras()[0].get_peft_config(saved | {"inference_mode": False})


def rivals_of(s: PeersSettings, method: str) -> list[str]:
    """The rivals in this method; bfloat16 adapters are one more where PEFT multiplies by them."""
    multiplies = s.dtype != "float32" and not peft_config(s, method).is_prompt_learning
    return [name for name in RIVALS if (s.compile or not name.endswith("compiled"))
            and (multiplies or "bfloat16" not in name)]


def batch(s: PeersSettings) -> tuple[Tensor, Tensor]:
    """idx and targets (B, T); the share `supervised` of the targets counts, the rest is -100.

    The last target never counts: transformers shifts the labels by one, so it has none there.
    """
    g = torch.Generator().manual_seed(s.seed)
    tokens = torch.randint(s.config.vocab_size, (s.batch_size, s.seq_len + 1), generator=g)
    counts = torch.rand(s.batch_size, s.seq_len, generator=g) < s.supervised
    counts[:, -1] = False
    return tokens[:, :-1].contiguous().to(s.device), torch.where(counts, tokens[:, 1:], -100).to(s.device)


class Rival:
    """A model of one library, its loss on the batch, and its optimizer."""

    def __init__(self, model: nn.Module, trained: Iterable[Tensor], loss: Callable[[], Tensor]):
        self.model, self.trained, self.loss = model, list(trained), loss
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4, weight_decay=0.0, fused=True)


def ours(s: PeersSettings, method: str, base: GPT, compile: bool) -> Rival:
    model = adapt(base, method, **hyperparameters(s, method))
    model.compile_blocks(compile)
    return Rival(model, model.trainable_parameters(), functools.partial(model.loss, *batch(s)))


def theirs(s: PeersSettings, method: str, base: nn.Module, compile: bool,
           bfloat16: bool = False) -> Rival:
    """PEFT's rival; bfloat16: its adapter too, instead of float32."""
    base.config.use_cache = False  # as in its Trainer: no keys and values copied for generation
    if method != WHOLE:
        config = peft_config(s, method)
        base = extras()[0].get_peft_model(base, config, autocast_adapter_dtype=not bfloat16)
    base = without_dropout(base.train())
    run = torch.compile(base) if compile else base
    idx, targets = batch(s)
    labels = torch.cat([torch.full_like(targets[:, :1], -100), targets[:, :-1]], dim=1)
    trained = (p for p in base.parameters() if p.requires_grad)
    return Rival(base, trained, lambda: run(input_ids=idx, labels=labels).loss)


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def hyperparameters(s: PeersSettings, method: str) -> dict:
    """P of a method that has virtual tokens; the others have their default sizes."""
    return {"num_virtual_tokens": s.num_virtual_tokens} if "num_virtual_tokens" in METHODS[method].sizes() else {}


def train_step(rival: Rival) -> Tensor:
    rival.optimizer.zero_grad(set_to_none=True)
    loss = rival.loss()
    loss.backward()
    rival.optimizer.step()
    return loss.detach()


def build(s: PeersSettings, method: str, name: str) -> Rival:
    """A rival with its own copy of the same weights. Raises Error without the extras."""
    extras()
    torch.manual_seed(s.seed)
    base, compile = GPT(s.config), name.endswith("compiled")
    if name.startswith("minipeft"):
        return ours(s, method, base.to(s.device, getattr(torch, s.dtype)), compile)
    with tempfile.TemporaryDirectory() as folder:
        base.save_pretrained(folder)
        del base
        rival = open_in_transformers(folder, s.dtype, s.device)
    return theirs(s, method, rival, compile, "bfloat16" in name)


@torch.no_grad()
def same_start(rival: Rival, peft: Rival, method: str) -> None:
    """Copy PEFT's initial values of the trained parameters; full has the same weights already."""
    for p, initial in () if method == WHOLE else zip(rival.trained, peft.trained, strict=True):
        p.copy_(initial.view_as(p))


def second_step(rival: Rival) -> dict:
    """The loss of another step, and the change of the loss by it: to first order, Σ gradient ·
    change, for each trained tensor. The difference of two losses would be lost in their
    rounding."""
    before = [p.detach().clone() for p in rival.trained]
    loss = train_step(rival).item()
    changes = [torch.sum(p.grad.float() * (p.detach().float() - old.float()), dtype=torch.float64).item()
               for p, old in zip(rival.trained, before, strict=True)]
    return {"second_loss": loss, "loss_changes": changes}


def train_two_steps(s: PeersSettings, method: str, name: str) -> None:
    """The work of the peak-memory process; building the rival does not count."""
    rival = build(s, method, name)
    restart_peak(torch.device(s.device))
    train_step(rival)
    train_step(rival)
    synchronize(torch.device(s.device))


def measure(s: PeersSettings, method: str, rate: MatmulRate, bar: tqdm) -> list[dict]:
    """One row per rival, their steps interleaved."""
    device = torch.device(s.device)
    rivals = {name: build(s, method, name) for name in rivals_of(s, method)}
    for name in set(rivals) - {"peft"}:
        same_start(rivals[name], rivals["peft"], method)
    rows = []
    for name, rival in list(rivals.items()):
        row = {"method": method, "rival": name, "error": None}
        try:
            first = milliseconds(lambda r=rival, row=row: row.update(loss=train_step(r).item()), device)
            row["first_step_s"] = first / 1000
        except Exception as e:  # a failure of torch.compile with PEFT is a result
            if not (name.startswith("peft") and name.endswith("compiled")):
                raise
            row["error"] = f"{type(e).__name__}: {first_line(e)}"
            del rivals[name]
        else:
            row["gradient_norm"] = gradient_norm(rival)  # of the first step
            row |= second_step(rival)
            row["saved_bytes"] = saved_bytes(rival.loss, rival.model.parameters())
        rows.append(row)
        bar.update()
    same_work(rows, 1e-4 if s.dtype == "float32" else 2e-2)
    for row in (r for r in rows if not r["error"]):
        row["loss_change"] = sum(row.pop("loss_changes"))
    calls = [functools.partial(train_step, rival) for rival in rivals.values()]
    times = dict(zip(rivals, *time_all([calls], s.steps, device, bar, rate), strict=True))
    del rivals, rival, calls
    measured = [r for r in rows if not r["error"]]
    for row in measured:
        row["step_ms"] = times[row["rival"]]
        if not row["rival"].endswith("compiled"):  # a compiler's own memory is not the method's
            row["peak_bytes"] = peak_bytes(device, train_two_steps, s, method, row["rival"])
    eager = next(r for r in measured if r["rival"] == "peft")
    for row in measured:
        row["against_peft"] = row["step_ms"]["median"] / eager["step_ms"]["median"]
        row["saved_against_peft"] = row["saved_bytes"] / eager["saved_bytes"]
    return rows


def gradient_norm(rival: Rival) -> float:
    return float(torch.stack([p.grad.float().norm() for p in rival.trained]).norm())


def same_work(rows: list[dict], bound: float) -> None:
    """Raise Error unless every rival's losses, first gradient and second step are eager PEFT's.

    What one tensor's step changes of the loss agrees to 7e-6 in float32 and to 6e-3 in bfloat16
    (GPT-2, Llama and Qwen2 shapes); below a millionth of the sum it is rounding. bfloat16 weights
    round steps away (1 − 1e-4 is 1), so the changes of "peft bfloat16" are its own.
    """
    theirs = next(r for r in rows if r["rival"] == "peft")
    rounding = 1e-6 * abs(sum(theirs["loss_changes"]))
    for row in (r for r in rows if not r["error"]):
        found = [(x.replace("_", " "), row[x], theirs[x], 0) for x in ("loss", "gradient_norm", "second_loss")]
        if "bfloat16" not in row["rival"]:
            changes = zip(sorted(row["loss_changes"]), sorted(theirs["loss_changes"]), strict=True)
            found += [("change of the loss by a tensor", mine, peft, rounding) for mine, peft in changes]
        for x, mine, peft, slack in found:
            if not abs(mine - peft) <= bound * abs(peft) + slack:
                raise Error(f"{row['method']}: {row['rival']} does other work than peft: {x} {mine} against {peft}")


def measured_rows(rows: list[dict], rival: str) -> dict[str, dict]:
    """The rival's rows by method, without those that failed."""
    return {r["method"]: r for r in rows if r["rival"] == rival and not r["error"]}


def run(s: PeersSettings) -> dict:
    """{"card", "settings", "rate", "rows", "means"}, ready for JSON."""
    device = torch.device(s.device)
    s = replace(s, compile=s.compile and can_compile(device.type))
    rate = MatmulRate(getattr(torch, s.dtype), device)
    rows, total = [], sum(len(rivals_of(s, method)) + s.steps for method in s.methods)
    with (warnings.catch_warnings(),
          tqdm(total=total, unit="round", desc="peers", dynamic_ncols=True) as bar):
        warnings.simplefilter("ignore")
        for method in s.methods:
            rows += measure(s, method, rate, bar)
    share = float((batch(s)[1] != -100).float().mean())
    for row in (r for r in rows if not r["error"]):
        h = hyperparameters(s, row["method"])
        flops = step_flops(s.config, row["method"], s.batch_size, s.seq_len, share, **h)
        row["against_floor"] = row["step_ms"]["median"] / 1000 * rate.value / flops
    means = {}
    for name in RIVALS:
        mine = measured_rows(rows, name)
        if mine and "bfloat16" in name:  # where it is no rival of its own, it is PEFT as it is
            mine = measured_rows(rows, name.replace(" bfloat16", "")) | mine
        if len(mine) == len(s.methods):
            means[name] = {x: geometric_mean(r[x] for r in mine.values())
                           for x in ("against_peft", "saved_against_peft", "against_floor")}
    return {"card": card(device) | versions(), "settings": asdict(s), "rate": rate.value,
            "rows": rows, "means": means}


def table(result: dict) -> str:
    """The result as aligned text."""
    s, rows, means = result["settings"], result["rows"], result["means"]
    setting = (f"; B {s['batch_size']}, T {s['seq_len']}, P {s['num_virtual_tokens']}, {s['dtype']}, "
               f"{100 * s['supervised']:.0f} % of the targets supervised, {s['steps']} steps, "
               f"seed {s['seed']}; large matmuls {result['rate'] / 1e9:,.0f} GFLOP/s")
    cells = {  # heading: cell of a row
        "method": cell("method", "{}"),
        "": cell("rival", "{}"),
        "loss": cell("loss", "{:.4f}"),
        "then": cell("second_loss", "{:.4f}"),
        "step ms (p10–p90)": cell("step_ms", MS),
        "× peft": cell("against_peft", "{:.2f}"),
        "× floor": cell("against_floor", "{:.2f}"),
        "saved MB": cell("saved_bytes", "{:,.1f}", 1e6),
        "× peft ": cell("saved_against_peft", "{:.2f}"),
        "peak MB": cell("peak_bytes", "{:,.0f}", 1e6),
        "first step s": cell("first_step_s", "{:.1f}"),
    }
    lines = [*header(result, setting), "", *columns(cells, rows)]
    if any("bfloat16" in r["rival"] for r in rows):
        lines.append("peft multiplies by these adapters in float32, its default; "
                     "peft bfloat16 in bfloat16, as minipeft does")
    lines += [f"{r['method']}, {r['rival']}: {r['error']}" for r in rows if r["error"]]
    lines += ["", "geometric means over the methods, against eager peft:"]
    lines += [f"{name}: step {m['against_peft']:.2f}, saved {m['saved_against_peft']:.2f}, "
              f"step over floor {m['against_floor']:.2f}" for name, m in means.items()]
    for theirs in RIVALS[3:]:
        ours = "minipeft compiled" if theirs.endswith("compiled") else "minipeft"
        if {ours, theirs} <= set(means):
            ratio = means[ours]["against_peft"] / means[theirs]["against_peft"]
            lines.append(f"step of {ours} over that of {theirs}: {ratio:.2f}")
    return "\n".join(lines)
