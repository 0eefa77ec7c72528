"""Every way of tuning, by name: one line a method, in the order of METHODS."""

# ruff: noqa: I001  (the order is the one in which tables, figures and combinations have the methods)

from ..checks import Error
from .base import Method
from .full import Full
from .hard_prompt import HardPrompt
from .prompt_tuning import PromptTuning
from .prefix_tuning import PrefixTuning
from .lora import LoRA
from .bottleneck_adapter import BottleneckAdapter
from .llama_adapter import LlamaAdapter

_CLASSES = [x for x in list(globals().values()) if isinstance(x, type) and issubclass(x, Method) and x is not Method]
METHODS: dict[str, type[Method]] = {method.name: method for method in _CLASSES}
WHOLE = next(name for name, method in METHODS.items() if not method.freezes_base)  # full fine-tuning

for field, values in (("name", [m.name for m in _CLASSES]), ("peft_type", [x for m in _CLASSES for x in m.peft_types])):
    if twice := {x for x in values if values.count(x) > 1}:
        raise Error(f"two methods have the {field} {', '.join(twice)}")


def method_class(name: str) -> type[Method]:
    """The method of this name. Raises Error with the list for any other."""
    if name not in METHODS:
        raise Error(f"method must be one of {', '.join(METHODS)}, not {name!r}")
    return METHODS[name]
