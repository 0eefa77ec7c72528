"""Examples of tasks and files, tokenizers, batches, and the bases that ship with the package."""

from ..accounting.shapes import EMBEDDED
from ..files.huggingface import SHIPPED

BASES = {name: SHIPPED / name for name in EMBEDDED}
NANO = BASES["nano"]  # the default of train.py
