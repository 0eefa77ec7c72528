"""What the scripts share: help that teaches, and refusals of one line with exit code 2."""

import argparse
import sys
from collections.abc import Callable

import torch

from .config import Error


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The description as it is written, and every flag with its default, unless its help says what that is."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """argparse, but a wrong flag is an Error like any other instead of a page of usage."""

    def __init__(self, description: str, **settings):
        super().__init__(description=description, formatter_class=_Help, **settings)

    def error(self, message: str):
        raise Error(f"{message} (see --help)")


def device(name: str) -> torch.device:
    """The device of this name. Raises Error when it is not there."""
    try:
        if (found := torch.empty(0, device=name).device).type in ("cpu", "cuda", "mps"):
            return found
        raise Error(f"--device {name} cannot be used: only cpu, cuda and mps compute here")
    except (RuntimeError, AssertionError) as e:
        raise Error(f"--device {name} cannot be used: {str(e).splitlines()[0]}") from None


def seed(text: str) -> int:
    """The type of a --seed flag."""
    if not text.isdecimal() or (value := int(text)) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2^63 - 1")
    return value


def line_breaks(text: str) -> str:
    """A flag's text with its \\n as line breaks, which a shell makes hard to type."""
    return text.replace("\\n", "\n")


def shown_as(text: str) -> str:
    """One line that a terminal can show: what it could not is a dot."""
    return "".join(c if c.isprintable() else "·" for c in text)


def run(script: str, main: Callable[[], None], interrupted: str = "interrupted") -> int:
    """main(), its refusals printed as one line; returns the exit code: 0, 2 for an Error, a file's or memory's, 130 for Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a console without our characters shows a mark instead of failing
    try:
        main()
    except (Error, OSError) as e:
        print(f"{script}: {e}", file=sys.stderr)
        return 2
    except RuntimeError as e:
        if "memory" not in str(e):
            raise
        print(f"{script}: memory ran out, try a smaller shape: {str(e).strip().splitlines()[0]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{script}: {interrupted}", file=sys.stderr)
        return 130
    return 0
