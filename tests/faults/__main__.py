"""What minipeft promises when something goes wrong, tried: python -m tests.faults FAULT [its flags]

kill        runs killed with SIGKILL at random moments, each resumed: all end bit for bit like the uninterrupted run
terminate   the same with SIGTERM, which lets the step end, saves, and leaves with 143
disk        a run whose disk is full: one line, the state before it stays, and the run goes on from it
files       mutated adapters, bases, training states and data: loaded right, or refused with one line
processes   a process of a distributed run killed: the job ends soon, says so, and goes on
soak        thousands of steps of tuning, saving, loading, generating, detaching: memory and file handles stay flat

Each prints what it counted and ends with exit code 2 when a promise was broken. kill, terminate, disk and processes run train.py of
the folder they are started in. Every fault has a --help of its own.
"""

import importlib
import sys

from minipeft.config import Error
from minipeft.runtime.console import run

FAULTS = {
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
