"""Shapes of symbols whose choices are open: a closed form runs on one for every combination that it reads.

The shapes are those that the explorer's page offers: a family of transformers', its sizes, its head.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import sympy

from minipeft import Error, GPTConfig
from minipeft.config import BY_LAYER, CHOICES, RopeScaling
from minipeft.files.families import FAMILIES
from minipeft.formulas import symbols

Choose = Callable[[str, tuple], Any]  # choose(name, options) -> one of them


class Polynomial:
    """A sum of products of symbols, which sympy takes for an expression; sympy's own arithmetic is far slower."""

    __slots__ = ("products",)

    def __init__(self, products: dict[tuple[str, ...], int]):
        self.products = products  # {names of the symbols, in order: their number}, none of 0

    def __add__(self, other):
        if not isinstance(other, (int, Polynomial)):
            return self._sympy_() + other
        found = dict(self.products)
        for names, times in polynomial(other).products.items():
            found[names] = found.get(names, 0) + times
            if not found[names]:
                del found[names]
        return Polynomial(found)

    def __mul__(self, other):
        if isinstance(other, int):
            return Polynomial({names: times * other for names, times in self.products.items()} if other else {})
        if not isinstance(other, Polynomial):
            return self._sympy_() * other
        return sum(Polynomial({tuple(sorted(a + b)): times * often for a, times in self.products.items()})
                   for b, often in other.products.items())

    __radd__, __rmul__ = __add__, __mul__

    def __sub__(self, other):
        return self + -1 * other

    def __rsub__(self, other):
        return -1 * self + other

    def __eq__(self, other) -> bool:
        return isinstance(other, (int, Polynomial)) and self.products == polynomial(other).products

    def __hash__(self) -> int:
        return hash(frozenset(self.products.items()))

    def _sympy_(self):
        return sum((times * math.prod(map(symbols.symbol, names)) for names, times in self.products.items()),
                   sympy.Integer(0))


def polynomial(x: "int | str | Polynomial") -> Polynomial:
    """A number or a symbol as a Polynomial."""
    if isinstance(x, Polynomial):
        return x
    return Polynomial({(x,): 1} if isinstance(x, str) else {(): int(x)} if x else {})


SIZES = {name: polynomial(symbol) for name, symbol in symbols.SYMBOLS.items()
         if hasattr(GPTConfig, name) and name not in ("n_kv", "q")}


# The page's shapes: those of a family, and nano's, which is GPT-2's with rotary positions. By model_type: choices
# (others as in GPT-2), and the fields by layer.
ON_PAGE = FAMILIES | {"minipeft": ({"position": "rotary"}, ())}
OWN_HEAD_SIZE = ("mistral", "qwen3", "gemma3_text")  # their C need not be nh·hs
CHOSEN = {"family": tuple(ON_PAGE), "tied": CHOICES["tied"]}  # on the page; the other choices are the family's
INTERVALS = ("sliding_window_pattern", "no_rope_layer_interval")  # a family has one of them at most


def choices_of(family: str) -> dict:
    """All choices of a family but `tied`."""
    given, _ = ON_PAGE[family]
    return {name: given.get(name, options[0]) for name, options in CHOICES.items() if name != "tied"}


def family(c: GPTConfig) -> str:
    """The family that the page shows this shape under."""
    by_layer = {name for name in BY_LAYER if getattr(c, name) is not None}
    return next(kind for kind, (_, fields) in ON_PAGE.items() if by_layer <= set(fields)
                and all(getattr(c, name) == value for name, value in choices_of(kind).items()))


class EachLayer(NamedTuple):
    """A list with a value for every layer: `nth` for every so many-th."""

    every: Polynomial
    nth: Any
    others: Any


class OpenShape(symbols.SymbolicShape):
    """A shape of symbols whose choices are asked for when they are read."""

    def __init__(self, choose: Choose, resolved: bool = False):
        self._choose, self._resolved = choose, resolved
        self.__dict__.update(SIZES)

    def __getattr__(self, name: str) -> Any:
        if name in CHOSEN:
            return self._choose(name, CHOSEN[name])
        if name in CHOICES:
            return choices_of(self.family)[name]
        if name in BY_LAYER:
            return self._of_layers(name)
        if name == "head_dim":
            return SIZES["head_size"] if self._has_own_head_size() else None
        if name == "q":
            return polynomial("q") if self._has_own_head_size() else SIZES["n_embd"]
        if name == "heads_divide":
            return self._choose("divides", (True, False))
        if name == "n_kv":  # where keys have as many heads as queries, that is known
            return polynomial("nkv" if self._choose("grouped", (False, True)) else "nh")
        if name == "rope_scaling":
            given = self._choose(name, (False, True))
            return RopeScaling(*(symbols.symbol(f"{name}_{x}") for x in RopeScaling._fields)) if given else None
        if self._resolved and name in ("n_kv_head", "n_inner"):
            return polynomial({"n_kv_head": "nkv", "n_inner": "M"}[name])
        if name in GPTConfig.__dataclass_fields__:  # of a config file alone
            return symbols.symbol(name)
        raise AttributeError(name)

    def _has_own_head_size(self) -> bool:
        return self.family in OWN_HEAD_SIZE and self._choose("own_head_size", (True, False))

    def _of_layers(self, name: str) -> Any:
        if name not in ON_PAGE[self.family][1]:
            return None
        if name == "rope_local_base_freq":
            return symbols.symbol(name if self._choose("local", (True, False)) else "rope_theta")
        if name == "no_rope_layer_interval" and self._resolved and not self._choose("reached", (True, False)):
            return None  # there is no such layer
        return polynomial("every" if name in INTERVALS else "W")

    def by_layer(self, every: Polynomial, nth, others) -> EachLayer:
        """As GPTConfig.by_layer."""
        return EachLayer(every, nth, others)

    def resolved(self) -> "OpenShape":
        """As GPTConfig.resolved."""
        return OpenShape(self._choose, resolved=True)


def runs(function: Callable[[Choose], Any]) -> list[tuple[dict, Any]]:
    """[(choices that it read, its result or the Error it raised)] for all that `function` can choose."""
    found, pending = [], [{}]
    while pending:
        taken = pending.pop()

        def choose(name: str, options: tuple, taken=taken):
            if name not in taken:
                pending.extend({**taken, name: other} for other in options[:0:-1])
                taken[name] = options[0]
            return taken[name]

        try:
            result = function(choose)
        except Error as e:
            result = e
        found.append((taken, result))
    return found
