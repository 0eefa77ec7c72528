"""Runs of train.py that are killed, terminated, or find the disk full: `python -m tests.faults`, once."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from forked import Script

from tests.faults import disk, stops
from tests.faults.running import Running

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")]


class Forked(Running):
    """A run forked from this process, which has imported torch already."""

    def __init__(self, out: Path, *flags: str, **how):
        self.out, self.checkpoints = out, out / "training_state"
        self.process = Script([*flags, "--out", str(out)], out.with_name(f"{out.name}.printed"), **how)


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory):
    """One run killed, one terminated, one on a full disk, each compared with the uninterrupted one."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stops, "Running", Forked)
        patch.setattr(disk, "Running", Forked)
        whole = stops.uninterrupted(folder)

        def stopped(number: signal.Signals) -> dict:
            (folder / number.name).mkdir()
            return stops.count(folder / number.name, number, times=1, seed=3, workers=1, whole=whole)

        with ThreadPoolExecutor(2) as pool:
            kill, terminate = (pool.submit(stopped, number) for number in (signal.SIGKILL, signal.SIGTERM))
            full_disk = pool.submit(disk.fill_up, folder / "disk", stops.flags(folder), whole, False)
            return kill.result(), terminate.result(), full_disk.result()


def test_what_is_stopped_and_resumed_ends_bit_for_bit_like_the_uninterrupted_run(disturbed):
    for result in disturbed[:2]:
        assert result["identical"] == 1 and result["failed"] == {} and sum(result["stopped"].values()) == 1


@pytest.mark.parametrize("number, base_dtype", [(signal.SIGKILL, "nf4"), (signal.SIGTERM, "int8")])
def test_a_run_on_a_quantised_base_is_resumed_as_exactly(number, base_dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(stops, "Running", Forked)
    (tmp_path / "stopped").mkdir()
    whole = stops.uninterrupted(tmp_path, base_dtype)
    result = stops.count(tmp_path / "stopped", number, 1, 4, 1, whole, base_dtype)
    assert result["identical"] == 1 and result["failed"] == {}
    assert f"--base-dtype {base_dtype}" in result["run"]


def test_a_disk_that_fills_up_is_one_line_and_costs_nothing(disturbed):
    assert disturbed[2]["line"].startswith("train.py: OUT/training_state/000000") and disk.as_promised(disturbed[2])
    for broken in ({"exit_code": 1}, {"line": ""}, {"states_untouched": False}, {"resumed_identical": False}):
        assert not disk.as_promised(disturbed[2] | broken)


def test_the_count_notices_what_ends_differently(tmp_path, monkeypatch):
    class Lossy:
        """A run that is stopped and forgets it."""

        def __init__(self, out, *flags):
            out.mkdir(exist_ok=True)
            self.process, self.code = self, 0
            scores = {"loss": [1, len(list(tmp_path.iterdir()))], "exact_match": [0, 0]}
            (out / "scores.json").write_text(json.dumps(scores))

        def wait_for(self, pattern):
            pass

        def writes(self):
            yield from 20 * [False, True]

        def send_signal(self, number):
            self.code = -number

        def wait(self):
            return self.code, []

    monkeypatch.setattr(stops, "Running", Lossy)
    result = stops.count(tmp_path, signal.SIGKILL, times=3, seed=0, workers=1, whole=stops.uninterrupted(tmp_path))
    assert result["identical"] == 0 and result["failed"] == {"finished differently": 3}
