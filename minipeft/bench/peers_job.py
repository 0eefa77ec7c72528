"""A whole job here and in transformers' Trainer with PEFT, compiling included.

Both tune the same base from the same initial values on the same batches in the same order, with the
same AdamW, learning rates, clipping and number of steps: one by train.py's own loop, the other by
Trainer.train(). Neither saves, logs, evaluates or has dropout. Every row is a process of its own
with an empty compile cache. *train s* is the time of all steps; *load s* of what comes before, from
the library's import to the data; *peak MB* is of the whole process; *start* and *loss* are the
losses on the last batches, before and after training, and must agree. Padding is on the right,
where a causal model needs no mask; transformers shifts labels itself, so its rows are one token
longer than ours. Needs the extras of requirements-extra.txt.
"""

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from statistics import mean

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..adapters import load_adapter
from ..attach import adapt
from ..checks import Error
from ..data.batches import FileData
from ..data.encoding import IGNORED, Batch, collate
from ..data.template import ARROW
from ..data.tokenizer import tokenizer_for
from ..files.huggingface import find_base, read_base_config
from ..methods import WHOLE
from ..methods.lora import LoRA
from ..methods.prefix_tuning import PrefixTuning
from ..methods.prompt_tuning import PromptTuning
from ..model import GPT
from ..runtime.compiling import can_compile
from ..runtime.console import Parser, local_path
from ..runtime.profiling import card
from ..training.loop import learning_rate, train
from . import flags, peers
from .measure import card_line, cell, columns, in_new_process, milliseconds, peak_above

LAST = 8  # batches whose loss is compared
BOUND = {"float32": 0.05, "bfloat16": 0.2}  # difference of two final losses, over the loss's fall in training


@dataclass(frozen=True, kw_only=True)
class JobSettings(flags.PeerSettings):
    job: str
    methods: tuple[str, ...]
    epochs: int
    batch_size: int
    compile: bool


def add_flags(p: Parser) -> None:
    flags.add_peer_flags(p)
    add = p.add_argument_group("job").add_argument
    add("--job", required=True, metavar="FILE.jsonl", type=local_path,
        help="the examples, as train.py's --data")
    add("--epochs", type=int, default=2, metavar="E",
        help="over the examples, less a tenth as in train.py")
    add("--batch-size", type=int, default=8, metavar="B", help="examples of a step")
    add("--methods", nargs="+", metavar="METHOD", default=[PrefixTuning.name, LoRA.name, PromptTuning.name],
        help="some that both libraries have")
    add("--compile", action="store_true", help="also run both through torch.compile")
    flags.add_machine_flags(p)


def settings(args: argparse.Namespace) -> JobSettings:
    """Raises Error for a method that one library lacks."""
    config, _ = read_base_config(find_base(args.base))
    peers.check_in_transformers(config)
    both = peers.in_both(config)
    peers.check_methods(args.methods, [name for name in both if name != WHOLE])
    return flags.from_flags(JobSettings, args)


class Batches:
    """The batches of a job by step, the same for every rival."""

    def __init__(self, s: JobSettings):
        config, _ = read_base_config(find_base(s.base))
        longest = min(1024, config.block_size - 1)  # transformers' rows have one token more
        self.tokenizer = tokenizer_for(config.vocab_size, find_base(s.base))
        self.data = FileData(s.job, self.tokenizer, ARROW, s.seed, s.batch_size, longest,
                             s.num_virtual_tokens)
        self.steps = s.epochs * self.data.steps_per_epoch

    def __getitem__(self, step: int) -> Batch:
        return collate(self.data.batch(step), self.tokenizer.end)


def ours(s: JobSettings, batches: Batches, start: str, lr: float, compile: bool):
    """minipeft -> the training as a function, and the loss of a batch."""
    model = load_adapter(GPT.from_pretrained(s.base, getattr(torch, s.dtype)).to(s.device), start)

    def training() -> None:
        model.compile_blocks(compile, any_length=True)
        train(model, batches.__getitem__, batches.steps, lr)
        model.compile_blocks(False)

    return training, lambda *batch: model.loss(*(x.to(s.device) for x in batch))


def theirs(s: JobSettings, batches: Batches, start: str, lr: float, compile: bool):
    """PEFT and transformers' Trainer -> the same two."""
    peft, transformers = peers.extras()
    base = peers.open_in_transformers(find_base(s.base), s.dtype, s.device)
    base.config.use_cache = False  # no keys and values copied for generation
    config = peft.PeftConfig.from_pretrained(start)
    config.inference_mode = False
    model = peers.without_dropout(peft.get_peft_model(base, config))
    peft.set_peft_model_state_dict(model, peft.load_peft_weights(start))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, batches.steps, 1.0))
    arguments = transformers.TrainingArguments(
        start, max_steps=batches.steps, max_grad_norm=1.0, torch_compile=compile, use_cpu=s.device == "cpu",
        save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True, logging_nan_inf_filter=False)
    trainer = transformers.Trainer(model, arguments, optimizers=(optimizer, schedule))
    trainer.remove_callback(transformers.PrinterCallback)
    replayed = DataLoader(range(batches.steps), batch_size=None, collate_fn=lambda step: labelled(*batches[step]))
    trainer.get_train_dataloader = lambda: replayed
    return trainer.train, lambda *batch: model(**{name: x.to(s.device) for name, x in labelled(*batch).items()}).loss


