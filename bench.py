#!/usr/bin/env python3
"""Measure what tuning costs. Without arguments: every method against full fine-tuning on a small GPT with random weights.

    python bench.py                                              the nano shape, under 3 minutes on 2 cores
    python bench.py --preset gpt2 --batch-size 4 --steps 5       the 124M shape
    python bench.py --methods prefix --num-virtual-tokens 1 16 256
    python bench.py --compile --out result.json
    python bench.py attention                                    our attention kernel against torch's
    python bench.py peers                                        a training step here and in peft + transformers
    python bench.py serving                                      many tasks in one batch, and long prefixes shared by it
    python bench.py params                                       the same costs by closed forms, on a shape of any size
    python bench.py quality --quick                              what every method reaches, on equal terms
    python bench.py report                                       tables, figures and a page of that
    python bench.py bases                                        pretrain the bases that ship with the package

Columns: parameters trained, stored for one task, and trained in % of the base; the adapter on the disk; the optimizer's state;
what autograd saves for backward; peak memory of a training process; a training step (B·T real tokens), also as a ratio to full
fine-tuning's and to the time its matrix products alone would take (floor); a forward pass without gradients. The last line of
stdout is one JSON document. `python bench.py attention --help`, `peers --help`, `serving --help` and `params --help` explain
the others.
"""

import argparse
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import torch

from docs.tools import comparison
from minipeft import METHODS, PRESETS, Error
from minipeft.accounting.shapes import EMBEDDED, SHAPES
from minipeft.bench import attention, bases, cost, params, peers, quality, serving
from minipeft.data import BASES
from minipeft.files.atomic import write_json
from minipeft.runtime.console import Parser, run, seed
from minipeft.runtime.devices import device


def cost_arguments(argv) -> argparse.Namespace:
    p = Parser(__doc__)
    add = p.add_argument
    add("--preset", default="nano", help=f"shape of the base: one of {', '.join(PRESETS)}")
    methods = [m for m in METHODS if m != "full"]
    add("--methods", nargs="+", default=methods, metavar="METHOD", help="which to set against full, which always runs as the yardstick")
    add(
        "--num-virtual-tokens",
        type=int,
        nargs="+",
        default=[8, 32, 128],
        metavar="P",
        help="lengths of prompt and prefix (a hard prompt: the shortest)",
    )
    add("--batch-size", type=int, default=8, metavar="B", help="sequences a step")
    add("--seq-len", type=int, default=128, metavar="T", help="real tokens a sequence")
    add("--steps", type=int, default=20, help="timed steps of each method")
    add("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the products, by autocast")
    add("--compile", action=argparse.BooleanOptionalAction, default=False, help="torch.compile the blocks; its seconds have a column")
    return common(p, argv)


