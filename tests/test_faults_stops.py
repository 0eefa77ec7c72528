"""Runs of train.py that are killed, terminated, or find the disk full, as `python -m minipeft.faults` tries them many times."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from minipeft.faults import disk, stops

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")


@pytest.fixture(autouse=True)
def where_train_py_is(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_what_is_stopped_and_resumed_ends_bit_for_bit_like_the_uninterrupted_run(tmp_path):
    def stopped_once(number: signal.Signals) -> dict:
        folder = tmp_path / number.name
        folder.mkdir()
        return stops.count(folder, number, times=1, seed=3, workers=1)

    with ThreadPoolExecutor(2) as pool:
        for result in pool.map(stopped_once, (signal.SIGKILL, signal.SIGTERM)):
            assert result["identical"] == 1 and result["failed"] == {} and sum(result["stopped"].values()) == 1


def test_the_count_notices_what_ends_differently(tmp_path, monkeypatch):
    class Lossy:
        """A run that is stopped and forgets it."""

        def __init__(self, out, *flags):
            out.mkdir(exist_ok=True)
            self.process, self.code = self, 0
            (out / "scores.json").write_text(json.dumps({"loss": [1, len(list(tmp_path.iterdir()))], "exact_match": [0, 0]}))

        def wait_for(self, pattern):
            pass

        def writes(self):
            yield from 20 * [False, True]

        def send_signal(self, number):
            self.code = -number

        def ended(self):
            return self.code, []

    monkeypatch.setattr(stops, "Running", Lossy)
    result = stops.count(tmp_path, signal.SIGKILL, times=3, seed=0, workers=1)
    assert result["identical"] == 0 and result["failed"] == {"finished differently": 3}


def test_a_disk_that_fills_up_is_one_line_and_costs_nothing(tmp_path, capsys):
    disk.main(["--out", str(tmp_path / "disk.json")])
    assert "exit code 2: train.py: OUT/training_state/000000" in capsys.readouterr().out
