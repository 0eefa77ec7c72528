"""A line's cell run again: is the score the same?"""

from pathlib import Path

from ...config import Error
from .cell import Cell
from .grid import numbered, work

SAME = ("score", "loss", "curve", "loss_on_learnt", "score_on_learnt", "wording", "trained", "stored_bytes", "chrf", "failed")

AVX2 = "ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2"  # for torch's own operators and the library it has small products from


def run(path: Path, number: int, folders: dict[str, str], device: str) -> dict:
    """The line of this number (from 1), and what it gives now; "same": whether all but times agree to the last bit.

    Raises Error when there is no such line or no such file.
    """
    if not path.exists():
        raise Error(f"there is no file {path}: it must hold the line that is to be run again")
    lines = numbered(path)
    if number not in lines:
        raise Error(f"{path} has {len(lines)} lines: there is no line {number}")
    before = lines[number]
    now = work(Cell.of(before), folders, device)
    differs = [name for name in SAME if before.get(name) != now.get(name)]
    return {"cell": before["cell"], "before": before, "now": now, "same": not differs, "differs": differs}


def table(result: dict) -> str:
    c, (before, now) = result["cell"], (result[x] for x in ("before", "now"))
    return (
        f"{c['method']} on {c['task']}, base {c['base']}, seed {c['seed']}: score {before['score']} then, {now['score']} now; "
        f"loss {before['loss']} then, {now['loss']} now: "
        + ("the same" if result["same"] else f"not the same ({', '.join(result['differs'])}; {machines(before['card'], now['card'])})")
    )


def machines(then: dict, now: dict) -> str:
    """Where both ran, and what to try where the CPU may be what differs."""
    took = [card.get("instructions") for card in (then, now)]
    text = ", ".join(
        f"{when} on {card['device']}{f' with {its}' if its else ''}, torch {card['torch']}"
        for when, card, its in zip(("then", "now"), (then, now), took, strict=True)
    )
    if took[0] == took[1] or "cuda" in (then["device_type"], now["device_type"]):
        return text
    text += ": other vector instructions round differently"
    has_both = took[1] == "AVX512" and took[0] in (None, "AVX2")  # lines from before it was noted do not say
    return f"{text}, `{AVX2}` in front of the command takes AVX2" if has_both else text
