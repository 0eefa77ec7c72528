#!/usr/bin/env python3
"""Fill the table of docs/processes.md from the closed forms, so that no figure in it is typed by hand.

python docs/processes.py
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from minipeft import PRESETS  # noqa: E402
from minipeft.accounting import base_parameters, bytes_per_step, count  # noqa: E402
from minipeft.files.atomic import write_text  # noqa: E402

PAGE = ROOT / "docs" / "processes.md"
WAYS = {  # name in the table: method, its hyper-parameters, how the base is held
    "`prompt`, P = 20": ("prompt", dict(num_virtual_tokens=20), {}),
    "`prefix`, P = 20": ("prefix", dict(num_virtual_tokens=20), {}),
    "`lora`, r = 8": ("lora", dict(r=8), {}),
    "`prefix`, P = 20, `--shard-base` (bfloat16)": ("prefix", dict(num_virtual_tokens=20), dict(shard_base=True, base_bytes=2)),
    "`full` (FSDP2)": ("full", {}, dict(full=True)),
}


def size(n: float) -> str:
    return f"{n / 1e9:,.2f} GB" if n >= 1e9 else f"{n / 1e6:,.2f} MB" if n >= 1e6 else f"{n / 1e3:,.1f} KB"


def table(preset: str) -> str:
    """What every way of training sends in a step; the last row is what `full` would with DDP, which is not offered."""
    config = PRESETS[preset]
    rows = ["| method | trained | handed to collectives | sent, N = 2 | sent, N = 8 |", "|---|---|---|---|---|"]
    everything = base_parameters(config)
    ways = [(name, count(config, method, **h).trained, how) for name, (method, h, how) in WAYS.items()]
    for name, trained, how in [*ways, ("every gradient by DDP, to compare", everything, {})]:
        two, eight = (bytes_per_step(config, trained, n, **how) for n in (2, 8))
        rows.append(f"| {name} | {trained:,} | {size(sum(two))} | {size(two.sent(2))} | {size(eight.sent(8))} |")
    return "\n".join(rows)


def filled(page: str) -> str:
    """The page with everything between `<!-- traffic-SHAPE -->` and `<!-- /traffic-SHAPE -->` made anew."""
    return re.sub(r"(<!-- traffic-(\S+) -->\n).*?(<!-- /traffic-\2 -->)", lambda m: f"{m[1]}{table(m[2])}\n{m[3]}", page, flags=re.DOTALL)


if __name__ == "__main__":
    write_text(PAGE, filled(PAGE.read_text(encoding="utf-8")))
