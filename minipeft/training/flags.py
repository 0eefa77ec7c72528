"""Flags of train.py that belong to single methods, and the checks of all its flags."""

import argparse
import importlib.util
from pathlib import Path

from ..config import Error
from ..data.tasks import find_task
from ..data.template import DEFAULT, Template
from ..files.atomic import check_destination
from ..methods import METHODS, hyperparameters_of
from ..methods.base import WIDE
from ..runtime.console import Parser, line_breaks

LADDER = ("hard-prompt", "prompt", "prefix")  # the levels of --climb

METHOD_FLAGS = {
    "num_virtual_tokens": dict(type=int, metavar="P", help="virtual tokens (default: the length of what it starts from, or 8)"),
    "space": dict(choices=["kv", "hidden"], help="train keys and values, or the hidden vectors they are made of (default: kv)"),
    "prefix_projection": dict(action="store_true", default=None, help="train a two-layer MLP that produces the prefix; not saved"),
    "encoder_hidden_size": dict(type=int, metavar="M", help="width of that MLP (default: the base's)"),
    "init": dict(choices=["random", "vocab"], help="start from noise or from tokens (default: prompt vocab, prefix random)"),
    "init_from_text": dict(metavar="TEXT", help="start from the embeddings, or keys and values, of this text"),
    "init_from": dict(metavar="ADAPTER", help="start from an adapter on a lower level of the ladder"),
    "wordings": dict(nargs="+", metavar="TEXT", help="candidates (default: all instructions of all skills)"),
    "search": dict(type=int, metavar="P", help="also search for P tokens along the gradient, for --steps steps"),
    "r": dict(type=int, help="rank (default: 8)"),
    "lora_alpha": dict(type=float, metavar="A", help="the update is scaled by A / r (default: 8)"),
    "lora_dropout": dict(type=float, metavar="SHARE", help="dropout of its input in training (default: 0)"),
    "target_modules": dict(nargs="+", metavar="LINEAR", help="of c_attn, attn.c_proj, c_fc, mlp.c_proj in GPT-2's shape, q_proj, "
        "k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj in Llama's (default: c_attn; q_proj v_proj)"),
    "bottleneck_size": dict(type=int, metavar="M", help="width of the bottleneck (default: 8)"),
    "placement": dict(choices=["houlsby", "pfeiffer"], help="after attention and MLP, or after the MLP alone (default: houlsby)"),
    "adapter_len": dict(type=int, metavar="K", help="prompt vectors of a layer (default: 10)"),
    "adapter_layers": dict(type=int, metavar="N", help="in the top N layers (default: 30 of 32 of them)"),
    "gate": dict(choices=["head", "layer"], help="one gate a head, or one a layer, as PEFT has it (default: head)"),
}
STARTS = ("init", "init_from_text", "init_from")  # only one of them
SET_BY_CLIMB = ("num_virtual_tokens", "prefix_projection", *STARTS)
PARAMETER = {"init_from_text": "init", "init_from": "init", "wordings": "tokens", "search": "tokens"}  # where adapt() has another name


def add_method_flags(parser, names, **settings) -> None:
    """Add these flags of METHOD_FLAGS to a parser or group; settings override a flag's own."""
    start = parser.add_mutually_exclusive_group()
    for name in names:
        target = start if name in STARTS else parser
        target.add_argument("--" + name.replace("_", "-"), **{**METHOD_FLAGS[name], **settings})


def flags_of(methods: list[str]) -> list[str]:
    """Names in METHOD_FLAGS that one of these methods takes. Raises Error for an unknown method."""
    known = [name for method in methods for name in hyperparameters_of(method)]
    return [flag for flag in METHOD_FLAGS if PARAMETER.get(flag, flag) in known]


def method_help(method: str) -> str:
    """The help page of one method, or of several joined by '+'."""
    lines = [f"Flags of --method {method}, beside those of python train.py --help."]
    for m in (METHODS[name] for name in method.split("+") if name in METHODS):
        if m.learning_rate:
            lines.append(f"Learning rate of {m.name}: {m.learning_rate:g}, or {m.learning_rate_wide:g} on a base with "
                         f"{WIDE} channels or more.")
    p = Parser("\n".join(lines), usage=f"python train.py --method {method} [flags]", add_help=False)
    add_method_flags(p.add_argument_group(method), flags_of(method.split("+")))
    return p.format_help()


def check(args: argparse.Namespace) -> argparse.Namespace:
    """The flags with their defaults filled in. Raises Error for those that are wrong, before anything is loaded."""
    for name in ("batch_size", "steps", "epochs", "limit", "answers", "max_length"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise Error(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    for name in ("dev", "test", "columns", "limit", "template", "answers", "epochs"):
        if args.data is None and getattr(args, name) is not None:
            raise Error(f"--{name} goes with --data: a task makes its own examples")
    args.template = Template(DEFAULT if args.template is None else line_breaks(args.template))
    args.batch_size = args.batch_size or (64 if args.data is None else 8)
    if args.answers and importlib.util.find_spec("sacrebleu") is None:
        raise Error("--answers scores by BLEU and chrF, which needs: pip install sacrebleu")
    if args.lr is not None and not 0 < args.lr <= 100:
        raise Error(f"--lr must be above 0 and at most 100, not {args.lr:g}")
    args.methods = args.method.split("+")
    known = flags_of(LADDER if args.climb else args.methods)
    find_task(args.task)
    for flag in METHOD_FLAGS:
        if getattr(args, flag) is not None and flag not in known:
            raise Error(f"--{flag.replace('_', '-')} does not go with {'--climb' if args.climb else '--method ' + args.method}")
    if args.climb and (args.eval_only or any(getattr(args, flag) for flag in SET_BY_CLIMB)):
        raise Error("--climb starts every level of the ladder from the one below: no --init, --num-virtual-tokens, "
                    "--prefix-projection or --eval-only")
    if (args.resume or args.keep_best) and args.method == "hard-prompt" and not args.climb:
        raise Error(f"nothing to {'resume' if args.resume else 'keep the best of'}: hard-prompt trains nothing")
    if args.wordings and "" in args.wordings:
        raise Error("--wordings must be texts of at least one letter")
    if args.search is not None and args.search < 1:
        raise Error(f"--search must be at least 1 token, not {args.search}")
    if "full" in args.methods and args.base_dtype == "bfloat16":
        raise Error("--base-dtype bfloat16 is for a frozen base: full trains every weight, in float32 "
                    "(--dtype bfloat16 works in both)")
    name = "climb" if args.climb else args.method
    args.out = Path(args.out or f"runs/{name}-{Path(args.data).stem if args.data else args.task}")
    if not args.eval_only:
        content = "a combination" if len(args.methods) > 1 else "a base" if args.method == "full" else "an adapter"
        for folder in [args.out / level for level in LADDER] if args.climb else [args.out]:
            check_destination(folder, content)
    return args
