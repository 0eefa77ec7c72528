#!/usr/bin/env python3
"""Rounding of a soft prompt's training, here and in PEFT: of the first gradient, and how training amplifies it
(needs the extras).

python docs/tools/rounding.py --job e2e-40.jsonl --base SmolLM2-135M --epochs 1 --batch-size 2 \
    --out docs/results/rounding-smollm2.json

The first gradients are compared with one in float64, PEFT's also with its cross-entropy in float64. Then both tune, as
by `bench.py peers --job`, and minipeft a second time from a start that is 1e-7 off.
"""

import shlex
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from minipeft import GPT, Error, adapt, load_adapter
from minipeft.bench import flags, peers, peers_job
from minipeft.bench.measure import in_new_process
from minipeft.files.atomic import write_json
from minipeft.methods.prompt_tuning import PromptTuning
from minipeft.runtime import console
from minipeft.runtime.profiling import card

RUNS = {"minipeft": 0, "minipeft, start 1e-7 off": 1, "peft": 0}  # seed of the change


def run(s: peers_job.JobSettings, name: str, start: str, lr: float) -> tuple:
    """Tune once -> the prompt after every step (steps, P, C), and the final loss."""
    batches, seen = peers_job.Batches(s), []
    make = peers_job.theirs if name == "peft" else peers_job.ours

    def note(optimizer, *_) -> None:
        [p] = (p for group in optimizer.param_groups for p in group["params"])
        seen.append(p.detach().clone())

    training, loss = make(s, batches, start, lr, False)
    hook = register_optimizer_step_post_hook(note)
    training()
    hook.remove()
    if len(seen) != batches.steps:
        raise Error(f"{name}: {len(seen)} steps seen of {batches.steps}")
    with torch.no_grad():
        last = mean(float(loss(*batches[i])) for i in range(batches.steps)[-peers_job.LAST :])
    return torch.stack(seen).double().numpy(), last


def first_gradients(s: peers_job.JobSettings, start: str) -> dict[str, float]:
    """Relative errors of the first gradient in float32, against minipeft's in float64."""
    batch, found = peers_job.Batches(s)[0], {}
    for dtype in (torch.float64, torch.float32):
        model = load_adapter(GPT.from_pretrained(s.base, dtype), start).to(dtype)
        model.loss(*batch).backward()
        found[str(dtype)] = model.method.prompt_embeddings.grad.double()
    peft, _ = peers.extras()
    config = peft.PeftConfig.from_pretrained(start)
    config.inference_mode = False
    model = peft.get_peft_model(peers.open_in_transformers(s.base, "float32", "cpu"), config)
    peft.set_peft_model_state_dict(model, peft.load_peft_weights(start))
    [p] = (p for p in model.parameters() if p.requires_grad)
    rows = peers_job.labelled(*batch)
    out = model(**rows)
    logits = out.logits[:, -rows["labels"].size(1) :-1].double()
    exact = F.cross_entropy(logits.flatten(0, 1), rows["labels"][:, 1:].flatten())
    for name, loss in (("peft", out.loss), ("peft, cross-entropy in float64", exact)):
        [gradient] = torch.autograd.grad(loss, p, retain_graph=True)
        found[name] = gradient.double()
    right = found.pop("torch.float64")
    return {name.replace("torch.float32", "minipeft"): apart(gradient, right) for name, gradient in found.items()}


def start_of(s: peers_job.JobSettings, seed: int, folder: str) -> float:
    """Write the adapter that a run starts from, its elements changed by a relative 1e-7 (seed 0: not); its lr."""
    torch.manual_seed(s.seed)
    base = GPT.from_pretrained(s.base, torch.float32)
    model = adapt(base, PromptTuning.name, num_virtual_tokens=s.num_virtual_tokens)
    if seed:
        p = model.method.prompt_embeddings
        change = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            p.mul_(1 + 1e-7 * change)
    model.save(folder)
    return model.method.default_learning_rate(model.base)


def apart(a: Tensor, b: Tensor) -> float:
    """Norm of the difference over that of b."""
    return float((a - b).norm() / b.norm())


def main() -> None:
    p = console.Parser(__doc__)
    peers_job.add_flags(p)
    args = flags.parse(p, sys.argv[1:])
    s, found = peers_job.settings(args), {}
    with tempfile.TemporaryDirectory() as start:
        start_of(s, 0, start)
        errors = in_new_process(first_gradients, s, start)
        print(errors, flush=True)
    for name, seed in RUNS.items():
        with tempfile.TemporaryDirectory() as start:
            lr = start_of(s, seed, start)
            path, loss = in_new_process(run, s, name, start, lr)
        print(f"{name}: loss {loss:.4f}", flush=True)
        found[name] = torch.from_numpy(path), loss
    ours, _ = found["minipeft"]
    rows = [{"run": name, "loss": loss, "distance": [apart(x, y) for x, y in zip(path, ours, strict=True)]}
            for name, (path, loss) in found.items()]
    command = shlex.join(["python", "docs/tools/rounding.py", *sys.argv[1:]])
    settings = {name: value for name, value in asdict(s).items() if name not in ("methods", "compile")}
    write_json(Path(args.out), {"command": command, "card": card(torch.device("cpu")) | peers.versions(),
                                "settings": settings | {"learning_rate": lr}, "first_gradients": errors, "rows": rows})


if __name__ == "__main__":
    raise SystemExit(console.run("rounding.py", main))
