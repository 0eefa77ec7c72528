"""Threads that wait: they sleep where other processes run, which changes no result."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minipeft.bench.measure import busy_processes
from minipeft.runtime import waiting

CHOSEN = "import os, minipeft; print(os.environ.get('OMP_WAIT_POLICY'))"
TRAIN = """
import minipeft, torch, hashlib
torch.manual_seed(0)
torch.set_num_threads(2)
model = minipeft.adapt(minipeft.GPT.from_pretrained("nano"), "prefix", num_virtual_tokens=4)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
idx = torch.arange(32 * 24).view(32, 24) % 60
for _ in range(3):
    torch.nn.functional.cross_entropy(model(idx).flatten(0, 1), idx.flatten()).backward()
    optimizer.step()
state = [p for p in model.parameters() if p.requires_grad]
print(hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in state)).hexdigest())
"""


def python(code: str, **environ: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", *waiting.BY_THE_USER)}
    return subprocess.run([sys.executable, "-c", code], env=kept | environ, check=True, capture_output=True,
                          text=True).stdout.strip()


def test_waiting_threads_sleep_beside_a_busy_process_unless_the_user_or_torch_came_first():
    with busy_processes(1):
        time.sleep(0.5)
        if not Path("/proc/loadavg").exists() or Path("/proc/loadavg").read_text().split()[3].startswith(("0/", "1/")):
            pytest.skip("this system does not tell that a process is running")
        assert python(CHOSEN) == "passive"
        assert python(CHOSEN, OMP_WAIT_POLICY="active") == "active"
        assert python(CHOSEN, GOMP_SPINCOUNT="100") == "None"
        assert python(CHOSEN, OMP_NUM_THREADS="1") == "None"  # nobody to wait for
        assert python(f"import torch; {CHOSEN}") == "None"


@pytest.mark.parametrize(("running", "others"), [([1] * 5, False), ([2] * 5, True), ([3, 1, 2, 2, 2], True),
                                                 ([2, 1, 2, 1, 2], False)])
def test_others_run_if_they_run_at_nearly_every_look(running, others, tmp_path, monkeypatch):
    file, looks = tmp_path / "loadavg", iter(running)
    monkeypatch.setattr(waiting.time, "sleep", lambda _: file.write_text(f"0.50 0.40 0.30 {next(looks)}/321 4711\n"))
    assert waiting.others_run(file) == others


@pytest.mark.parametrize("text", ["", "0.5 0.4", "a b c d/e f", "0 0 0 /3 1"])
def test_where_the_system_does_not_tell_nothing_is_chosen(text, tmp_path):
    (tmp_path / "loadavg").write_text(text)
    assert not waiting.others_run(tmp_path / "loadavg") and not waiting.others_run(tmp_path / "absent")


def test_sleeping_changes_no_bit_of_a_training_run():
    spin, sleep = (python(TRAIN, **way) for way in waiting.WAYS.values())
    assert spin == sleep and len(spin) == len(hashlib.sha256().hexdigest())


def test_a_way_of_waiting_for_new_processes_ends_with_its_block(monkeypatch):
    for name in waiting.BY_THE_USER:
        monkeypatch.delenv(name, raising=False)
    code = "import os, minipeft; print(os.environ.get('OMP_WAIT_POLICY'), os.environ.get('GOMP_SPINCOUNT'))"
    with waiting.new_processes_wait("spin"):
        with waiting.new_processes_wait("sleep"):
            assert subprocess.check_output([sys.executable, "-c", code], text=True) == "passive None\n"
        with busy_processes(1):
            assert subprocess.check_output([sys.executable, "-c", code], text=True) == "None 300000\n"
    assert not {*waiting.BY_THE_USER} & {*os.environ}
