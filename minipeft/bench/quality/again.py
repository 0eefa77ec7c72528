"""Runs the cell of one line again and compares the results."""

from pathlib import Path

from ...checks import Error
from ...runtime.devices import VENDORS
from ..measure import card_line
from . import real
from .grid import run_cell
from .lines import Cell, numbered

DRIFTING = ("score", "loss", "curve", "loss_on_learnt", "score_on_learnt", "chrf", "known")  # by rounding
COMPARED = (*DRIFTING, "wording", "trained", "stored_bytes")
TOLERANCE = 0.05  # of the score, on another kind of CPU: ten lines of an AMD CPU, run again on an
#                   Intel one with AVX-512 and with AVX2, differ in loss, and in score by 0 to 0.035
AVX2 = "ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2"  # for torch's operators and for oneDNN's


def run(path: Path, number: int, folders: dict[str, str], device: str) -> dict:
    """Run line `number` (from 1) again. "same": the fields of COMPARED agree to the last bit;
    "close": on another kind of CPU, the scores agree within TOLERANCE, and so do all fields that
    rounding does not change.
    """
    if not path.exists():
        raise Error(f"there is no file {path}: it must hold the line that is to be run again")
    lines = numbered(path)
    if number not in lines:
        raise Error(f"{path} has {len(lines)} lines: there is no line {number}")
    before = lines[number]
    now = run_cell(Cell.of(before), folders, device)
    # older lines lack "known"; of the real model it is of a text that comes with Python
    has_known = "known" in before and (Cell.of(before).base != real.BASE
                                       or before["card"]["python"] == now["card"]["python"])
    compared = [name for name in COMPARED if name != "known" or has_known]
    differs = [name for name in compared if before.get(name) != now.get(name)]
    other = bool(differences(before["card"], now["card"])) and set(differs) <= {*DRIFTING}
    close = other and abs(before["score"] - now["score"]) <= TOLERANCE + 1e-9
    return {"cell": before["cell"], "before": before, "now": now,
            "same": not differs, "close": close, "differs": differs}


def table(result: dict) -> str:
    c, before, now = result["cell"], result["before"], result["now"]
    where = machines(before["card"], now["card"])
    verdict = "the same"
    if result["differs"]:
        verdict = f"score within {TOLERANCE}, but " if result["close"] else ""
        verdict += f"not the same ({', '.join(result['differs'])}; {where})"
    return (f"{c['method']} on {c['task']}, base {c['base']}, seed {c['seed']}: "
            f"score {before['score']} then, {now['score']} now; "
            f"loss {before['loss']} then, {now['loss']} now: {verdict}")


def differences(then: dict, now: dict) -> dict[str, tuple]:
    """Of two cards, what decides the last digits and differs: {name: (then, now)}."""
    a, b = kind(then), kind(now)
    if then["device_type"] != now["device_type"]:
        return {"device": (then["device"], now["device"])}
    return {name: (a[name], b[name]) for name in a if a[name] != b[name]}


def kind(card: dict) -> dict:
    """What decides the last digits; old lines have no vendor and no vector instructions."""
    if card["device_type"] == "cuda":
        return {"device": card["device"], "torch": card["torch"]}
    vendor = next((v for v in VENDORS.values() if v in card["device"]), None)
    return {"CPU vendor": card.get("vendor", vendor), "torch": card["torch"],
            "vector instructions": card.get("instructions"), "matmul library": card.get("matmul", "torch")}


def machines(then: dict, now: dict) -> str:
    """The machines of both runs, and what of them rounds differently."""
    text, differ = f"then on {card_line(then)}; now on {card_line(now)}", differences(then, now)
    for name, (before, after) in differ.items():
        text += f"; other {name}: {before or 'not recorded'} then, {after or 'not recorded'} now"
    last_digits = set(differ) <= {"vector instructions", "matmul library"}
    if last_digits and differ.get("vector instructions") in ((None, "AVX512"), ("AVX2", "AVX512")):
        text += f", `{AVX2}` in front of the command takes AVX2"
    elif last_digits and differ.get("matmul library") == ("torch", "oneDNN"):
        text += ", `MINIPEFT_MATMUL=torch` in front of the command takes torch's"
    return text
