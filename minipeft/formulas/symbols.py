"""Shapes made of symbols, so that a closed form becomes a formula, and formulas as text.

sympy, which torch brings, is imported where it is used: it takes a second, and only printing needs it.
"""

import math
from collections.abc import Callable
from typing import Any

from .terms import floor, minimum, round_half_even, round_up

GLOSSARY = {  # in the order of a product's factors: symbol -> meaning
    "tasks": "tasks", "processes": "processes", "B": "sequences of a batch", "T": "real tokens of a sequence",
    "S": "positions in the blocks", "L": "layers", "n": "layers of the method", "P": "virtual tokens",
    "K": "prompts per layer", "r": "rank", "V": "vocabulary", "N": "positions", "buckets": "relative distances",
    "C": "channels", "nh": "heads", "nkv": "key-value heads", "hs": "head size",
    "q": "channels of the queries", "kv": "channels of the keys, and of the values", "M": "width of the MLP",
    "m": "width of the method's layer", "W": "real tokens that a window shows",
    "every": "interval of layers without window, or rotation",
}
SYMBOLS = {"n_layer": "L", "n_embd": "C", "n_head": "nh", "n_kv": "nkv", "head_size": "hs", "q": "q", "kv": "kv",
           "inner": "M",
           "vocab_size": "V", "block_size": "N", "position_buckets": "buckets"}


class SymbolicShape:
    """A shape whose sizes are symbols; its choices are those of `c`, a GPTConfig or T5Shape."""

    def __init__(self, c):
        self._c = c

    def __getattr__(self, name: str) -> Any:
        if name in SYMBOLS and hasattr(self._c, name):
            return symbol("C" if name == "q" and self._c.head_dim is None else SYMBOLS[name])
        return getattr(self._c, name)

    def values(self) -> dict[str, int]:
        """{symbol: its value in this shape}."""
        return {letter: getattr(self._c, name) for name, letter in SYMBOLS.items() if hasattr(self._c, name)}


def symbol(name: str):
    """The sympy symbol of this name, a positive integer."""
    import sympy

    return sympy.Symbol(name, integer=True, positive=True)


def symbols_of(method, sizes: dict) -> tuple[dict, dict[str, int]]:
    """The sizes of a method with symbols for those that have one, and {symbol: value}."""
    letters = {name: method.hyperparameters[name].symbol for name in sizes}
    symbolic = {name: symbol(letters[name]) if letters[name] else value for name, value in sizes.items()}
    return symbolic, {letters[name]: value for name, value in sizes.items() if letters[name]}


def factored(expression):
    """The expression with common factors of its terms in front."""
    import sympy

    return sympy.factor_terms(sympy.expand(expression))


def by_layers(expression):
    """The expression with everything that is once in each layer in one bracket."""
    import sympy

    layers = symbol("L")
    once, each = sympy.expand(expression).as_independent(layers, as_Add=True)
    return once + layers * factored(each / layers)


def log10(expression):
    """The logarithm to base 10, written as such."""
    import sympy

    return sympy.Function("log10")(expression)


def value(expression, known: dict[str, int]) -> int | float:
    """The value of a formula, exact where it is a whole number."""
    import sympy

    expression = sympy.sympify(expression).subs({symbol(name): number for name, number in known.items()})
    for name, function in {"min": minimum, "nearest": round_half_even, "roundUp": round_up, "floor": floor}.items():
        expression = expression.replace(
            sympy.Function(name), lambda *sizes, f=function: sympy.Integer(f(*map(int, sizes))))
    result = expression.replace(sympy.Function("log10"), lambda x: sympy.Float(math.log10(x)))
    return int(result) if result.is_Integer else float(result)


def numbers(expression, known: dict[str, int]) -> str:
    """A formula as text with a number for each symbol."""
    return text(expression, lambda x: f"{known[x.name]:,}")


def text(expression, show: Callable[[Any], str] = str) -> str:
    """A formula as text, "2·L·r·(C + kv)", in the glossary's order; show: a symbol's text."""
    import sympy

    e = sympy.sympify(expression)
    if e.is_Add:
        terms = [text(term, show) for term in sorted(e.args, key=_degree)]
        return "".join([terms[0], *(f" - {t[1:]}" if t.startswith("-") else f" + {t}" for t in terms[1:])])
    if e.is_Mul or e.is_Pow:
        over, under = e.as_numer_denom()
        return f"{_product(over, show)} / {_product(under, show)}" if under != 1 else _product(over, show)
    if e.is_Function:
        return f"{e.func.__name__}({', '.join(text(x, show) for x in e.args)})"
    return show(e) if e.is_Symbol else f"{int(e):,}" if e.is_Integer else str(e)


def _product(e, show: Callable[[Any], str]) -> str:
    number, rest = e.as_coeff_Mul()
    factors = []
    for factor in sorted(rest.as_ordered_factors(), key=_place):
        base, times = factor.as_base_exp()
        factors += [f"({text(base, show)})" if base.is_Add else text(base, show)] * int(times)
    factors = [x for x in factors if x != "1"] or ["1"]
    sign, number = ("-", -number) if number < 0 else ("", number)
    return sign + "·".join([*([] if number == 1 and rest != 1 else [str(number)]), *(factors if rest != 1 else [])])


def _place(e) -> tuple:
    order = list(GLOSSARY)
    return (not e.is_Symbol, order.index(str(e)) if str(e) in order else len(order), str(e))


def _degree(e) -> tuple:
    return (-len(e.free_symbols), *sorted(_place(x) for x in e.free_symbols), str(e))
