"""Memory held and left, and the message when it runs out."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minipeft.runtime import memory

CPU = torch.device("cpu")


@pytest.mark.skipif(not hasattr(memory, "resource"), reason="no resource limits on this system")
def test_what_is_held_counts_and_is_no_longer_available():
    """Under a limit of its own, below what the machine has left: there other processes change nothing."""
    if memory._own_status("VmSize") is None:
        pytest.skip("Linux only")
    code = """
import resource, torch
from minipeft.runtime import memory
held = torch.ones(10)  # torch's own threads and buffers are there
limit = memory._own_status("VmSize") + 10**9
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
before, peak = memory.available_memory(torch.device("cpu")), memory.resident_peak()
held = torch.ones(10**8)  # 400 MB
print(before, memory.available_memory(torch.device("cpu")), memory.resident_peak() - peak)
"""
    alone = os.environ | {"OMP_NUM_THREADS": "1"}  # another thread would reserve addresses of its own
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=alone)
    before, after, risen = map(int, done.stdout.split())
    assert 9.9e8 < before <= 1e9
    assert 4e8 <= before - after < 4.1e8 and 3e8 < risen < 4.1e8


def test_the_system_tells_what_is_available():
    total, available = memory._kilobytes("/proc/meminfo", "MemTotal"), memory.available_memory(CPU)
    if total is None:
        pytest.skip("Linux only")
    assert 0 < available < total


def test_the_least_of_system_group_and_own_limit_counts(monkeypatch):
    for system, group, own in ((3, 2, 1), (1, 2, 3), (2, 1, None), (None, None, 7)):
        monkeypatch.setattr(memory, "_kilobytes", lambda path, field, system=system: system)
        monkeypatch.setattr(memory, "_left_in_cgroup", lambda group=group: group)
        monkeypatch.setattr(memory, "_left_of_own_limit", lambda own=own: own)
        assert memory.available_memory(CPU) == min(n for n in (system, group, own) if n is not None)


def group(folder: Path, names: tuple, limit, used: int, cache: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in ((names[0], limit), (names[1], used), ("stat", f"anon 7\n{names[2]} {cache}")):
        (folder / f"memory.{name}").write_text(f"{text}\n")


def test_the_limit_of_a_group_around_this_ones_counts(tmp_path):
    """A job's limit, with the step and the task below it unlimited, as SLURM has them; and cgroup v1."""
    groups = tmp_path / "cgroup"
    two, one = ("max", "current", "file"), ("limit_in_bytes", "usage_in_bytes", "total_cache")
    groups.write_text("0::/job_7/step_0/task_0\n")
    assert memory._left_in_cgroup(groups, tmp_path) is None
    for name in ("job_7/step_0/task_0", "job_7/step_0"):
        group(tmp_path / name, two, "max", 500, 0)
    assert memory._left_in_cgroup(groups, tmp_path) is None
    group(tmp_path / "job_7", two, 1000, 600, 150)
    assert memory._left_in_cgroup(groups, tmp_path) == 1000 - 600 + 150
    group(tmp_path / "job_7" / "step_0", two, 700, 600, 100)
    assert memory._left_in_cgroup(groups, tmp_path) == 200
    groups.write_text("5:cpu,cpuacct:/a\n4:memory:/docker/ab\n")
    group(tmp_path / "memory" / "docker" / "ab", one, 2**63 - 4096, 10, 0)
    assert memory._left_in_cgroup(groups, tmp_path) == 2**63 - 4096 - 10
    group(tmp_path / "memory" / "docker", one, 900, 100, 50)
    assert memory._left_in_cgroup(groups, tmp_path) == 850


@pytest.mark.skipif(memory._trim is None, reason="another C library than glibc")
def test_freed_memory_between_blocks_in_use_is_given_back():
    blocks = [torch.ones(2**14) for _ in range(4000)]  # 64 KB each: below what glibc maps alone
    del blocks[::2]
    before = memory._own_status("VmRSS")
    memory.give_back_freed(torch.empty(2**20))
    assert before - memory._own_status("VmRSS") < 10e6  # not every time
    memory.give_back_freed(torch.empty(memory.EVERY))
    assert before - memory._own_status("VmRSS") > 80e6
    assert all(block.sum() == 2**14 for block in blocks)


@pytest.mark.skipif(not hasattr(memory, "resource"), reason="no resource limits on this system")
def test_running_out_is_one_line_with_what_was_asked_for_and_what_is_left():
    code = """
import resource, sys, torch
from minipeft.runtime.console import run
held = int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (held + 10**9, held + 10**9))
sys.exit(run("script.py", lambda: torch.empty(10**9), "--batch-size"))
"""
    if memory._own_status("VmSize") is None:
        pytest.skip("Linux only")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    said = (r"memory ran out on the CPU: 4.00 GB more than the \S+ GB held are needed, "
            r"(0.9\d|1.00) GB are left: lower --batch-size")
    assert done.returncode == 2 and re.fullmatch(f"script.py: {said}\n", done.stderr), done.stderr


def test_a_gpus_message_is_understood(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda device: 10**9 if device.type == "cuda" else None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 7 * 10**9)
    line = memory.out_of_memory_message(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB")
    assert line == "memory ran out on the GPU: 2.15 GB more than the 7.00 GB held are needed, 1.00 GB are left"
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 5 * 10**9)
    line = memory.out_of_memory_message("MPS backend out of memory. Tried to allocate 1.00 GiB on private pool.")
    assert line == "memory ran out on the GPU: 1.07 GB more than the 5.00 GB held are needed"
