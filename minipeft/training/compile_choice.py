"""Eager or compiled blocks in a run: by --compile, by its checkpoint, or by its first steps."""

import sys

import torch
from tqdm import tqdm

COMPILE_SECONDS = 20  # assumed time of compiling, once for all lengths
# assumed share of a step that compiling saves on a CPU, from the tables of docs/peers.md
GAIN = {torch.float32: 0.05, torch.bfloat16: 0.2}
UNDECIDED = "undecided"


class CompileChoice:
    """The choice of one run. `made` goes into checkpoints, so that a resumed run compiles where it
    did before: "yes", "no", "from step N", or "undecided" until the first steps have been timed."""

    def __init__(self, model, wanted: bool | None, recorded: str | None, dtype: torch.dtype,
                 may_decide: bool):
        """wanted: --compile or --no-compile, or None. recorded: a checkpoint's choice. dtype: of
        the matmuls. may_decide: the first steps may choose."""
        by_itself = UNDECIDED if may_decide else "no"
        self.made = {True: "yes", False: "no", None: recorded or by_itself}[wanted]
        self.model, self.gain = model, GAIN.get(dtype, 0.0)

    def switch(self, on: bool = True) -> None:
        """Let training run as chosen; off: eagerly, where lengths or modes are not training's."""
        self.model.compile_blocks(on and self.made not in ("no", UNDECIDED), any_length=True)

    def decide(self, seconds: float, done: int) -> bool:
        """Choose, once, for steps after `done`, from their seconds if eager -> True if it chose."""
        if self.made != UNDECIDED:
            return False
        pays = seconds * self.gain > 2 * COMPILE_SECONDS
        self.made = f"from step {done + 1}" if pays else "no"
        self.switch()
        if pays:
            tqdm.write(f"compiling the blocks, some {COMPILE_SECONDS} s, for an estimated {seconds * self.gain:.0f} s "
                       "less of training (--no-compile: eagerly)", file=sys.stderr)
        return True
