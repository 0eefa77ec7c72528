"""A cell that runs in a moment, for the tests of bench.py quality."""

from minipeft.bench.quality.lines import Cell

TINY = Cell("tiny", "parity", "prompt", {"num_virtual_tokens": 4}, lr=0.1, steps=8, batch_size=4)


def without_times(result: dict) -> dict:
    return {k: v for k, v in result.items() if k not in ("seconds", "card")}
