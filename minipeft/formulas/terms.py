"""The form in which a method declares its tensors and its cost, on a base of any shape.

Sizes are ints, or symbols (formulas/symbols.py) when a formula is printed. A declaration may
therefore branch on a choice, a string or a bool, but not on a size: `minimum`, `maximum`,
`round_half_even`, `round_up` and `floor` take both.
"""

from typing import Any, NamedTuple

Size = Any  # an int, or a sympy expression


class Hyperparameter(NamedTuple):
    """Help text of a hyper-parameter; for a size also its symbol and its bound."""

    help: str  # "rank": help pages add the default
    symbol: str = ""  # in closed forms: "P", "r"
    at_most: str = ""  # the field of GPTConfig that bounds it


class Term(NamedTuple):
    """A summand of a quantity: times · formula."""

    what: str
    formula: Size
    times: Size = 1


def total(terms: list[Term]) -> Size:
    """The quantity that these terms make up."""
    return sum(term.formula * term.times for term in terms)


class Shapes(NamedTuple):
    """Shapes of a method's tensors by name; one with {i} stands in each block `first` … L-1."""

    trained: dict[str, tuple[Size, ...]]
    stored: dict[str, tuple[Size, ...]]  # the names and shapes of the adapter file
    frozen: dict[str, tuple[Size, ...]] = {}  # held in memory, but not trained
    each: int = 4  # bytes of an element stored or frozen: 4 (float32) or 8 (int64)
    first: Size = 0


class Matmul(NamedTuple):
    """A matmul of the method's: (rows, n_in) by a weight (n_in, n_out)."""

    name: str
    n_in: Size
    n_out: Size
    of: str = "own"  # its input: a hook's "x" or "y", or "own": a tensor that needs a gradient in any case
    trained: bool = True  # the weight
    rows: Size | None = None  # None: every position in the batch


class Saved(NamedTuple):
    """Tensors saved for backward."""

    name: str
    elements: Size
    each: int | None = None  # bytes of an element; None: those of the base's dtype
    times: Size = 1  # in so many blocks


class Hook(NamedTuple):
    """Cost of a hook f(x, y) -> y' at one place of a block."""

    matmuls: tuple[Matmul, ...] = ()
    saved: tuple[Saved, ...] = ()
    saves_x: bool = False  # x too is saved, once for all that save it (not the queries of "attn.heads")
    saves_y: bool = False  # y too is saved; that of "attn.heads" attention itself may save


class PrefixCost(NamedTuple):
    """Keys and values put into slot 2 of the top `layers` blocks."""

    rows: Size
    layers: Size
    own_softmax: bool = False  # beside the context's, with a gate
    source: str = "parameters"  # or the block's own projections, of "vectors", or of "states" behind ln_1
    bias: bool = False  # on each key
    made: bool = False  # by matmuls of the method, so that what saves it saves more than parameters


class Cost(NamedTuple):
    """What a method adds to a step of the base, and so where gradients start."""

    base: bool = False  # every weight of the base is trained
    prompt: Size = 0  # rows put into slot 1
    prefix: PrefixCost | None = None
    hooks: dict[str, Hook] = {}  # by place (config.hookable_modules), the same in every block
    folded: tuple[Matmul | Saved, ...] = ()  # work of training alone, folded away when saved


def minimum(a: Size, b: Size) -> Size:
    """The smaller of two sizes."""
    return min(a, b) if _are_ints(a, b) else _function("min", a, b)


def maximum(a: Size, b: Size) -> Size:
    """The larger of two sizes."""
    return a + b - minimum(a, b)


def round_half_even(a: Size, b: Size) -> Size:
    """a / b rounded to the nearest integer, ties to the even one."""
    if not _are_ints(a, b):
        return _function("nearest", a, b)
    quotient, rest = divmod(a, b)
    return quotient + (2 * rest > b or (2 * rest == b and quotient % 2))


def round_up(a: Size, b: Size) -> Size:
    """The smallest multiple of b that is at least a."""
    return -(-a // b) * b if _are_ints(a, b) else _function("roundUp", a, b)


def floor(a: Size, b: Size) -> Size:
    """a / b, rounded down."""
    return a // b if _are_ints(a, b) else _function("floor", a, b)


def _are_ints(*sizes: Size) -> bool:
    return all(isinstance(size, int) for size in sizes)


def _function(name: str, *arguments: Size) -> Size:
    import sympy  # takes a second, and only printed formulas need it

    return sympy.Function(name)(*arguments)
