"""Full fine-tuning: every weight of the base is trained. The yardstick, not a lightweight method.

    θ ← θ − η ∇θ loss          trained = stored = all parameters, once per task

The one method that changes its base: `detach()` has no frozen base to give back, and `save()`
writes a whole base, a Hugging Face folder.
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
