"""Full fine-tuning: every weight of the base is trained. The yardstick, not a lightweight method.

    θ ← θ − η ∇θ loss          trained = stored = all parameters, once per task

The one method that changes the base it is given: with it there is no frozen base to give back, and what it saves is a base,
a Hugging Face folder of its own.
"""

from ..model import GPT
from .base import Method


class Full(Method):
    name = "full"
    learning_rate = 1e-3
    learning_rate_wide = 1e-4
    freezes_base = False

    def __init__(self, base: GPT):
        super().__init__()

    def save(self, base: GPT, folder, base_fingerprint: str | None = None) -> None:
        base.save_pretrained(folder)
