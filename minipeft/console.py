"""What the scripts share: help that teaches, and refusals of one line with exit code 2."""

import argparse
import sys
from collections.abc import Callable

import torch

from .config import Error


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The description as it is written, and every flag with its default."""


class Parser(argparse.ArgumentParser):
    """argparse, but a wrong flag is an Error like any other instead of a page of usage."""

    def __init__(self, description: str):
        super().__init__(description=description, formatter_class=_Help)

    def error(self, message: str):
        raise Error(f"{message} (see --help)")


def device(name: str) -> torch.device:
    """The device of this name. Raises Error when it is not there."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as e:
        raise Error(f"--device {name} cannot be used: {str(e).splitlines()[0]}") from None


def run(script: str, main: Callable[[], None], interrupted: str = "interrupted") -> int:
    """main(), its refusals printed as one line; returns the exit code: 0, 2 for an Error, 130 for Ctrl-C."""
    try:
        main()
    except Error as e:
        print(f"{script}: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{script}: {interrupted}", file=sys.stderr)
        return 130
    return 0
