"""Closed forms of the ledger for every combination of choices, as decision trees over formulas.

A closed form branches on choices (of the shape, of a method, of the work) and not on sizes. So it is
run on symbols once for each combination of the choices that it reads, and each of its terms gets a
tree: [choice, {value: tree}], whose leaves are how many times the term occurs. Formulas and trees
stand once in a Pool and are named by their places in it.
"""

import json
import typing
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import sympy

from docs.tools.ledger_terms import PARTS, Work, terms
from docs.tools.open_shapes import CHOSEN, Choose, EachLayer, OpenShape, Polynomial, polynomial, runs
from minipeft import METHODS, Error, GPTConfig
from minipeft.accounting.parameters import Declared
from minipeft.accounting.storage import files
from minipeft.config import linears
from minipeft.files.peft import linears_named
from minipeft.formulas import symbols
from minipeft.formulas.terms import Term
from minipeft.methods import WHOLE
from minipeft.methods.base import Method


class Formula(NamedTuple):
    """A formula as the page shows it, and as it computes it."""

    text: str
    code: str


class Pool:
    """Formulas and trees, each of them once; a tree is a formula's place, or [choice, {value: tree}]."""

    def __init__(self):
        self.formulas: list[Formula] = []
        self.trees: list = []
        self._places: dict = {}

    def formula(self, expression) -> int:
        """The place of a formula."""
        formula = written(expression)
        return self._place(self.formulas, formula, formula)

    def leaf(self, expression) -> int:
        """The place of a tree that is a formula."""
        formula = self.formula(expression)
        return self._place(self.trees, formula, formula)

    def branch(self, choice: str, branches: dict[str, int]) -> int:
        """The place of a tree that asks for a choice."""
        return self._place(self.trees, [choice, branches], (choice, *branches.items()))

    def _place(self, items: list, item, key) -> int:
        if key not in self._places:
            self._places[key] = len(items)
            items.append(item)
        return self._places[key]


@cache
def written(expression) -> Formula:
    """The formula as a product where it is one."""
    least, floor = map(sympy.Function, ("min", "floor"))
    e = sympy.sympify(expression).replace(least, lambda a, b: a if (b - a).is_nonnegative else least(a, b))
    e = e.replace(floor, lambda a, b: 0 if a in (0, 1) else floor(a, b))  # an interval of layers is 2 or more
    e = sympy.factor(e)
    return Formula(symbols.text(e), javascript(e))


def javascript(expression) -> str:
    """A formula as JavaScript on BigInts: symbols are properties of `s`, functions the page's."""
    e = sympy.sympify(expression)
    over, under = e.as_numer_denom()
    if under != 1:
        return f"ratio({javascript(over)}, {javascript(under)})"
    if e.is_Add:
        return f"({' + '.join(map(javascript, e.args))})"
    if e.is_Mul:
        return " * ".join(map(javascript, e.args))
    if e.is_Pow:
        return " * ".join([javascript(e.base)] * int(e.exp))
    if e.is_Function:
        return f"{e.func.__name__}({', '.join(map(javascript, e.args))})"
    return f"s.{e}" if e.is_Symbol else f"{int(e)}n"


def decisions(found: list[tuple[dict, Any]], names: list[str]) -> Any:
    """The runs as one tree: (choice, {value: tree}) with a result for leaves; names: choices, those to ask first."""
    name = next((name for name in names if any(name in taken for taken, _ in found)), None)
    if name is None:
        return found[0][1]
    values = {taken[name]: 0 for taken, _ in found if name in taken}
    rest = [x for x in names if x != name]
    return name, {value: decisions([run for run in found if run[0].get(name, value) == value], rest)
                  for value in values}


def leaves(pool: Pool, tree, leaf: Callable[[Any], Any]) -> int | None:
    """The place of the tree with these leaves; equal branches are one, and a leaf of None is any."""
    if not isinstance(tree, tuple):
        return None if (value := leaf(tree)) is None else pool.leaf(value)
    name, branches = tree
    placed = {value: leaves(pool, branch, leaf) for value, branch in branches.items()}
    places = {place for place in placed.values() if place is not None}
    if len(places) < 2:
        return next(iter(places), None)
    return pool.branch(name, {value if isinstance(value, str) else json.dumps(value): place
                              for value, place in placed.items() if place is not None})


def in_order(lists: list[list]) -> list:
    """All items of the lists, each once, in an order in which each follows the one before it in its list."""
    found: list = []
    for items in dict.fromkeys(map(tuple, lists)):
        at = 0
        for item in items:
            if item not in found:
                found.insert(at, item)
            at = found.index(item) + 1
    return found


