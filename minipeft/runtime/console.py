"""Command lines: readable help, and every refusal as one line with an exit code."""

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from tqdm import tqdm

from ..checks import Error, did_you_mean
from .memory import out_of_memory_message
from .processes import is_main_process, rank, world_size
from .signals import Stopped, ignore_sigterm, sigterm_raises


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the description's line breaks; shows each default that is neither None nor False."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28, width=100)

    def _get_help_string(self, action):
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """ArgumentParser that raises Error for a wrong flag instead of printing the usage."""

    def __init__(self, description: str, **settings):
        super().__init__(description=description, formatter_class=_Help, allow_abbrev=False,
                         **settings)
        self._words: list[str] = []

    def parse_known_args(self, args=None, namespace=None):
        self._words = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str):
        raise Error(f"{message}{self._hint(message)} (see --help)")

    def _hint(self, message: str) -> str:
        """The value, or else the flag, that a misspelt one is close to."""
        if choice := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            return did_you_mean(choice[1], re.findall(r"[\w-]+", choice[2]))
        known = _flags(self)
        given = [word.partition("=")[0] for word in self._words if word.startswith("--")]
        wrong = [flag for flag in given if flag not in known]
        return next(filter(None, (did_you_mean(flag, known) for flag in wrong)), "")


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    """The flags of a parser and of its subcommands."""
    found = list(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [flag for sub in action.choices.values() for flag in _flags(sub)]
    return found


def seed(text: str) -> int:
    """Argument type of a --seed flag."""
    if not text.isdecimal() or (value := int(text)) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2^63 - 1")
    return value


def utf8_text(word: str) -> str:
    """Argument type of a text: UTF-8 in every locale."""
    try:
        return os.fsencode(word).decode() if any("\udc80" <= c <= "\udcff" for c in word) else word
    except UnicodeDecodeError:
        raise argparse.ArgumentTypeError(f"{printable(word)!r} is not UTF-8") from None


def local_path(word: str) -> str:
    """Argument type of a file or folder. Refuses an empty one, and a Windows path on another
    system, where all of it would be one name."""
    if not word:
        raise argparse.ArgumentTypeError("'' is no path: it is empty")
    is_windows = "\\" in word or re.match("[A-Za-z]:/", word)
    if is_windows and os.name != "nt" and not os.path.exists(word):
        raise argparse.ArgumentTypeError(
            f"{printable(word)} is a Windows path: here folders are divided by /, and drives have no letters")
    return word


def line_breaks(text: str) -> str:
    """The text with each \\n typed in a shell as a line break."""
    return text.replace("\\n", "\n")


def printable(text: str) -> str:
    """The text as one line, with a dot for each character a terminal cannot show."""
    return "".join(c if c.isprintable() else "·" for c in text)


def progress(*args, **settings) -> tqdm:
    """A tqdm bar, shown by the main process only."""
    return tqdm(*args, dynamic_ncols=True, disable=not is_main_process(), **settings)


class TimeEstimate:
    """Estimate of a progress bar's remaining time, from its steps 2 to AFTER.

    Call it after every step: after step AFTER it returns the seconds left, otherwise None, and
    prints them if they are at least `least`. For a bar that is not shown it always returns None.
    """

    AFTER = 6  # steps

    def __init__(self, bar: tqdm, least: float = 20.0):
        self.bar, self.least, self.steps, self.began = bar, least, 0, 0.0

    def __call__(self) -> float | None:
        self.steps += 1
        if self.bar.disable:
            return None
        if self.steps == 1:
            self.began = time.monotonic()  # the first step allocates, and may compile
        elif self.steps == self.AFTER:
            left = self.bar.total - self.bar.initial - self.steps
            seconds = left * (time.monotonic() - self.began) / (self.steps - 1)
            if seconds >= self.least:
                time_left = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} minutes"
                self.bar.write(f"about {time_left} on this machine for the {left:,} steps that follow, by the "
                               f"last {self.steps - 1}", file=sys.stderr)
            return seconds
        return None


def command_line(words: list[str]) -> str:
    """A command as a line that the system's shell takes."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def note(text: str) -> None:
    """Print one line to stderr, by the main process only: no error, but the user should know it."""
    if is_main_process():
        print(f"note: {text}", file=sys.stderr)


def print_error(script: str, message: str) -> None:
    """Print one line to stderr, with the rank if there are several processes."""
    if world_size() > 1:
        script = f"\n{script}, process {rank()}"  # a line of its own, below the progress bar
    elif os.environ.get("RANK", "0") != "0" and os.environ.get("WORLD_SIZE", "1") != "1":
        return  # before they have joined, all fail alike
    print(f"{script}: {message}", file=sys.stderr)


def run(script: str, main: Callable[[], None], lower: str = "the shape") -> int:
    """Call main() and turn what it raises into one line on stderr and an exit code.

    0: no exception; 2: Error, OSError or out of memory; 130: SIGINT; 143: SIGTERM; 141, without a
    line: the reader of stdout has gone. lower: settings to lower when memory has run out.
    """
    for name in ("stdout", "stderr"):  # None where the shell has closed it
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a console may lack some characters
    with sigterm_raises():
        try:
            main()
            sys.stdout.flush()
            return 0
        except BrokenPipeError:  # `| head` has ended; at exit Python would flush to it again
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return 128 + 13  # SIGPIPE
        except (Error, OSError, RuntimeError, MemoryError, KeyboardInterrupt) as e:
            ignore_sigterm()
            return report(script, e, lower)


def report(script: str, e: BaseException, lower: str) -> int:
    """Print the exception in one line and return its exit code; re-raise other RuntimeErrors."""
    if isinstance(e, KeyboardInterrupt):
        e = e if isinstance(e, Stopped) else Stopped(signal.SIGINT, "interrupted")
        if is_main_process() or not e.on_all_ranks:
            print(file=sys.stderr)  # ends the line of the progress bar
            print_error(script, str(e))
        return e.exit_code
    if isinstance(e, RuntimeError | MemoryError):
        if not isinstance(e, MemoryError) and not re.search("(out of|not enough|allocate) memory", str(e)):
            raise e
        e = f"{out_of_memory_message(str(e))}: lower {lower}"
    print_error(script, str(e))
    return 2
