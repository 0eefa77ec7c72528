"""Runs the cell of one line again and compares the results."""

from pathlib import Path

from ...checks import Error
from ..measure import card_line
from .grid import work
from .lines import Cell, numbered

COMPARED = ("score", "loss", "curve", "loss_on_learnt", "score_on_learnt", "wording", "trained",
            "stored_bytes", "chrf")
AVX2 = "ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2"  # for torch's operators and for oneDNN's


def run(path: Path, number: int, folders: dict[str, str], device: str) -> dict:
    """Run line `number` (from 1) again; "same": all but the times agree to the last bit."""
    if not path.exists():
        raise Error(f"there is no file {path}: it must hold the line that is to be run again")
    lines = numbered(path)
    if number not in lines:
        raise Error(f"{path} has {len(lines)} lines: there is no line {number}")
    before = lines[number]
    now = work(Cell.of(before), folders, device)
    differs = [name for name in COMPARED if before.get(name) != now.get(name)]
    return {"cell": before["cell"], "before": before, "now": now,
            "same": not differs, "differs": differs}


def table(result: dict) -> str:
    c, before, now = result["cell"], result["before"], result["now"]
    where = machines(before["card"], now["card"])
    differs = f"not the same ({', '.join(result['differs'])}; {where})"
    verdict = "the same" if result["same"] else differs
    return (f"{c['method']} on {c['task']}, base {c['base']}, seed {c['seed']}: "
            f"score {before['score']} then, {now['score']} now; "
            f"loss {before['loss']} then, {now['loss']} now: {verdict}")


def machines(then: dict, now: dict) -> str:
    """The machines of both runs, and what to try when their vector instructions differ."""
    text = f"then on {card_line(then)}; now on {card_line(now)}"
    used = then.get("instructions"), now.get("instructions")  # old lines do not have it
    if used[0] == used[1] or "cuda" in (then["device_type"], now["device_type"]):
        return text
    text += ": other vector instructions round differently"
    if used[1] == "AVX512" and used[0] in (None, "AVX2"):
        text += f", `{AVX2}` in front of the command takes AVX2"
    return text