Keyed = dict[tuple, Any]  # what stands in a list -> how many times (0: not at all)


def emitted(pool: Pool, function: Callable[[Choose], dict[str, Keyed]]) -> dict[str, list]:
    """{list: [[*key, tree of times]]} of the lists that `function` returns; Errors are left out."""
    found = runs(function)
    names = list(dict.fromkeys([*CHOSEN, *(name for taken, _ in found for name in taken)]))
    results = [result for _, result in found if not isinstance(result, Error)]
    tree, lists = decisions(found, names), {}
    for name in in_order([list(result) for result in results]):
        lists[name] = []
        for key in in_order([list(result.get(name, {})) for result in results]):
            def times(result, name=name, key=key):
                return None if isinstance(result, Error) else result.get(name, {}).get(key, 0)

            lists[name].append([*(json.loads(x) if isinstance(x, str) else x for x in key), leaves(pool, tree, times)])
    return lists


def keyed(pool: Pool, of: list[Term]) -> Keyed:
    """The terms by what they are and by formula, with the times of equal ones added up."""
    found: Keyed = {}
    for what, formula, times in of:
        if formula != 0 and times != 0:
            key = json.dumps(what), pool.formula(formula)
            found[key] = found.get(key, 0) + times
    return found


def short_names(c) -> dict[str, str]:
    """{linear of a block: the shortest name that means it alone}."""
    ends = [name.partition(".")[2] for name in linears(c)]
    return {name: end if ends.count(end) == 1 else name for name, end in zip(linears(c), ends, strict=True)}


@cache
def kind(of: type[Method], name: str) -> str:
    """A hyper-parameter's kind of field: "size", "choice", "tick" or "linears"."""
    hint = typing.get_type_hints(of.__init__).get(name)
    kinds = hint, *typing.get_args(hint)
    if of.hyperparameters[name].symbol:
        return "size"
    if typing.get_origin(hint) is typing.Literal:
        return "choice"
    if bool in kinds:
        return "tick"
    if list[str] in kinds:
        return "linears"
    raise Error(f"{name} of {of.name!r}: its cost depends on it, but it is no size (with a symbol), "
                "Literal, bool or list of linears")


def declare(of: type[Method], c: OpenShape, choose: Choose) -> Declared:
    """The declarations of a method on symbols; its choices are asked for under "h.name"."""
    def value(name: str):
        match kind(of, name):
            case "size":
                return polynomial(of.hyperparameters[name].symbol)
            case "choice":
                return choose(f"h.{name}", typing.get_args(typing.get_type_hints(of.__init__)[name]))
            case "tick":
                return choose(f"h.{name}", (False, True))
        return [short for full, short in short_names(c).items() if choose(f"h.{name}.{full}", (True, False))]

    sizes = {name: value(name) for name in of.sizes()}
    return Declared(of, sizes, of.shapes(c, **sizes))


def work(part: str, choose: Choose) -> Work:
    """The work in symbols, with its choices as far as a part of the ledger depends on them."""
    B, T, tasks, processes = map(polynomial, ("B", "T", "tasks", "processes"))
    checkpointing = part == "memory" and choose("checkpointing", (False, True))
    several = part not in ("base", "wire") or choose("several", (True, False))
    return Work(B, T, tasks, processes if several else 1, checkpointing)


def quantities(pool: Pool, part: str, of: type[Method]) -> dict[str, list]:
    """{quantity: [[what, formula, tree of times]]} of one part of the ledger."""
    def run(choose: Choose) -> dict[str, Keyed]:
        c = OpenShape(choose)
        found = terms(part, c, declare(of, c, choose), work(part, choose))
        return {name: keyed(pool, summands) for name, summands in found.items()}

    return emitted(pool, run)


def base(pool: Pool) -> dict:
    """The linears of a block, and the quantities of the base alone."""
    def run(choose: Choose) -> dict[str, Keyed]:
        names = short_names(OpenShape(choose))
        return {"linears": {(json.dumps(name), json.dumps(short)): 1 for name, short in names.items()}}

    return emitted(pool, run) | {"terms": quantities(pool, "base", METHODS[WHOLE])}


def shape(pool: Pool) -> dict[str, int]:
    """Sizes that follow others, {symbol: formula}: where none is given, as GPTConfig has them."""
    c = OpenShape(lambda name, options: options[-1])
    nh, hs, C = map(polynomial, ("nh", "hs", "C"))
    unset = type("Unset", (), {"n_embd": C, "n_head": nh, "n_inner": None, "n_kv_head": None})
    return {"C": pool.formula(nh * hs), "q": pool.formula(nh * hs), "nkv": pool.formula(GPTConfig.n_kv.fget(unset)),
            "M": pool.formula(GPTConfig.inner.fget(unset)), "kv": pool.formula(GPTConfig.kv.fget(c))}


