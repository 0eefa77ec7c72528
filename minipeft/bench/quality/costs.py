"""Cost of the main table's methods, measured by bench.py's own table: step time, memory."""

from pathlib import Path

import torch

from ...accounting.shapes import EMBEDDED
from ...data.tasks import DIGITS
from ...files.atomic import write_json
from ...methods import METHODS, WHOLE
from .. import cost
from .studies import BASE, cell, methods, row

STEPS = 60  # timed, of each method
SEQ_LEN = 2 * DIGITS + len(" -> ")  # tokens of an example; its end mark is not an input


def place(lines: Path) -> Path:
    """The costs' file beside the lines: quality.jsonl -> quality-costs.json."""
    return lines.with_name(f"{lines.stem}-costs.json")


def measure(lines: Path, device: str) -> str:
    """Write {"card", "rows", …} beside these lines, unless the file exists. Returns its path."""
    if place(lines).exists():
        return f"costs: {place(lines)} is kept (remove it to measure them anew)"
    torch.set_num_threads(1)  # as in the cells
    cells = {row(c): c for c, _ in methods(("reverse",), (0,)) if METHODS[c.method].trains()}
    batch_size = cell(WHOLE, "reverse", {}).batch_size
    s = cost.CostSettings(preset=BASE, config=EMBEDDED[BASE], methods=(), num_virtual_tokens=(),
                          batch_size=batch_size, seq_len=SEQ_LEN, steps=STEPS, seed=0, device=device,
                          dtype="float32", compile=False)
    result = cost.run(s, [(c.method, c.size) for c in cells.values()])
    rows = [{"row": name, "size": c.size, "kept_bytes": r["saved_bytes"],
             "peak_bytes": r["peak_bytes"], "step_ms": r["step_ms"]}
            for (name, c), r in zip(cells.items(), result["rows"], strict=True)]
    write_json(place(lines), {"card": result["card"], "batch_size": batch_size,
                              "seq_len": SEQ_LEN, "rows": rows})
    return f"costs: {place(lines)}"
