"""Data: tasks made in code, files of examples, tokenizers, and the bases that ship with the package."""

from pathlib import Path

from ..config import EMBEDDED

BASES = {name: Path(__file__).parent / name for name in EMBEDDED}  # folders as GPT.from_pretrained opens them
NANO = BASES["nano"]  # the default of train.py
