#!/usr/bin/env python3
"""Distance between runs of one job, step by step: here, in PEFT, and here from a start 1e-7 off (needs the extras).

python docs/tools/rounding.py --job e2e-200.jsonl --base SmolLM2-135M --out docs/results/rounding-smollm2.json

A soft prompt is tuned as by `bench.py peers --job`. Training amplifies rounding: where PEFT's run ends no further from
ours than ours from its own copy with another last digit, the two programs compute the same.
"""

import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from minipeft import GPT, Error, adapt
from minipeft.bench import flags, peers, peers_job
from minipeft.bench.measure import in_new_process
from minipeft.files.atomic import write_json
from minipeft.methods.prompt_tuning import PromptTuning
from minipeft.runtime import console
from minipeft.runtime.profiling import card

COMMAND = ("python docs/tools/rounding.py --job e2e-200.jsonl --base SmolLM2-135M "
           "--out docs/results/rounding-smollm2.json")
RUNS = {"minipeft": 0, "minipeft, start 1e-7 off": 1, "peft": 0}  # seed of the change


def run(s: peers_job.JobSettings, name: str, start: str, lr: float) -> tuple:
    """Tune once -> the prompt after every step (steps, P, C), the first clipped gradient (P, C), the final loss."""
    batches, seen = peers_job.Batches(s), []
    make = peers_job.theirs if name == "peft" else peers_job.ours

    def note(optimizer, *_) -> None:
        [p] = (p for group in optimizer.param_groups for p in group["params"])
        seen.append((p.detach().clone(), p.grad.detach().clone()))

    training, loss = make(s, batches, start, lr, False)
    hook = register_optimizer_step_post_hook(note)
    training()
    hook.remove()
    if len(seen) != batches.steps:
        raise Error(f"{name}: {len(seen)} steps seen of {batches.steps}")
    with torch.no_grad():
        last = mean(float(loss(*batches[i])) for i in range(batches.steps)[-peers_job.LAST :])
    return torch.stack([p for p, _ in seen]).double().numpy(), seen[0][1].double().numpy(), last


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
    for name, seed in RUNS.items():
        with tempfile.TemporaryDirectory() as start:
            lr = start_of(s, seed, start)
            path, gradient, loss = in_new_process(run, s, name, start, lr)
        print(f"{name}: loss {loss:.4f}", flush=True)
        found[name] = torch.from_numpy(path), torch.from_numpy(gradient), loss
    ours, first, _ = found["minipeft"]
    rows = [{"run": name, "loss": loss, "first_gradient": apart(gradient, first),
             "distance": [apart(x, y) for x, y in zip(path, ours, strict=True)]}
            for name, (path, gradient, loss) in found.items()]
    settings = {name: value for name, value in asdict(s).items() if name not in ("methods", "compile")}
    write_json(Path(args.out), {"command": COMMAND, "card": card(torch.device("cpu")) | peers.versions(),
                                "settings": settings | {"learning_rate": lr}, "rows": rows})


if __name__ == "__main__":
    raise SystemExit(console.run("rounding.py", main))
