"""Flags of train.py and bench.py that set hyper-parameters: made from what the methods declare."""

import argparse
import typing
from typing import Any, NamedTuple

from ..methods import METHODS, method_class
from ..methods.base import WIDE, Method, Start, Tokens
from ..runtime.console import Parser


class Flag(NamedTuple):
    """A flag, the argument of adapt() that it sets, and argparse's settings."""

    argument: str
    settings: dict[str, Any]


STARTS = {  # flags for an argument of the type Start, one of them at most
    "init_from_text": {"metavar": "TEXT", "help": "start from the embeddings, or keys and values, of this text"},
    "init_from": {"metavar": "ADAPTER", "help": "start from an adapter on a lower level of the ladder"}}
CHOSEN = {  # flags for an argument of the type Tokens
    "wordings": {"nargs": "+", "metavar": "TEXT", "help": "candidates (default: all instructions of all skills)"},
    "search": {"type": int, "metavar": "P", "help": "also search for P tokens along the gradient, for --steps steps"}}


def _flags(method: type[Method]) -> dict[str, Flag]:
    """The flags of one method, from the signature of its __init__ and its help texts."""
    found, hints = {}, typing.get_type_hints(method.__init__, include_extras=True)
    for name, p in method.arguments().items():
        hint, spec = hints[name], method.hyperparameters[name]
        has_none = p.default is None or p.default is False
        text = spec.help if "(default" in spec.help or has_none else f"{spec.help} (default: {p.default})"
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)] or [hint]
        if hint == Tokens:
            found |= {flag: Flag(name, settings) for flag, settings in CHOSEN.items()}
            continue
        how: dict[str, Any] = {"type": kinds[0], "metavar": spec.symbol.upper() or name.rpartition("_")[2].upper()}
        if hint == Start:
            how = {"choices": ("random", "vocab")}
            found |= {flag: Flag(name, settings) for flag, settings in STARTS.items()}
        elif typing.get_origin(hint) is typing.Literal:
            how = {"choices": kinds}
        elif hint is bool:
            how = {"action": "store_true", "default": None}
        elif str in kinds:
            how = {"nargs": "+", "metavar": how["metavar"]}
        found[name] = Flag(name, how | {"help": text})
    return found


METHOD_FLAGS = {name: _flags(method) for name, method in METHODS.items()}
ALL_FLAGS = {flag: how for flags in METHOD_FLAGS.values() for flag, how in flags.items()}
LADDER = tuple(name for name, method in METHODS.items() if hasattr(method, "ladder_value"))  # the levels of --climb
SET_BY_CLIMB = ("num_virtual_tokens", "prefix_projection", "init", *STARTS)


def add_method_flags(parser, flags: dict[str, Flag], **settings) -> None:
    """Add flags to a parser or group; settings override a flag's own."""
    starts = {flag.argument for name, flag in flags.items() if name in STARTS}
    exclusive = parser.add_mutually_exclusive_group() if starts else parser
    for name, flag in flags.items():
        where = exclusive if flag.argument in starts else parser
        where.add_argument(as_flag(name), **flag.settings | settings)


def as_flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def flags_of(methods) -> list[str]:
    """Names of the flags that one of these methods takes. Raises Error for an unknown method."""
    known = [flag for method in methods for flag in METHOD_FLAGS[method_class(method).name]]
    return [flag for flag in ALL_FLAGS if flag in known]


def given(args: argparse.Namespace, methods) -> dict:
    """Arguments of adapt() that flags of their own name set."""
    names = [name for name in flags_of(methods) if ALL_FLAGS[name].argument == name]
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def method_help(method: str) -> str:
    """The help page of one method, or of several joined by '+': each has its own group."""
    methods = {name: method_class(name) for name in method.split("+")}
    lines = [f"Flags of --method {method}, beside those of python train.py --help."]
    for name, m in methods.items():
        if m.learning_rate:
            lines.append(f"Learning rate of {name}: {m.learning_rate:g}, or "
                         f"{m.learning_rate_wide:g} on a base with {WIDE} channels or more.")
    p, added = Parser("\n".join(lines), usage=f"python train.py --method {method} [flags]", add_help=False), {}
    for name in methods:
        flags = {flag: how for flag, how in METHOD_FLAGS[name].items() if flag not in added}
        add_method_flags(p.add_argument_group(name), flags)
        added |= flags
    return p.format_help()
