"""minipeft: one frozen GPT, and every way of tuning it, each in one short file with its exact cost."""

from . import accounting
from .attention import prefix_attention
from .checkpoint import fingerprint, load_adapter
from .config import PRESETS, Error, GPTConfig
from .generation import generate
from .ladder import hidden_from_prompt, prefix_from_hidden, prefix_from_prompt, prompt_from_tokens
from .methods import METHODS, adapt
from .model import GPT
from .slots import Prefix
from .task_bank import TaskBank, vote

__all__ = [
    "GPT",
    "GPTConfig",
    "METHODS",
    "PRESETS",
    "Error",
    "Prefix",
    "TaskBank",
    "accounting",
    "adapt",
    "fingerprint",
    "generate",
    "hidden_from_prompt",
    "load_adapter",
    "prefix_attention",
    "prefix_from_hidden",
    "prefix_from_prompt",
    "prompt_from_tokens",
    "vote",
]
