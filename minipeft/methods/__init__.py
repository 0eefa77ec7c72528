"""Every way of tuning, by name; adapt() attaches one to a base."""

import inspect

from ..config import Error
from ..model import GPT
from .base import Adapted, Method
from .bottleneck_adapter import BottleneckAdapter
from .combined import Combined
from .full import Full
from .hard_prompt import HardPrompt
from .llama_adapter import LlamaAdapter
from .lora import LoRA
from .prefix_tuning import PrefixTuning
from .prompt_tuning import PromptTuning

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (Full, HardPrompt, PromptTuning, PrefixTuning, LoRA, BottleneckAdapter, LlamaAdapter)
}


def method_class(name: str) -> type[Method]:
    """The method of this name. Raises Error with the list for any other."""
    if name not in METHODS:
        raise Error(f"method must be one of {', '.join(METHODS)}, not {name!r}")
    return METHODS[name]


def hyperparameters_of(name: str) -> list[str]:
    """What adapt() takes for this method."""
    return [p for p in inspect.signature(method_class(name)).parameters if p != "base"]


def adapt(base: GPT, name: "str | list[str]", **hyperparameters) -> Adapted:
    """Freeze the base and attach a method: adapt(base, "prefix", num_virtual_tokens=20).

    Several names attach a combination: adapt(base, ["lora", "prefix"], r=8, num_virtual_tokens=20), every hyper-parameter to those
    that know it. Raises Error for an unknown method or hyper-parameter (with those there are), values that do not fit the base, or
    methods that do not go together.
    """
    names = [name] if isinstance(name, str) else list(name)
    if not names:
        raise Error(f"no method given: there are {', '.join(METHODS)}")
    known = list(dict.fromkeys(p for n in names for p in hyperparameters_of(n)))
    for key in hyperparameters:
        if key not in known:
            raise Error(f"method {'+'.join(names)!r} takes {', '.join(known) or 'no hyper-parameters'}, not {key!r}")
    if "hard-prompt" in names and "tokens" not in hyperparameters:
        raise Error("hard-prompt needs its tokens: adapt(base, 'hard-prompt', tokens=token ids (P,) int64)")
    names.sort(key=list(METHODS).index)  # one name for one combination, as it is loaded again
    parts = [METHODS[n](base, **{k: v for k, v in hyperparameters.items() if k in hyperparameters_of(n)}) for n in names]
    return Adapted(base, parts[0] if len(parts) == 1 else Combined(base, parts))
