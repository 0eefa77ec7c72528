"""Signals end a script with one line and the shell's exit codes, and their handlers are restored."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minipeft import Error
from minipeft.runtime import console
from minipeft.runtime.signals import Stopped, StopRequest


@pytest.fixture(autouse=True)
def interruptible():
    """The SIGINT handler of a foreground process; shells ignore SIGINT in background ones."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_script_that_is_terminated_says_so_and_leaves_no_handler_behind(capsys):
    before = signal.getsignal(signal.SIGTERM)
    for main, code, line in (
        (lambda: signal.raise_signal(signal.SIGTERM), 143, "s.py: stopped by SIGTERM"),
        (lambda: signal.raise_signal(signal.SIGINT), 130, "s.py: interrupted"),
        (lambda: (_ for _ in ()).throw(Error("no")), 2, "s.py: no"),
        (lambda: None, 0, ""),
    ):
        assert console.run("s.py", main) == code
        assert capsys.readouterr().err.strip() == line and signal.getsignal(signal.SIGTERM) is before


def test_a_terminate_while_the_reason_is_told_does_not_cut_it_short(capsys, monkeypatch):
    told = console.print_error

    def terminated_meanwhile(script, message):
        signal.raise_signal(signal.SIGTERM)
        told(script, message)

    monkeypatch.setattr(console, "print_error", terminated_meanwhile)

    def main():
        raise Error("the reason")

    assert console.run("s.py", main) == 2 and capsys.readouterr().err == "s.py: the reason\n"


def test_a_reader_who_has_had_enough_ends_it_without_a_word():
    code = ("import sys; from minipeft.runtime.console import run; "
            "sys.exit(run('s.py', lambda: [print('a' * 1000) for _ in range(1000)]))")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               cwd=Path(__file__).parent.parent)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141


def test_a_first_signal_is_noted_and_a_second_one_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped, match="stopped by SIGTERM") as e, StopRequest() as asked:
        assert asked.number == 0
        signal.raise_signal(signal.SIGINT)
        assert asked.number == signal.SIGINT
        signal.raise_signal(signal.SIGTERM)
    assert e.value.exit_code == 143 and signal.getsignal(signal.SIGINT) is before
