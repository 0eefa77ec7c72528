"""What the scripts share: help that teaches, and refusals of one line with exit code 2."""

import argparse
import os
import signal
import sys
from collections.abc import Callable

from tqdm import tqdm

from ..config import Error
from .memory import out_of_memory
from .processes import is_main_process, rank, world_size
from .signals import Stopped, ignore_terminate, terminable


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The description as it is written, and every flag with its default, unless its help says what that is."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28, width=100)

    def _get_help_string(self, action):
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """argparse, but a wrong flag is an Error like any other instead of a page of usage."""

    def __init__(self, description: str, **settings):
        super().__init__(description=description, formatter_class=_Help, **settings)

    def error(self, message: str):
        raise Error(f"{message} (see --help)")




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


def progress(*of, **settings) -> tqdm:
    """A progress bar; of several processes the leader alone shows one."""
    return tqdm(*of, dynamic_ncols=True, disable=not is_main_process(), **settings)


def tell(script: str, message: str) -> None:
    """One line on stderr. Before processes have joined, all of them refuse the same, and the first one says so for all."""
    if world_size() > 1:
        script = f"\n{script}, process {rank()}"  # on a line of its own, below the leader's progress bar
    elif os.environ.get("RANK", "0") != "0":
        return
    print(f"{script}: {message}", file=sys.stderr)


def run(script: str, main: Callable[[], None], lower: str = "the shape") -> int:
    """main(), its refusals printed as one line; returns the exit code: 0, 2 for an Error, a file's or memory's, 130 for SIGINT,
    143 for SIGTERM, and 141, without a line, when nobody reads on. lower: what takes less memory, told when it runs out."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a console without our characters shows a mark instead of failing
    with terminable():
        try:
            main()
            sys.stdout.flush()
            return 0
        except BrokenPipeError:  # whoever read our lines (head, a pager) has had enough; at exit nothing more is written either
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return 128 + 13  # SIGPIPE's number, as shells give it
        except (Error, OSError, RuntimeError, MemoryError, KeyboardInterrupt) as e:
            ignore_terminate()
            return refusal(script, e, lower)


def refusal(script: str, e: BaseException, lower: str) -> int:
    """Tell what ended a script, in one line; returns its exit code. What is a mistake in the code goes on as it is."""
    if isinstance(e, KeyboardInterrupt):
        e = e if isinstance(e, Stopped) else Stopped(signal.SIGINT, "interrupted")
        if is_main_process() or not e.agreed:
            print(file=sys.stderr)  # the progress bar's line is not ended
            tell(script, str(e))
        return e.exit_code
    if isinstance(e, RuntimeError | MemoryError):
        if "memory" not in str(e) and not isinstance(e, MemoryError):
            raise e
        e = f"{out_of_memory(str(e))}: lower {lower}"
    tell(script, str(e))
    return 2
