"""The questions, and the cells that answer them.

What is the same everywhere unless a study varies it: the base (small: 0.2 million parameters, so that some thousand runs are a matter of
hours), 300 steps of 16 new examples, seeds 0 … 4, and for every method the learning rate that its sweep chose.
"""

from dataclasses import replace

from ...accounting import count
from ...config import EMBEDDED, Error
from .cell import Cell

BASE = "small"
TASKS = {"reverse": "select", "reverse+increment": "compose", "parity": "novel", "differences": "novel"}
QUICK = ("reverse", "reverse+increment")
SEEDS = range(5)
SWEPT_WITH = 100  # the seed of all sweeps
BUDGETS = (1024, 4096, 8192)  # trained parameters at most
BUDGET = BUDGETS[1]
TOKENS = 16  # of a prompt or prefix, where length is not what is varied
LENGTHS = (1, 2, 4, 8, 16, 32, 64, 128)
FEW = (10, 30, 100, 300, 1000, 3000)
REAL_EXAMPLES = (50, 200, 500)

# The same number of rates for everything, a factor of about √10 apart, around what a first look had as best.
RATES = {
    "prompt": (0.1, 0.3, 1.0),
    "prefix": (0.1, 0.3, 1.0),
    "hidden prefix": (0.1, 0.3, 1.0),
    "lora": (6e-3, 2e-2, 6e-2),
    "adapter": (1e-2, 3e-2, 1e-1),
    "llama-adapter": (0.1, 0.3, 1.0),
    "full": (1e-3, 3e-3, 1e-2),
}
PROJECTION_RATES = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)  # for both forms of a prefix
REAL_RATES = {"prompt": (1e-2, 3e-2, 1e-1), "prefix": (1e-2, 3e-2, 1e-1), "lora": (2e-3, 6e-3, 2e-2), "full": (3e-5, 1e-4, 3e-4)}

# What grows with a method's budget: its hyper-parameter, and those that stay.
GROWS = {
    "prompt": ("num_virtual_tokens", {}),
    "prefix": ("num_virtual_tokens", {}),
    "hidden prefix": ("num_virtual_tokens", {"space": "hidden"}),
    "lora": ("r", {}),
    "adapter": ("bottleneck_size", {"placement": "pfeiffer"}),
    "llama-adapter": ("adapter_len", {}),
}


def row(cell: Cell) -> str:
    """What a cell's method is called in tables: the two spaces of a prefix are rows of their own."""
    if cell.size.get("prefix_projection"):
        return "prefix by an MLP"
    return "hidden prefix" if cell.size.get("space") == "hidden" else cell.method


def method_of(name: str) -> str:
    """The method of a row."""
    return "prefix" if "prefix" in name else name


def largest(name: str, budget: int, base: str = BASE) -> dict:
    """The hyper-parameters of the largest size of this row that trains at most `budget` parameters."""
    if name not in GROWS:
        return {}  # full, hard-prompt
    grows, rest = GROWS[name]
    size = {grows: 0, **rest}
    while count(EMBEDDED[base], method_of(name), **(more := size | {grows: size[grows] + 1})).trained <= budget:
        size = more
    if size[grows] == 0:
        raise Error(f"no size of {name} trains as few as {budget:,} parameters of {base}")
    return size


def cell(name: str, task: str, size: dict, base: str = BASE, **rest) -> Cell:
    """A cell of this row, its rate still open."""
    return Cell(base, task, method_of(name), size, **rest)


def sweep(of: Cell) -> list[Cell]:
    """The cells that choose the rate of this one and of all that differ from it in their start, data, or seed alone."""
    if of.method == "hard-prompt":
        return []
    real = of.task == "e2e"
    of = replace(of, examples=REAL_EXAMPLES[1]) if real else replace(of, examples=None, start=None)  # once for all amounts
    rates = REAL_RATES if real else RATES
    return [replace(of, lr=lr, seed=SWEPT_WITH, scored_on="dev") for lr in rates[row(of)]]


def seeded(cells: list[tuple[Cell, Cell]], seeds=SEEDS) -> list[tuple[Cell, Cell]]:
    return [(replace(c, seed=seed), like) for c, like in cells for seed in seeds]


