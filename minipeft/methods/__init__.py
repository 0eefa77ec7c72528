"""Every way of tuning, by name."""

import inspect

from ..checks import Error
from .base import Method
from .bottleneck_adapter import BottleneckAdapter
from .full import Full
from .hard_prompt import HardPrompt
from .llama_adapter import LlamaAdapter
from .lora import LoRA
from .prefix_tuning import PrefixTuning
from .prompt_tuning import PromptTuning

_CLASSES = (Full, HardPrompt, PromptTuning, PrefixTuning, LoRA, BottleneckAdapter, LlamaAdapter)
METHODS: dict[str, type[Method]] = {method.name: method for method in _CLASSES}


def method_class(name: str) -> type[Method]:
    """The method of this name. Raises Error with the list for any other."""
    if name not in METHODS:
        raise Error(f"method must be one of {', '.join(METHODS)}, not {name!r}")
    return METHODS[name]


def hyperparameters_of(name: str) -> list[str]:
    """The hyper-parameters that adapt() takes for this method."""
    return [p for p in inspect.signature(method_class(name)).parameters if p != "base"]
