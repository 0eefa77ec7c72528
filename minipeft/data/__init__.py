"""Data: tasks made in code, files of examples, tokenizers, and the base that ships with the package."""

from pathlib import Path

NANO = Path(__file__).parent / "nano"  # the embedded base: a folder as GPT.from_pretrained opens it
