"""train.py and bench.py called in this process."""

import contextlib
import json
from pathlib import Path

import pytest

import train
from minipeft.runtime import console


def call(capsys, script, *argv) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `python script.py argv`."""
    code = console.run(script.__name__ + ".py", lambda: script.main([str(a) for a in argv]))
    out, err = capsys.readouterr()
    return code, out, err


def refusal(err: str) -> list[str]:
    """The lines of stderr beside progress bars."""
    return [line for line in err.splitlines() if line.strip() and "%|" not in line]


def finished(capsys, *argv) -> str:
    """The output of `python train.py argv`, which ends well."""
    code, out, err = call(capsys, train, *argv)
    assert code == 0, err
    return out


def scores_of(folder: Path) -> dict:
    """The scores of a finished run."""
    return json.loads((folder / "scores.json").read_text())


def scored(printed: str) -> list[str]:
    """The lines that say what a run reached."""
    reached = ("held-out exact match", "perplexity", "    tuned")
    return [line for line in printed.splitlines() if line.startswith(reached)]


@contextlib.contextmanager
def interrupted_at(data: type, step: int):
    """Ctrl-C as a run asks this class of data for the batch of this step."""
    batch = data.batch

    def stopping(self, wanted):
        if wanted == step:
            raise KeyboardInterrupt
        return batch(self, wanted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "batch", stopping)
        yield