def same(*cells: Cell) -> list[tuple[Cell, Cell]]:
    """Cells that are swept at their own size."""
    return [(c, c) for c in cells]


# Every study: (cell, the cell at whose size its rate is swept), over seeds. A cell that two studies have is run once.


def methods(tasks=tuple(TASKS), seeds=SEEDS) -> list[tuple[Cell, Cell]]:
    """1 What can each method do? All of them at one budget of trained parameters, full fine-tuning and words beside them."""
    rows = [*GROWS, "full", "hard-prompt"]
    return seeded(same(*(cell(r, t, largest(r, BUDGET)) for t in tasks for r in rows)), seeds)


def budget() -> list[tuple[Cell, Cell]]:
    """2 Equal trained parameters, three times."""
    names, tasks = [r for r in GROWS if r != "hidden prefix"], ("reverse+increment", "parity")
    return seeded(
        [(cell(r, t, largest(r, b)), cell(r, t, largest(r, BUDGET))) for t in tasks for b in BUDGETS for r in names],
    )


def scale() -> list[tuple[Cell, Cell]]:
    """4 Does the gap to full fine-tuning close as the base grows?"""
    tokens = {"num_virtual_tokens": TOKENS}
    sizes = {"prompt": tokens, "prefix": tokens, "full": {}}
    return seeded(
        same(*(cell(r, t, size, base) for t in ("reverse", "reverse+increment") for base in EMBEDDED for r, size in sizes.items()))
    )


def length() -> list[tuple[Cell, Cell]]:
    """5 How many virtual tokens?"""
    return seeded(
        [
            (cell(r, t, {"num_virtual_tokens": P}), cell(r, t, {"num_virtual_tokens": TOKENS}))
            for t in TEXTS
            for r in ("prompt", "prefix")
            for P in LENGTHS
        ]
    )


TEXTS = {"reverse": "last to first: ", "parity": "odd or even: "}
PROMPT_RUNG = {"rung": "prompt"}  # where it is trained at the rate that a prompt's sweep chose


def start() -> list[tuple[Cell, Cell]]:
    """6 What to start from? Noise, tokens of the vocabulary, a text that describes the task, the best of the base's own instructions, and
    for a prefix a soft prompt that was trained for half of the steps. What starts from a text has its length, the others TOKENS."""
    cells = []
    for t, text in TEXTS.items():
        for r in ("prompt", "prefix"):
            like = cell(r, t, {"num_virtual_tokens": TOKENS})
            cells += [(replace(like, start=s), like) for s in ["random", "vocab"] + ([PROMPT_RUNG] if r == "prefix" else [])]
            cells += [(replace(like, start=s, size={}), like) for s in ({"text": text}, {"rung": "hard-prompt"})]
    return seeded(cells)


def projection() -> list[tuple[Cell, Cell]]:
    """7 What does the MLP do for a prefix? Every rate is a cell of its own, so there is no sweep."""
    forms = ({}, {"prefix_projection": True})
    size = {"num_virtual_tokens": TOKENS}
    return seeded([(cell("prefix", "parity", size | form, lr=lr), None) for form in forms for lr in PROJECTION_RATES])


def data() -> list[tuple[Cell, Cell]]:
    """8 Little data: from 10 examples to 3,000."""
    tokens = {"num_virtual_tokens": TOKENS}
    sizes = {"prompt": tokens, "prefix": tokens, "lora": largest("lora", BUDGET), "full": {}}
    return seeded(same(*(cell(r, t, size, examples=n) for t in TEXTS for n in FEW for r, size in sizes.items())))


def real() -> list[tuple[Cell, Cell]]:
    """9 A real model on real language."""
    from .real import cell as real_cell

    return seeded(same(*(real_cell(r, n) for n in REAL_EXAMPLES for r in REAL_RATES)))


STUDIES = {  # by name; time and cost are read off the cells of the first
    "methods": methods,
    "budget": budget,
    "scale": scale,
    "length": length,
    "start": start,
    "projection": projection,
    "data": data,
    "real": real,
}
