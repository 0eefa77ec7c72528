"""Data: tasks made in code, JSONL files, the byte tokenizer, and the base that ships with the package."""

from pathlib import Path

NANO = Path(__file__).parent / "nano"  # the embedded base: a folder as GPT.from_pretrained opens it
