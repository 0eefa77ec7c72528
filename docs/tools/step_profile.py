#!/usr/bin/env python3
"""Where the time goes: of a training step on the nano shape, of a job's step, of a generated token (needs the extras).

python docs/tools/step_profile.py --out docs/results/profile-nano.json
python docs/tools/step_profile.py --base SmolLM2-135M --job e2e-200.jsonl --out docs/results/profile-job.json
python docs/tools/step_profile.py --base SmolLM2-135M --out docs/results/profile-generation.json

torch.profiler over minipeft and peft + transformers at the same work: the steps of bench.py peers (ours compiled), the
first ones of bench.py peers --job with a prefix, or the tokens of bench.py peers --generate in bfloat16.
"""

import argparse
import shlex
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[2]))

from minipeft import GPT, PRESETS, adapt
from minipeft.bench import peers, peers_generation, peers_job
from minipeft.files.atomic import write_json
from minipeft.methods.prefix_tuning import PrefixTuning
from minipeft.runtime.profiling import card

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn::_linear_pointwise")
ATTENTION = ("flash_attention",)  # torch's fused operator has its products inside
LINE = "{method:<8} {rival:<18} matmuls {products:7.1f}  attention {attention:7.1f}  rest {rest:7.1f} ms"
STEPS = 8  # of a job


def parts(call: Callable[[], object], times: int, each: int = 1, warm: int = 3) -> dict[str, float]:
    """Milliseconds in matmuls, in torch's fused attention (matmuls and softmax), and in all the rest, and how many
    operators that is: of a call, or of each of its `each` steps or tokens."""
    for _ in range(warm):
        call()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(times):
            call()
    sums = {"products": 0.0, "attention": 0.0, "rest": 0.0, "operators": 0.0}
    for event in profiler.key_averages():
        in_attention = any(a in event.key for a in ATTENTION)
        kind = "products" if event.key in PRODUCTS else "attention" if in_attention else "rest"
        sums[kind] += event.self_cpu_time_total / 1000 / times / each
        sums["operators"] += event.count / times / each
    return sums


def training(steps: int) -> tuple[dict, list[dict]]:
    """Settings, and a row for each method and program."""
    config = replace(PRESETS["nano"], position="learned")
    s = peers.PeersSettings(preset="nano", config=config, methods=tuple(peers.in_both(config)), num_virtual_tokens=20,
                            batch_size=4, seq_len=128, supervised=1.0, steps=steps, seed=0, device="cpu",
                            dtype="float32", compile=True)
    rows = []
    for method in s.methods:
        for name in ("minipeft compiled", "peft"):
            rival = peers.build(s, method, name)
            rows.append({"method": method, "rival": name, **parts(lambda r=rival: peers.train_step(r), steps)})
            print(LINE.format(**rows[-1]))
    return asdict(s), rows


def with_prefix(s: peers_generation.GenerationSettings | peers_job.JobSettings, make: Callable, times: int, each: int,
                warm: int) -> tuple[dict, list[dict]]:
    """Settings, and a row for each program; make(rival, base, folder of the prefix) -> its work as a function."""
    torch.manual_seed(s.seed)
    base, rows = GPT.from_pretrained(s.base, getattr(torch, s.dtype)), []
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as start:
        warnings.simplefilter("ignore")
        adapt(base, PrefixTuning.name, num_virtual_tokens=s.num_virtual_tokens).save(start)
        for rival in ("minipeft", "peft"):
            spent = parts(make(rival, base, start), times, each, warm)
            rows.append({"method": PrefixTuning.name, "rival": rival, **spent})
            print(LINE.format(**rows[-1]))
    return asdict(s), rows


def generation(base: str, times: int) -> tuple[dict, list[dict]]:
    s = peers_generation.GenerationSettings(base=base, num_virtual_tokens=20, dtype="bfloat16", seed=0, device="cpu",
                                            batch_sizes=(1,), seq_len=16, steps=times)

    def make(rival: str, gpt: GPT, start: str) -> Callable:
        idx = torch.arange(s.seq_len)[None]
        ours = rival == "minipeft"
        generated, _ = peers_generation.ours(gpt, start) if ours else peers_generation.theirs(s, start)
        return lambda: generated(idx)

    return with_prefix(s, make, times, peers_generation.NEW, 3)


def job(base: str, file: str, times: int) -> tuple[dict, list[dict]]:
    s = peers_job.JobSettings(base=base, num_virtual_tokens=20, dtype="float32", seed=0, device="cpu", job=file,
                              methods=(PrefixTuning.name,), epochs=1, batch_size=8, compile=False)
    batches = peers_job.Batches(s)
    batches.steps = STEPS

    def make(rival: str, gpt: GPT, start: str) -> Callable:
        return (peers_job.ours if rival == "minipeft" else peers_job.theirs)(s, batches, start, 1e-3, False)[0]

    return with_prefix(s, make, times, STEPS, 1)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--base", metavar="FOLDER", help="profile a generation on this base, or with --job a job's steps")
    p.add_argument("--job", metavar="FILE.jsonl", help="its examples")
    p.add_argument("--steps", type=int, help="profiled steps of each, or repetitions (default: 30, or 3, or 1)")
    p.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    args = p.parse_args()
    if args.job:
        settings, rows = job(args.base, args.job, args.steps or 1)
    else:
        settings, rows = generation(args.base, args.steps or 3) if args.base else training(args.steps or 30)
    write_json(args.out, {"command": shlex.join(["python", *sys.argv]), "card": card(torch.device("cpu")),
                          "settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
