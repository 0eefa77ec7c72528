"""minipeft: one frozen GPT and every way of tuning it, each one short file with its exact cost."""

from .runtime.waiting import sleep_where_others_run

sleep_where_others_run()  # before the first import of torch

from .accounting.shapes import PRESETS
from .adapters import fingerprint, load_adapter
from .attach import adapt
from .attention import prefix_attention
from .config import Error, GPTConfig
from .inference.generation import generate
from .inference.task_bank import TaskBank, vote
from .ladder import hidden_from_prompt, prefix_from_hidden, prefix_from_prompt, prompt_from_tokens
from .methods import METHODS
from .model import GPT
from .slots import Prefix

__version__ = "0.1.0"  # pyproject.toml reads it here

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
