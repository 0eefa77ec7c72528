"""Lines on the console: the expected time, commands, paths and texts of flags."""

import io
import re
import sys

import pytest

import train
from minipeft import Error, __main__
from minipeft.bench import attention, cost, params, peers, serving
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
        expected = console.TimeEstimate(bar)
        returned = []
        for step in range(total - initial):
            now[0] += 60 if step == 0 else each  # the first compiles
            bar.update()
            returned.append(expected())
    lines = [line for line in re.split("[\\r\\n]", capsys.readouterr().err) if "about" in line]
    assert lines == ([said] if said else [])
    left = total - initial - console.TimeEstimate.AFTER
    assert [x for x in returned if x is not None] == ([pytest.approx(left * each)] if left > 0 else [])


def test_the_expected_time_is_not_told_by_a_process_that_shows_no_bar(monkeypatch, capsys):
    monkeypatch.setattr(console, "is_main_process", lambda: False)
    with console.progress(total=100) as bar:
        expected = console.TimeEstimate(bar, least=0.0)
        for _ in range(10):
            expected()
    assert capsys.readouterr().err == ""


def test_a_command_is_quoted_for_the_systems_shell(monkeypatch):
    words = ["python", "train.py", "--out", "my runs\\a", "--prompt", "it's"]
    assert console.command_line(words) == "python train.py --out 'my runs\\a' --prompt 'it'\"'\"'s'"
    monkeypatch.setattr(console.os, "name", "nt")
    assert console.command_line(words) == 'python train.py --out "my runs\\a" --prompt it\'s'


@pytest.mark.parametrize("given", ["C:\\data\\x.csv", "d:/data/x.csv", "data\\x.csv", "\\\\server\\share"])
def test_a_windows_path_is_refused_where_it_would_be_one_name(given, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    p = console.Parser("")
    p.add_argument("--data", type=console.local_path)
    monkeypatch.setattr(console.os, "name", "posix")
    with pytest.raises(Error, match=re.escape(f"argument --data: {given} is a Windows path: here folders are divi")):
        p.parse_args(["--data", given])
    for fine in ("data/x.csv", "scratch:nano", "a:b/c"):
        assert p.parse_args(["--data", fine]).data == fine
    monkeypatch.setattr(console.os, "name", "nt")
    assert p.parse_args(["--data", given]).data == given


def test_every_flag_of_a_file_or_folder_refuses_windows_paths():
    parsers = [train.parser()]
    for module in (attention, cost, params, peers, serving):
        parsers.append(console.Parser(""))
        module.add_flags(parsers[-1])
    flags = [action for p in parsers for action in p._actions]
    paths = [a for a in flags if re.match("FILE|FOLDER|ADAPTER|OUT|MODEL", str(a.metavar))]
    assert len(paths) >= 7 and all(a.type is console.local_path for a in paths)


def test_an_error_is_told_where_a_scheduler_sets_a_rank_for_one_process(monkeypatch, capsys):
    def fail():
        raise Error("no such base")

    monkeypatch.setenv("RANK", "3")
    assert console.run("script.py", fail) == 2 and capsys.readouterr().err == "script.py: no such base\n"
    monkeypatch.setenv("WORLD_SIZE", "4")  # all four fail alike before they have joined: one tells
    assert console.run("script.py", fail) == 2 and capsys.readouterr().err == ""


def test_a_script_runs_with_its_output_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert console.run("script.py", lambda: print("x")) == 0


def test_only_what_says_that_memory_ran_out_is_told_so():
    for text in ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 400 bytes",
                 "the allocator is out of memory", "not enough memory: you tried"):
        assert console.report("script.py", RuntimeError(text), "the shape") == 2
    for text in ("required rank 4 tensor to use channels_last memory format", "an illegal memory access"):
        with pytest.raises(RuntimeError, match="memory"):
            console.report("script.py", RuntimeError(text), "the shape")


def test_an_ascii_terminal_gets_a_mark_for_what_it_cannot_show(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    lines = {}
    for script, argv in ((train, ["--help", "prompt"]), (train, ["--base", "/é"]),
                         (__main__, ["generate", "--prompt", "é提 -> ", "--max-new-tokens", "6"])):
        streams = [io.TextIOWrapper(io.BytesIO(), "ascii") for _ in range(2)]
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", streams[0])
            patch.setattr(sys, "stderr", streams[1])
            try:
                code = console.run("x", lambda script=script, argv=argv: script.main(argv))
            except SystemExit as end:  # after a help page
                code = end.code
        for stream in streams:
            stream.flush()
        lines[argv[0]] = code, *(stream.buffer.getvalue().decode("ascii") for stream in streams)
    assert lines["--help"][0] == 0 and "Learning rate of prompt" in lines["--help"][1]
    assert lines["--base"] == (2, "", "x: no base at /?: there is no such folder\n")
    assert lines["generate"][0] == 0 and lines["generate"][2] == "" and lines["generate"][1].endswith("\n")
