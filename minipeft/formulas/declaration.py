"""Base class for declared arguments, shapes and cost, and the check that they are declared."""

import inspect
from typing import Any, ClassVar

from ..checks import Error, one_of, shown
from ..config import GPTConfig, hookable_modules
from .terms import Cost, Hyperparameter, Shapes

DECLARED = {  # by every method, in its own class
    "name": "its key in METHODS",
    "learning_rate": "the default on bases narrower than base.WIDE (AdamW, warm-up, cosine)",
    "learning_rate_wide": "the default on bases of n_embd >= base.WIDE",
    "hyperparameters": "a Hyperparameter for every argument of __init__, shapes and cost",
    "typical": "settings of these to test and to measure it at",
    "peft_types": "values of peft_type in adapter_config.json",
    "peft": "None if PEFT opens what it saves, or why not",
    "mixing": "None if the rows of a batch can have one each, or why not",
    "shapes": "the shapes of its tensors",
    "cost": "what it adds to a step",
    "slots": "what it puts into the model",
}


class Declaration:
    """Hyper-parameters, shapes and cost of a method, read from its class without building it.

    Error names what is missing when the class is made, unless it is made with registered=False.
    """

    name: str
    hyperparameters: ClassVar[dict[str, Hyperparameter]]
    typical: ClassVar[tuple[dict[str, Any], ...]]
    peft_types: ClassVar[tuple[str, ...]]
    peft: ClassVar[str | None]
    mixing: ClassVar[str | None]
    freezes_base: ClassVar[bool] = True  # False where its Cost says that the base is trained

    def __init_subclass__(cls, registered: bool = True):
        super().__init_subclass__()
        if registered:
            cls._check()

    @classmethod
    def _check(cls) -> None:
        where = f"method class {cls.__name__}"
        for name, meaning in DECLARED.items():
            if name not in vars(cls):
                raise Error(f"{where} does not declare {name}: {meaning}")
        for name in ("shapes", "cost"):
            if not isinstance(vars(cls)[name], staticmethod):
                raise Error(f"{where}: {name} must be a @staticmethod, since no method is built to read it")
        if not isinstance(cls.peft_types, tuple) or not all(isinstance(x, str) for x in cls.peft_types):
            raise Error(f"{where}: peft_types must be a tuple of strings, not {shown(cls.peft_types)}")
        for name in ("peft", "mixing"):
            if not isinstance(getattr(cls, name), str | None):
                raise Error(f"{where}: {name} must be None or the reason, not {shown(getattr(cls, name))}")
        sizes, costs = cls.sizes(), list(inspect.signature(cls.cost).parameters)[2:]
        for name in [*cls.arguments(), *sizes]:
            if name not in cls.hyperparameters:
                raise Error(f"{where} does not declare hyperparameters[{name!r}]: its help")
        if costs != sizes:
            raise Error(f"{where}: shapes takes ({', '.join(sizes)}), but cost takes ({', '.join(costs)})")
        for name, value in cls.with_defaults(GPTConfig(), {}).items():
            if value is None:
                raise Error(f"{where} does not declare defaults(c)[{name!r}]: its value where none is given")
        if not isinstance(cls.typical, tuple) or not cls.typical or not all(
                isinstance(x, dict) and set(x) <= set(cls.hyperparameters) for x in cls.typical):
            raise Error(f"{where}: typical must be a tuple of {{hyper-parameter: value}}, not {shown(cls.typical)}")
        c = GPTConfig()
        cost = cls.cost(c, 1, **cls.with_defaults(c, {}))
        cls.freezes_base = not cost.base
        for place, hook in cost.hooks.items():
            if place not in (places := hookable_modules(c)):
                raise Error(f"{where}: a hook must be at {', '.join(places)}, not {shown(place)}")
            if place == "attn.heads" and hook.saves_x:
                raise Error(f"{where}: of the queries at attn.heads declare what is saved as a Saved, not saves_x")
            for matmul in hook.matmuls:
                one_of(f"{where}: `of` of the Matmul {matmul.name!r}", matmul.of, ("x", "y", "own"))

    @staticmethod
    def shapes(c: GPTConfig, *sizes) -> Shapes:
        """The shapes of its tensors, from the hyper-parameters that they depend on, by name."""
        raise NotImplementedError

    @staticmethod
    def cost(c: GPTConfig, rows, *sizes) -> Cost:
        """What it adds to a step; rows: positions in the batch, B·S."""
        raise NotImplementedError

    @staticmethod
    def defaults(c: GPTConfig) -> dict:
        """Hyper-parameters that follow the shape, where __init__ has None."""
        return {}

    @classmethod
    def arguments(cls) -> dict[str, inspect.Parameter]:
        """The hyper-parameters that adapt() takes: the arguments of __init__."""
        return {name: p for name, p in inspect.signature(cls).parameters.items() if name != "base"}

    @classmethod
    def sizes(cls) -> list[str]:
        """The hyper-parameters that its cost depends on: the arguments of `shapes`."""
        return list(inspect.signature(cls.shapes).parameters)[1:]

    @classmethod
    def with_defaults(cls, c: GPTConfig, given: dict) -> dict:
        """Every one of `sizes`: as given, else the default of __init__, else that of the shape."""
        initial = {name: p.default for name, p in cls.arguments().items()}
        values = {name: given.get(name, initial.get(name)) for name in cls.sizes()}
        follow = cls.defaults(c)
        return {name: follow.get(name) if value is None else value for name, value in values.items()}

    @classmethod
    def trains(cls) -> bool:
        """False for a method that trains nothing."""
        c = GPTConfig()
        return bool(cls.shapes(c, **cls.with_defaults(c, {})).trained)

    @classmethod
    def adapter_config(cls, c: GPTConfig, **hyperparameters) -> dict:
        """The fields of adapter_config.json: PEFT's names where it has the method, else its own."""
        return {"peft_type": cls.peft_types[0], **hyperparameters}

    @classmethod
    def config_fields(cls) -> list[str]:
        """The hyper-parameters that adapter_config takes; instances keep them as attributes."""
        names = list(inspect.signature(cls.adapter_config).parameters)[1:]
        return list(cls.arguments()) if names == ["hyperparameters"] else names

    @classmethod
    def from_config(cls, config: dict) -> dict:
        """The arguments of __init__ in an adapter_config.json."""
        return {name: config.get(name) for name in cls.arguments()}