def attention_arguments(argv) -> argparse.Namespace:
    p = Parser(attention.__doc__)
    add = p.add_argument
    grid = [f"{x.B}x{x.nh}x{x.T}x{x.P}x{x.hs}" for x in attention.GRID]
    add("--shapes", nargs="+", default=grid, metavar="BxHxTxPxS", help="batch, heads, tokens, prefix length, head size")
    add("--dtype", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"], help="of all tensors")
    add("--steps", type=int, default=15, help="timed calls of each backend")
    return common(p, argv)


def peers_arguments(argv) -> argparse.Namespace:
    p = Parser(peers.__doc__)
    add = p.add_argument
    add("--preset", default="gpt2", help=f"shape of the base (nano with learned positions): one of {', '.join(PRESETS)}")
    add("--methods", nargs="+", default=list(peers.METHODS), metavar="METHOD", help=f"of {', '.join(peers.METHODS)}, which both have")
    add("--num-virtual-tokens", type=int, default=20, metavar="P", help="length of prompt and prefix")
    add("--batch-size", type=int, default=4, metavar="B", help="sequences a step")
    add("--seq-len", type=int, default=128, metavar="T", help="real tokens a sequence")
    add("--supervised", type=float, default=1.0, metavar="SHARE", help="of the target tokens")
    add("--steps", type=int, default=5, help="timed steps of each")
    add("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the base; what adapters train is float32")
    add("--compile", action=argparse.BooleanOptionalAction, default=True, help="run both through torch.compile as well")
    return common(p, argv)


def serving_arguments(argv) -> argparse.Namespace:
    p = Parser(serving.__doc__)
    add = p.add_argument
    add("--preset", default="gpt2", help=f"shape of the base: one of {', '.join(PRESETS)}; its block size grows with the prefixes")
    add("--tasks", type=int, nargs="+", default=[1, 8, 64], metavar="N", help="how many tasks the rows of a batch have")
    add("--num-virtual-tokens", type=int, default=20, metavar="P", help="of every task")
    add("--prefixes", type=int, nargs="+", default=[128, 1024, 16384], metavar="P", help="lengths of a prefix shared by all rows")
    add("--batch-size", type=int, default=64, metavar="B", help="sequences decoded together")
    add("--seq-len", type=int, default=16, metavar="T", help="tokens of the prompts they go on from")
    add("--steps", type=int, default=12, help="timed tokens of each")
    return common(p, argv)


SIZES = {  # of the methods, for `params`: flag's type, and its help
    "num_virtual_tokens": (int, "P", "of a prompt or prefix (default: 8)"),
    "space": (str, "kv|hidden", "of a prefix: keys and values (default), or hidden vectors"),
    "encoder_hidden_size": (int, "M", "width of the MLP of --prefix-projection (default: C)"),
    "r": (int, "R", "rank of LoRA (default: 8)"),
    "bottleneck_size": (int, "M", "of an adapter (default: 8)"),
    "placement": (str, "houlsby|pfeiffer", "adapters after attention and MLP (default), or after the MLP alone"),
    "adapter_len": (int, "K", "prompts a layer of LLaMA-Adapter (default: 10)"),
    "adapter_layers": (int, "N", "layers that have them (default: 30 of 32)"),
    "gate": (str, "head|layer", "of LLaMA-Adapter: one a head (default), or one a layer"),
}


def params_arguments(argv) -> argparse.Namespace:
    p = Parser(params.__doc__)
    add = p.add_argument
    add(
        "--model",
        default="gpt2",
        metavar="MODEL",
        help=f"a Hugging Face folder (its config.json is read), or {', '.join([*PRESETS, *SHAPES])}",
    )
    add("--method", help=f"derive one of {', '.join(METHODS)} line by line, instead of the table")
    for name, (kind, metavar, text) in SIZES.items():
        add(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=text)
    add("--prefix-projection", action="store_true", default=None, help="a prefix made by an MLP")
    add("--target-modules", nargs="+", metavar="NAME", help="linears that LoRA hooks (default: c_attn; or q_proj and v_proj)")
    add("--tasks", type=int, default=1000, metavar="N", help="tasks to store")
    add("--batch-size", type=int, default=8, metavar="B", help="sequences a step")
    add("--seq-len", type=int, default=128, metavar="T", help="real tokens a sequence")
    return parsed(p, argv)


def common(p: Parser, argv) -> argparse.Namespace:
    """The flags that every measurement on a machine has, and what is checked for all of them."""
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1 …")
    p.add_argument("--seed", type=seed, default=0, help="of weights and tokens")
    args = parsed(p, argv)
    args.device = str(device(args.device))
    return args


def parsed(p: Parser, argv) -> argparse.Namespace:
    """The flags, with one for the JSON document, and what is checked for all measurements."""
    p.add_argument("--out", metavar="FILE.json", help="write the JSON document there too")
    args = p.parse_args(argv)
    if args.out and Path(args.out).is_dir():
        raise Error(f"--out {args.out} is a folder: the JSON document needs a file's name")
    if "preset" in args and args.preset not in PRESETS:
        raise Error(f"--preset must be one of {', '.join(PRESETS)}, not {args.preset!r}")
    for name in ("batch_size", "seq_len", "steps"):
        if getattr(args, name, 1) < 1:
            raise Error(f"--{name.replace('_', '-')} must be at least 1, not {getattr(args, name)}")
    return args


def measure_cost(argv) -> tuple[dict, str, str | None]:
    args = cost_arguments(argv)
    settings = cost.Settings(
        preset=args.preset,
        config=PRESETS[args.preset],
        methods=tuple(args.methods),
        num_virtual_tokens=tuple(args.num_virtual_tokens),
        batch_size=args.batch_size,
        seq_len=args.seq_len,
        steps=args.steps,
        seed=args.seed,
        device=args.device,
        dtype=args.dtype,
        compile=args.compile,
    )
    result = cost.run(settings)
    return result, cost.table(result), args.out


def measure_attention(argv) -> tuple[dict, str, str | None]:
    args = attention_arguments(argv)
    result = attention.run(
        attention.Settings(tuple(map(shape, args.shapes)), tuple(dict.fromkeys(args.dtype)), args.steps, args.seed, args.device)
    )
    return result, attention.table(result), args.out


def shape(text: str) -> attention.Shape:
    sizes = text.split("x")
    if len(sizes) != 5 or not all(x.isdecimal() for x in sizes) or min(map(int, sizes[:3] + sizes[4:])) < 1:
        raise Error(f"--shapes {text!r} must be five whole numbers BxHxTxPxS, such as 4x12x128x20x64; only P may be 0")
    return attention.Shape(*map(int, sizes))


def measure_peers(argv) -> tuple[dict, str, str | None]:
    args = peers_arguments(argv)
    for method in args.methods:
        if method not in peers.METHODS:
            raise Error(f"--methods must be of {', '.join(peers.METHODS)}, which both libraries have, not {method!r}")
    if not 0 < args.supervised <= 1:
        raise Error(f"--supervised must be above 0 and at most 1, not {args.supervised:g}")
    config = PRESETS[args.preset]
    if config.projections == "joined":
        config = replace(config, position="learned")  # transformers' GPT-2 has no other
    P = args.num_virtual_tokens
    if P < 1 or P + args.seq_len > config.block_size:
        raise Error(f"{P} virtual + {args.seq_len} real tokens do not fit the block size of {config.block_size}")
    settings = peers.Settings(
        preset=args.preset,
        config=config,
        methods=tuple(dict.fromkeys(args.methods)),
        num_virtual_tokens=P,
        batch_size=args.batch_size,
        seq_len=args.seq_len,
        supervised=args.supervised,
        steps=args.steps,
        seed=args.seed,
        device=args.device,
        dtype=args.dtype,
        compile=args.compile,
    )
    result = peers.run(settings)
    return result, peers.table(result), args.out


def measure_serving(argv) -> tuple[dict, str, str | None]:
    args = serving_arguments(argv)
    for name in ("tasks", "num_virtual_tokens", "prefixes"):
        if min(value if isinstance(value := getattr(args, name), list) else [value]) < 1:
            raise Error(f"--{name.replace('_', '-')} must be at least 1")
    if max(args.tasks) > args.batch_size:
        raise Error(f"{max(args.tasks)} tasks do not fit a batch of {args.batch_size} rows: every row has one")
    longest = max(*args.prefixes, args.num_virtual_tokens) + args.seq_len + args.steps + 2
    config = PRESETS[args.preset]
    settings = serving.Settings(
        preset=args.preset,
        config=replace(config, block_size=max(config.block_size, longest)),
        batch_size=args.batch_size,
        seq_len=args.seq_len,
        tasks=tuple(dict.fromkeys(args.tasks)),
        num_virtual_tokens=args.num_virtual_tokens,
        prefixes=tuple(dict.fromkeys(args.prefixes)),
        steps=args.steps,
        seed=args.seed,
        device=args.device,
    )
    result = serving.run(settings)
    return result, serving.table(result), args.out


def measure_params(argv) -> tuple[dict, str, str | None]:
    args = params_arguments(argv)
    if args.method not in (None, *METHODS):
        raise Error(f"--method must be one of {', '.join(METHODS)}, not {args.method!r}")
    sizes = {name: value for name in (*SIZES, "prefix_projection", "target_modules") if (value := getattr(args, name)) is not None}
    result = params.run(params.Settings(args.model, args.method, sizes, args.tasks, args.batch_size, args.seq_len))
    return result, params.table(result), args.out


def measure_bases(argv) -> tuple[dict, str, str | None]:
    p = Parser(bases.__doc__)
    p.add_argument("--sizes", nargs="+", choices=list(EMBEDDED), default=list(EMBEDDED), help="which to pretrain")
    p.add_argument("--folder", metavar="FOLDER", type=Path, default=BASES["nano"].parent, help="where SIZE/ goes")
    args = parsed(p, argv)
    result = bases.run(list(dict.fromkeys(args.sizes)), args.folder)
    return result, bases.table(result), args.out


MEASUREMENTS = {
    "attention": measure_attention,
    "bases": measure_bases,
    "params": measure_params,
    "peers": measure_peers,
    "quality": lambda argv: quality.run(argv, comparison.tables),
    "report": comparison.run,
    "serving": measure_serving,
}


def main(argv=None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in MEASUREMENTS:
        result, table, out = MEASUREMENTS[argv[0]](argv[1:])
    else:
        result, table, out = measure_cost(argv)
    result = {"command": shlex.join(["python", "bench.py", *argv]), **result}
    print(table)
    print(json.dumps(result))
    if out:
        write_json(Path(out), result)


if __name__ == "__main__":
    sys.exit(run("bench.py", main))