def labelled(idx: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """A batch for transformers: labels (B, T + 1), the inputs or -100; the model shifts them."""
    labels = F.pad(targets, (1, 0), value=IGNORED)
    return {"input_ids": torch.where(labels == IGNORED, F.pad(idx, (0, 1)), labels),
            "labels": labels}


def job(s: JobSettings, make: Callable, compile: bool, start: str, lr: float) -> dict:
    """The work of a process: the measurements of one rival."""
    began, device = time.perf_counter(), torch.device(s.device)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        batches = Batches(s)
        training, loss = make(s, batches, start, lr, compile)
        loaded = time.perf_counter() - began
        last = torch.no_grad()(lambda: mean(float(loss(*batches[i])) for i in range(batches.steps)[-LAST:]))
        row = {"steps": batches.steps, "load_s": loaded, "start_loss": last()}
        row["train_s"] = milliseconds(training, device) / 1000
        return row | {"peak_bytes": peak_above(0, device), "loss": last()}


def measure(s: JobSettings, method: str, rivals: list[str], bar: tqdm) -> list[dict]:
    """One row per rival, one after the other. Raises Error if the losses differ."""
    torch.manual_seed(s.seed)
    model = adapt(GPT.from_pretrained(s.base, getattr(torch, s.dtype)), method,
                  **peers.hyperparameters(s, method))
    lr, rows = model.method.default_learning_rate(model.base), []
    with tempfile.TemporaryDirectory() as start:
        model.save(start)
        del model
        for rival in rivals:
            row = {"method": method, "rival": rival, "learning_rate": lr, "error": None}
            make = ours if rival.startswith("minipeft") else theirs
            try:
                row |= in_new_process(job, s, make, rival.endswith("compiled"), start, lr)
            except Error as e:
                if rival != "peft compiled":
                    raise Error(f"{method}, {rival}: {e}") from None
                row["error"] = str(e)  # a failure of torch.compile with PEFT is a result
            rows.append(row)
            bar.update()
    by_rival = {r["rival"]: r for r in rows if not r["error"]}
    start, end = (by_rival["peft"][x] for x in ("start_loss", "loss"))
    for rival, row in by_rival.items():
        if not abs(row["loss"] - end) <= BOUND[s.dtype] * abs(start - end):
            raise Error(f"{method}: {rival} ends at a loss of {row['loss']:.4f}, peft at {end:.4f} from {start:.4f}")
        if peer := by_rival.get(rival.replace("minipeft", "peft")):
            row["against_peft"] = row["train_s"] / peer["train_s"]
    return rows


def run(s: JobSettings) -> dict:
    """{"card", "settings", "rows"}, ready for JSON."""
    device = torch.device(s.device)
    s = replace(s, compile=s.compile and can_compile(device.type))
    rivals = [name for name in peers.RIVALS if "bfloat16" not in name and (s.compile or not name.endswith("compiled"))]
    Batches(s)  # raises Error for a file that cannot be read
    with tqdm(total=len(s.methods) * len(rivals), unit="job", desc="peers", dynamic_ncols=True) as bar:
        rows = [row for method in s.methods for row in measure(s, method, rivals, bar)]
    return {"card": card(device) | peers.versions(), "settings": asdict(s), "rows": rows}


def table(result: dict) -> str:
    """The result as aligned text."""
    s, rows = result["settings"], result["rows"]
    cells = {  # heading: cell of a row
        "method": cell("method", "{}"),
        "": cell("rival", "{}"),
        "start": cell("start_loss", "{:.4f}"),
        "loss": cell("loss", "{:.4f}"),
        "train s": cell("train_s", "{:,.1f}"),
        "× peft": cell("against_peft", "{:.2f}"),
        "load s": cell("load_s", "{:,.1f}"),
        "peak MB": cell("peak_bytes", "{:,.0f}", 1e6),
    }
    setting = (f"{s['job']} on {s['base']}: {s['epochs']} epochs, {rows[0]['steps']} steps of {s['batch_size']}, "
               f"P {s['num_virtual_tokens']}, {s['dtype']}, seed {s['seed']}")
    return "\n".join([card_line(result["card"]), setting, "", *columns(cells, rows),
                      "× peft: train s, eager against eager and compiled against compiled",
                      *(f"{r['method']}, {r['rival']}: {r['error']}" for r in rows if r["error"])])