def stored_files(pool: Pool, of: type[Method]) -> dict[str, list]:
    """The tensors and the config of an adapter's files, for the page to write and to measure."""
    def run(choose: Choose) -> dict[str, Keyed]:
        c = OpenShape(choose)
        found = files(c, declare(of, c, choose))
        tensors = {(json.dumps(name), json.dumps([pool.formula(side) for side in shape])): 1
                   for name, shape in found.tensors.items()}
        config: Keyed = {}
        for name, value in found.config.items():
            is_list = isinstance(value, list)
            config |= {(json.dumps(name), json.dumps(is_list), json.dumps(template(pool, x))): 1
                       for x in (value if is_list else [value])}
        return {"tensors": tensors, "config": config, "notes": {(json.dumps(json.dumps(found.notes)),): 1},
                "each": {(json.dumps(found.each),): 1}, "first": {(): found.first},
                "blocks": {(): c.n_layer - found.first}}

    return emitted(pool, run)


def template(pool: Pool, value):
    """A value of a config as JSON; {"is": formula} for a size, {"field": name} for another field of the shape,
    {"layers": [others, nth], "every": formula} for a list by layer."""
    if isinstance(value, (Polynomial, sympy.Basic)):
        return {"field": value.name} if isinstance(value, sympy.Symbol) else {"is": pool.formula(value)}
    if isinstance(value, EachLayer):
        return {"layers": [value.others, value.nth], "every": pool.formula(value.every)}
    if isinstance(value, float):
        return f"float:{value!r}"
    if isinstance(value, dict):
        return {name: template(pool, x) for name, x in value.items()}
    return [template(pool, x) for x in value] if isinstance(value, tuple) else value


def defaults(pool: Pool, of: type[Method]) -> dict[str, list]:
    """{hyper-parameter: [[formula, tree]]} where none is given; of linears, {…: [[linear, tree]]}."""
    def run(choose: Choose) -> dict[str, Keyed]:
        c = OpenShape(choose)
        found = {}
        for name, value in of.with_defaults(c, {}).items():
            if kind(of, name) == "linears":
                found[name] = {(json.dumps(x),): 1 for x in linears_named(c, value)}
            elif kind(of, name) == "size":
                found[name] = {(json.dumps(pool.formula(value)),): 1}
        return found

    return emitted(pool, run)


def refusals(pool: Pool, of: type[Method]) -> list:
    """[[message, tree]] of the choices for which the declaration raises Error."""
    def run(choose: Choose) -> dict[str, Keyed]:
        try:
            c = OpenShape(choose)
            declare(of, c, choose).cost(c, 1)
        except Error as e:
            return {"refused": {(json.dumps(str(e)),): 1}}
        return {"refused": {}}

    return emitted(pool, run)["refused"]


def fields(of: type[Method]) -> dict[str, dict]:
    """{hyper-parameter that the cost depends on: its kind of field, help, symbol, bound, options and default}.

    A default of None follows the shape.
    """
    hints, found = typing.get_type_hints(of.__init__), {}
    found_defaults = runs(lambda choose: of.with_defaults(OpenShape(choose), {}))
    every = [values for _, values in found_defaults if not isinstance(values, Error)]
    for name in of.sizes():
        spec, what = of.hyperparameters[name], kind(of, name)
        first = every[0][name]
        same = type(first) in (int, str, bool) and all(values[name] == first for values in every)
        found[name] = {"kind": what, "help": spec.help.partition(" (")[0], "symbol": spec.symbol,
                       "options": typing.get_args(hints[name]) if what == "choice" else [], "at_most": spec.at_most,
                       "initial": first if same else None}
    return found


def method(pool: Pool, name: str) -> dict:
    """Everything of a method that the page shows."""
    of, lists = METHODS[name], {}
    for part in (x for x in PARTS if x != "base"):
        lists |= quantities(pool, part, of)
    positions = None
    if "num_virtual_tokens" in of.sizes():
        positions = pool.formula(polynomial(of.hyperparameters["num_virtual_tokens"].symbol) + polynomial("T"))
    return {"freezes_base": of.freezes_base, "positions": positions, "fields": fields(of), "terms": lists,
            "defaults": defaults(pool, of), "refused": refusals(pool, of), "files": stored_files(pool, of)}

