"""Examples of tasks and files, tokenizers, batches, and the bases that ship with the package."""

from pathlib import Path

from ..accounting.shapes import EMBEDDED

BASES = {name: Path(__file__).parent / name for name in EMBEDDED}  # folders for GPT.from_pretrained
NANO = BASES["nano"]  # the default of train.py
