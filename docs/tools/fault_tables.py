"""Tables of docs/reliability.md and docs/processes.md: provoked faults and their outcome.

tables.py fills them in.
"""

import math

from docs.tools.markdown import fenced, table
from docs.tools.results import read


def yes(x: bool) -> str:
    return "yes" if x else "NO"


def faults() -> str:
    """The provoked faults, how often, and the outcome."""
    rows = []

    def row(fault: str, provoked: str, times: int, outcome: str) -> None:
        rows.append([provoked, f"{times:,}", outcome, f"`python -m tests.faults {fault}`"])

    for fault, provoked in (
        ("kill", "`kill -9` at a random moment, then `--resume`"),
        ("terminate", "SIGTERM (exit code 143), then `--resume`")):
        r = read(f"faults-{fault}")
        writing = r["stopped"].get("while a state was written", 0)
        outcome = f"{r['identical']} end bit for bit like the uninterrupted run"
        row(
            fault, provoked, r["times"],
            outcome + f" ({writing} stopped while a checkpoint was written)" * bool(writing))
    r = read("faults-disk")
    outcome = f"exit code {r['exit_code']}, one line; checkpoints untouched: {yes(r['states_untouched'])}; "
    row(
        "disk", "full disk while a checkpoint is written", 1,
        outcome + f"resumed, bit for bit the same: {yes(r['resumed_identical'])}")
    r = read("faults-files")["counts"][-1]
    outcome = f"{r['right']:,} read correctly, {r['refused']:,} refused in one line, {r.get('failed', 0)} anything else"
    row(
        "files",
        "damaged and forged files: bit flips, truncations, claimed terabytes, malicious pickles …",
        r["tried"], outcome)
    r = read("faults-processes")["rows"]
    slowest, same = max(x["seconds"] for x in r), sum(x["by_two"] == "identical" for x in r)
    outcome = (
        f"the job ends within {math.ceil(10 * slowest) / 10:.1f} s; {same} of {len(r)} resumed, bit for bit the same"
    )
    row("processes", "one of two processes killed", len(r), outcome)
    r = read("soak")
    first, last = r["quarters"][1], r["quarters"][-1]
    growth = last["resident_mb"] / first["resident_mb"]
    outcome = f"memory, last quarter over second: {growth:.4f}; handles {first['handles']} and {last['handles']}"
    row(
        "soak", "steps of tuning, saving, loading, generating, detaching", r["settings"]["steps"],
        outcome)
    return table(["provoked", "times", "outcome", "command"], rows, left=4)


def sent_by_two() -> str:
    """The lines that a run of two processes prints on the nano shape."""
    lines = {r["method"]: r["traffic"] for r in read("faults-processes")["rows"]}
    return fenced("\n".join(f"{method:<7} {line}" for method, line in lines.items()))


BLOCKS = {"faults": faults, "processes": sent_by_two}
