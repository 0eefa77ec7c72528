"""Every way of tuning, by name; adapt() attaches one to a base."""

import inspect

from ..config import Error
from ..model import GPT
from .base import Adapted, Method
from .full import Full
from .prefix_tuning import PrefixTuning
from .prompt_tuning import PromptTuning

METHODS: dict[str, type[Method]] = {method.name: method for method in (Full, PromptTuning, PrefixTuning)}


def method_class(name: str) -> type[Method]:
    """The method of this name. Raises Error with the list for any other."""
    if name not in METHODS:
        raise Error(f"method must be one of {', '.join(METHODS)}, not {name!r}")
    return METHODS[name]


def adapt(base: GPT, name: str, **hyperparameters) -> Adapted:
    """Freeze the base and attach a method: adapt(base, "prefix", num_virtual_tokens=20).

    Raises Error for an unknown method or hyper-parameter (with those there are), or values that do not fit the base.
    """
    method = method_class(name)
    known = [p for p in inspect.signature(method).parameters if p != "base"]
    for key in hyperparameters:
        if key not in known:
            raise Error(f"method {name!r} takes {', '.join(known) or 'no hyper-parameters'}, not {key!r}")
    return Adapted(base, method(base, **hyperparameters))
