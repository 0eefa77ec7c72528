"""A document as a prefix: the text itself, one fitted to it, or one trained to answer like it.

    prefill            the text itself, n rows                         text.py
    match              P rows by attention matching, no training       matching.py
    write_self_study   texts about it to distil on                     self_study.py
    divergence         KL to the base behind the whole text            divergence.py

Adapted.distil_from sets the loss of distillation, for any method; the loop is training.loop.train.
"""

from .divergence import Divergence, divergence
from .matching import match
from .self_study import write_self_study
from .text import prefill, rows

__all__ = ["Divergence", "divergence", "match", "prefill", "rows", "write_self_study"]
