"""Flags of train.py and bench.py that set hyper-parameters: made from what the methods declare."""

import argparse
import types
import typing
from typing import Any, NamedTuple

from ..checks import Error
from ..methods import METHODS, method_class
from ..methods.base import WIDE, Method, Start, Text, Tokens
from ..runtime.console import Parser, local_path, utf8_text


class Flag(NamedTuple):
    """A flag, the argument of adapt() that it sets, and argparse's settings."""

    argument: str
    settings: dict[str, Any]


STARTS = {  # flags for an argument of the type Start, one of them at most
    "init_from_text": {"type": utf8_text, "metavar": "TEXT",
                       "help": "start from the embeddings, or keys and values, of this text"},
    "init_from": {"type": local_path, "metavar": "ADAPTER",
                  "help": "start from an adapter on a lower level of the ladder"}}
CHOSEN = {  # flags for an argument of the type Tokens
    "wordings": {"nargs": "+", "type": utf8_text, "metavar": "TEXT",
                 "help": "candidates (default: all instructions of all skills)"},
    "search": {"type": int, "metavar": "P", "help": "also search for P tokens along the gradient, for --steps steps"}}


def flags_from(method: type[Method]) -> dict[str, Flag]:
    """The flags of one method, from the signature of its __init__ and its help texts.

    Raises Error for a hyper-parameter of a type that no flag can have.
    """
    found, hints = {}, typing.get_type_hints(method.__init__, include_extras=True)
    for name, p in method.arguments().items():
        hint, spec = hints.get(name), method.hyperparameters[name]
        if hint in (Tokens, Tokens | None):  # Python 3.10 adds None to the type where it is the default
            found |= {flag: Flag(name, settings) for flag, settings in CHOSEN.items()}
            continue
        if hint in (Text, Text | None):  # the script's own --template
            continue
        if hint == Start:
            found |= {flag: Flag(name, settings) for flag, settings in STARTS.items()}
        has_none = p.default is None or p.default is False
        text = spec.help if "(default" in spec.help or has_none else f"{spec.help} (default: {p.default})"
        found[name] = Flag(name, {**_settings(method, name, hint, p.default), "help": text})
    return found


def _settings(method: type[Method], name: str, hint: Any, default: Any) -> dict[str, Any]:
    """argparse's settings for an argument of this type."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)] if is_union else [hint]
    shown = {"metavar": method.hyperparameters[name].symbol.upper() or name.rpartition("_")[2].upper()}
    if hint == Start:
        return {"choices": ("random", "vocab")}
    if len(kinds) == 1 and typing.get_origin(kinds[0]) is typing.Literal:
        return {"choices": typing.get_args(kinds[0])}
    if kinds == [bool] and not default:
        return {"action": "store_true", "default": None}
    if {list[str], tuple[str, ...]} & set(kinds):
        return {"nargs": "+", **shown}
    if kinds in ([int], [float], [str]):
        return {"type": kinds[0], **shown}
    raise Error(f"no flag can set {name} of {method.name!r}: its type must be int, float, str, list[str], a Literal, "
                "Start, Tokens, or bool with False as its default")


def merge_flags(flags: dict[str, dict[str, Flag]]) -> dict[str, Flag]:
    """All methods' flags, {method: flags}. Raises Error where two need one for different values."""
    every: dict[str, Flag] = {}
    for method, of_method in flags.items():
        for name, flag in of_method.items():
            first, second = ({**f.settings, "help": "", "metavar": ""} for f in (every.get(name, flag), flag))
            if first != second:
                other = next(m for m in flags if name in flags[m])
                raise Error(f"{as_flag(name)} takes another type of value for {other!r} than for {method!r}: "
                            "one of the hyper-parameters needs another name")
            every.setdefault(name, flag)
    return every


def as_flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


METHOD_FLAGS = {name: flags_from(method) for name, method in METHODS.items()}
ALL_FLAGS = merge_flags(METHOD_FLAGS)
def trains_base(names: list[str]) -> bool:
    """True if one of these methods trains the base's own weights."""
    return not all(method_class(name).freezes_base for name in names)


def trains_anything(names: list[str]) -> bool:
    """False if these methods train nothing."""
    return any(method_class(name).trains() for name in names)


LADDER = tuple(name for name, method in METHODS.items() if hasattr(method, "ladder_value"))  # the levels of --climb
SET_BY_CLIMB = ("num_virtual_tokens", "prefix_projection", "init", *STARTS)


def add_method_flags(parser, flags: dict[str, Flag], **settings) -> None:
    """Add flags to a parser or group; settings override a flag's own. Raises Error where the parser
    has one of that name already."""
    starts = {flag.argument for name, flag in flags.items() if name in STARTS}
    exclusive = parser.add_mutually_exclusive_group() if starts else parser
    for name, flag in flags.items():
        where = exclusive if flag.argument in starts else parser
        try:
            where.add_argument(as_flag(name), **flag.settings | settings)
        except argparse.ArgumentError:
            owners = " and ".join(method for method in METHOD_FLAGS if name in METHOD_FLAGS[method])
            raise Error(f"{as_flag(name)} is a flag of the script itself: the hyper-parameter {flag.argument} "
                        f"of {owners} needs another name") from None


def flags_of(methods) -> list[str]:
    """Names of the flags that one of these methods takes. Raises Error for an unknown method."""
    known = [flag for method in methods for flag in METHOD_FLAGS[method_class(method).name]]
    return [flag for flag in ALL_FLAGS if flag in known]


def arguments_from_flags(args: argparse.Namespace, methods) -> dict:
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
