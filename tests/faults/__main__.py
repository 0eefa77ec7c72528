"""Fault injection, to check minipeft's promises: python -m tests.faults FAULT [its flags]

kill        runs killed with SIGKILL at random moments and resumed: all end bit for bit like the
            uninterrupted run
terminate   the same with SIGTERM, after which a run ends its step, saves, and leaves with 143
disk        a run on a full disk: one line; its checkpoints stay, and it can be resumed
files       damaged and forged adapters, bases, checkpoints and data: read right, or refused with
            one line
processes   one process of a distributed run killed: the job ends soon, says so, and can be resumed
soak        thousands of steps of tuning, saving, loading, generating and detaching: memory and file
            handles stay flat

Each prints its counts and ends with exit code 2 when a promise is broken. kill, terminate, disk and
processes run the train.py of the current folder. Every fault has its own --help.
"""

import importlib
import sys

from minipeft.checks import Error
from minipeft.runtime.console import run

FAULTS = {  # fault: (module, function)
    "kill": ("stops", "kill"),
    "terminate": ("stops", "terminate"),
    "disk": ("disk", "main"),
    "files": ("files", "main"),
    "processes": ("processes", "main"),
    "soak": ("soak", "main"),
}


def main() -> None:
    fault, *flags = sys.argv[1:] or ["--help"]
    if fault in ("-h", "--help"):
        print(__doc__)
        return
    if fault not in FAULTS:
        raise Error(f"{fault!r} is none of {', '.join(FAULTS)} (see --help)")
    module, name = FAULTS[fault]
    getattr(importlib.import_module(f".{module}", __package__), name)(flags)


if __name__ == "__main__":
    sys.exit(run("python -m tests.faults", main))
