"""Flags that several measurements share, grouped by subject, and the checks of their values."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..accounting.shapes import PRESETS
from ..checks import Error, did_you_mean
from ..config import GPTConfig
from ..runtime.console import Parser, local_path, seed
from ..runtime.devices import HELP, default_device, device

DTYPES = ("float32", "bfloat16")
Settings = TypeVar("Settings")


@dataclass(frozen=True, kw_only=True)
class WorkSettings:
    """The work of a measurement on a base with random weights; subclasses add what they vary."""

    preset: str
    config: GPTConfig
    batch_size: int
    seq_len: int
    steps: int
    seed: int
    device: str


@dataclass(frozen=True, kw_only=True)
class PeerSettings:
    """The work of a measurement on a base's own weights, which peft + transformers open too."""

    base: str
    num_virtual_tokens: int
    dtype: str
    seed: int
    device: str


def add_peer_flags(p: Parser) -> None:
    """The flags of PeerSettings, but for --device and --seed."""
    add = p.add_argument_group("base").add_argument
    add("--base", default="small-llama", metavar="FOLDER", type=local_path,
        help="a base that both libraries open")
    add("--num-virtual-tokens", type=int, default=20, metavar="P",
        help="length of prompt and prefix")
    add("--dtype", default="float32", choices=DTYPES, help="of the base; adapters train in float32")


def add_base_flags(p: Parser, preset: str) -> None:
    """--preset: the shape of the base, with random weights."""
    add = p.add_argument_group("base").add_argument
    add("--preset", default=preset, help=f"shape of the base: one of {', '.join(PRESETS)}")


def add_batch_flags(p: Parser, batch_size: int, seq_len: int,
                    seq_len_help: str = "real tokens of a sequence"):
    """--batch-size and --seq-len; returns their group, for more flags."""
    group = p.add_argument_group("batch")
    group.add_argument("--batch-size", type=int, default=batch_size, metavar="B",
                       help="sequences of a step")
    group.add_argument("--seq-len", type=int, default=seq_len, metavar="T", help=seq_len_help)
    return group


def add_machine_flags(p: Parser, steps: int = 0, steps_help: str = ""):
    """--device, --seed and, unless steps is 0, --steps; returns their group, for more flags."""
    group = p.add_argument_group("run")
    group.add_argument("--device", default=default_device(), help=HELP)
    group.add_argument("--seed", type=seed, default=0, help="of weights and tokens")
    if steps:
        group.add_argument("--steps", type=int, default=steps, help=steps_help)
    return group


def parse(p: Parser, argv: list[str]) -> argparse.Namespace:
    """Parse the flags, with --out, and check those that several measurements have. Raises Error."""
    try:
        p.add_argument_group("output").add_argument("--out", metavar="FILE.json", type=local_path,
                                                    help="write the JSON document there")
    except argparse.ArgumentError:  # add_method_flags refuses the names of flags that are added before its own
        raise Error("--out is a flag of the script itself: a hyper-parameter of that name needs another one") from None
    args = p.parse_args(argv)
    if args.out and Path(args.out).is_dir():
        raise Error(f"--out {args.out} is a folder: the JSON document needs a file's name")
    if args.out:  # before anything is measured
        (folder := Path(args.out).parent).mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise Error(f"--out {args.out} cannot be written: {folder} takes no files")
    if "preset" in args and args.preset not in PRESETS:
        raise Error(f"--preset must be one of {', '.join(PRESETS)}, not {args.preset!r}"
                    f"{did_you_mean(args.preset, PRESETS)}")
    for name in ("batch_size", "seq_len", "steps", "epochs"):
        if getattr(args, name, 1) < 1:
            raise Error(f"--{name.replace('_', '-')} must be at least 1, not {getattr(args, name)}")
    if "device" in args:
        args.device = str(device(args.device))
    return args


def check_fits(P: int, T: int, config: GPTConfig) -> None:
    """Raise Error unless P virtual and T real tokens fit the block size."""
    if P + T > config.block_size:
        raise Error(f"{P} virtual + {T} real tokens do not fit the block size of {config.block_size}")


def from_flags(kind: type[Settings], args: argparse.Namespace,
               config: GPTConfig | None = None) -> Settings:
    """Settings filled from the flags of the same names; lists become tuples without repetitions."""
    given = {name: value for name, value in vars(args).items() if name in kind.__dataclass_fields__}
    lists = {name: tuple(dict.fromkeys(value)) for name, value in given.items() if isinstance(value, list)}
    return kind(**given | lists, **({} if config is None else {"config": config}))
