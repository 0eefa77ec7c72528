"""Every way of tuning, by name: one line a method, in the order of METHODS."""

# ruff: noqa: F401, I001  (the order is the one in which tables, figures and combinations have the methods)

from ..checks import Error, did_you_mean, shown
from .base import Method
from .full import Full
from .hard_prompt import HardPrompt
from .prompt_tuning import PromptTuning
from .prefix_tuning import PrefixTuning
from .lora import LoRA
from .bottleneck_adapter import BottleneckAdapter
from .llama_adapter import LlamaAdapter
from .bitfit import BitFit
from .ia3 import IA3
from .prefix_memory import PrefixMemory


def registry(classes: list[type[Method]]) -> dict[str, type[Method]]:
    """{name: method}. Raises Error where two methods share a name or a peft_type."""
    owners: dict[tuple[str, str], type[Method]] = {}
    for method in classes:
        for field, value in [("name", method.name), *(("peft_type", x) for x in method.peft_types)]:
            if (other := owners.setdefault((field, value), method)) is not method:
                raise Error(f"{other.__name__} and {method.__name__} both have the {field} {value!r}")
    return {method.name: method for method in classes}


METHODS = registry([x for x in list(globals().values())
                    if isinstance(x, type) and issubclass(x, Method) and x is not Method])
WHOLE = next(name for name, method in METHODS.items() if not method.freezes_base)  # full fine-tuning


def method_class(name: str) -> type[Method]:
    """The method of this name. Raises Error with the list for any other."""
    if not isinstance(name, str) or name not in METHODS:
        raise Error(f"method must be one of {', '.join(METHODS)}, not {shown(name)}{did_you_mean(str(name), METHODS)}")
    return METHODS[name]
