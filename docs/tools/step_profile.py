#!/usr/bin/env python3
"""Where the time of a training step goes on the nano shape: matrix products, and everything else
(needs the extras).

python docs/tools/step_profile.py --out docs/results/profile-nano.json

torch.profiler over steps of minipeft (compiled) and of peft + transformers (eager), by the same
batch and weights as bench.py peers.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parent.parent))

from minipeft import PRESETS
from minipeft.bench import peers
from minipeft.files.atomic import write_json
from minipeft.runtime.profiling import card

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn::_linear_pointwise")
ATTENTION = ("flash_attention",)  # torch's fused operator has its products inside


def parts(rival, steps: int) -> dict[str, float]:
    """Milliseconds of a step in matmuls, in torch's fused attention (matmuls and softmax), and in all the rest."""
    for _ in range(3):
        peers.train_step(rival)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            peers.train_step(rival)
    times = {"products": 0.0, "attention": 0.0, "rest": 0.0}
    for event in profiler.key_averages():
        kind = (
            "products"
            if event.key in PRODUCTS
            else "attention"
            if any(a in event.key for a in ATTENTION)
            else "rest"
        )
        times[kind] += event.self_cpu_time_total / 1000 / steps
    return times


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--steps", type=int, default=30, help="profiled steps of each (default: 30)")
    p.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    args = p.parse_args()
    config = replace(PRESETS["nano"], position="learned")
    s = peers.PeersSettings(
        preset="nano",
        config=config,
        methods=tuple(peers.in_both(config)),
        num_virtual_tokens=20,
        batch_size=4,
        seq_len=128,
        supervised=1.0,
        steps=args.steps,
        seed=0,
        device="cpu",
        dtype="float32",
        compile=True,
    )
    rows = []
    for method in s.methods:
        for name in ("minipeft compiled", "peft"):
            rows.append(
                {"method": method, "rival": name, **parts(peers.build(s, method, name), args.steps)}
            )
            line = "{method:<8} {rival:<18} matmuls {products:5.1f}  attention {attention:5.1f}  rest {rest:5.1f} ms"
            print(line.format(**rows[-1]))
    write_json(
        args.out,
        {
            "command": f"python docs/tools/step_profile.py --out {args.out.name}",
            "card": card(torch.device("cpu")),
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
