"""Lines on the console: the expected time, and commands."""

import re

import pytest

from minipeft.runtime import console


@pytest.mark.parametrize("each, total, initial, said", [
    (0.5, 100, 0, "about 47 s on this machine for the 94 steps that follow, by the last 5"),
    (0.5, 1000, 0, "about 8 minutes on this machine for the 994 steps that follow, by the last 5"),
    (0.5, 1000, 900, "about 47 s on this machine for the 94 steps that follow, by the last 5"),  # resumed
    (0.1, 100, 0, ""),  # a short run needs no warning
    (9.0, 5, 0, ""),
])
def test_the_expected_time_is_told_once_and_leaves_out_the_first_step(each, total, initial, said, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.progress(total=total, initial=initial) as bar:
        expected = console.Expected(bar)
        for step in range(total - initial):
            now[0] += 60 if step == 0 else each  # the first compiles
            bar.update()
            expected()
    lines = [line for line in re.split("[\\r\\n]", capsys.readouterr().err) if "about" in line]
    assert lines == ([said] if said else [])


def test_a_command_is_quoted_for_the_systems_shell(monkeypatch):
    words = ["python", "train.py", "--out", "my runs\\a", "--prompt", "it's"]
    assert console.command_line(words) == "python train.py --out 'my runs\\a' --prompt 'it'\"'\"'s'"
    monkeypatch.setattr(console.os, "name", "nt")
    assert console.command_line(words) == 'python train.py --out "my runs\\a" --prompt it\'s'
