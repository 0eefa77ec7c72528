"""The studies, each a list of cells that answers one question.

Unless a study varies it, all cells share: the base "small" (0.2 million parameters, so that a
thousand runs take hours), 300 steps of 16 new examples, seeds 0 … 4, and the learning rate that a
sweep chose.
"""

from dataclasses import replace

from ...accounting import count
from ...accounting.shapes import EMBEDDED, SCALES
from ...checks import Error
from . import real as real_model
from .lines import Cell

BASE = "small"
TASKS = ("reverse", "reverse+increment", "parity", "differences")
QUICK = ("reverse", "reverse+increment")
SEEDS = range(5)
SWEPT_WITH = 100  # the seed of all sweeps
BUDGETS = (1024, 4096, 8192)  # upper limits of trained parameters
BUDGET = BUDGETS[1]
TOKENS = {"num_virtual_tokens": 16}  # size of a prompt or prefix, unless its length varies
LENGTHS = (1, 2, 4, 8, 16, 32, 64, 128)
FEW = (10, 30, 100, 300, 1000, 3000)
REAL_EXAMPLES = 200
REAL_FEW = (50, REAL_EXAMPLES, 1000)
KNOWN = ("reverse", "parity", "differences")  # tasks of the study of forgetting
TEXTS = {"reverse": "last to first: ", "parity": "odd or even: "}  # describe the task
MAIN_ROWS = ("prompt", "prefix", "lora", "full")  # of the study of data; the real model's first
AGAINST = "lora"  # what the study real_prefix compares with
MATCHED = real_model.MATCHED  # start from rows matched to a batch of training examples
PROMPT_RUNG = {"rung": "prompt"}  # start from a soft prompt, trained at its own learning rate

VECTORS = (0.03, 0.1, 0.3, 1.0, 3.0)  # learning rates of virtual tokens
# For every row of a table: the hyper-parameter that grows with its budget, the others, and the
# five learning rates of its sweep: a factor of about √10 apart, around the best of a pilot.
ROWS = {
    "prompt": ("num_virtual_tokens", {}, VECTORS),
    "prefix": ("num_virtual_tokens", {}, VECTORS),
    "hidden prefix": ("num_virtual_tokens", {"space": "hidden"}, VECTORS),
    "lora": ("r", {}, (2e-3, 6e-3, 2e-2, 6e-2, 2e-1)),
    "adapter": ("bottleneck_size", {"placement": "pfeiffer"}, (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)),
    "llama-adapter": ("adapter_len", {}, VECTORS),
    "full": (None, {}, (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)),
    "hard-prompt": (None, {}, ()),
}
GROWS = [name for name, (grows, _, _) in ROWS.items() if grows]
PROJECTION_LEARNING_RATES = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)  # for both forms of a prefix


def row(cell: Cell) -> str:
    """Name of a cell's method in tables, where forms of a method have rows of their own."""
    if cell.base == real_model.BASE:
        return real_model.row(cell)
    if cell.size.get("prefix_projection"):
        return "prefix by an MLP"
    return "hidden prefix" if cell.size.get("space") == "hidden" else cell.method


def method_of(name: str) -> str:
    """The method of a row."""
    return "prefix" if "prefix" in name else name.removesuffix(" with wording").split(",")[0]


def largest(name: str, budget: int, base: str = BASE) -> dict:
    """Hyper-parameters of the largest size of this row that trains at most `budget` parameters."""
    (grows, rest, _), n = ROWS[name], 0
    if grows is None:
        return {}
    while count(EMBEDDED[base], method_of(name), **{grows: n + 1}, **rest).trained <= budget:
        n += 1
    if n == 0:
        raise Error(f"no size of {name} trains as few as {budget:,} parameters of {base}")
    return {grows: n, **rest}


def cell(name: str, task: str, size: dict, base: str = BASE, **rest) -> Cell:
    """A cell of this row, without learning rate unless `rest` has one."""
    return Cell(base, task, method_of(name), size, **rest)


def sweep(of: Cell) -> list[Cell]:
    """The first runs of those that choose a cell's learning rate, whatever its start and seed;
    where the best lies at an edge, the sweep goes on (grid.next_of_sweep)."""
    if of.base == real_model.BASE:
        rates = real_model.ALL_ROWS[row(of)].rates
    else:
        of, rates = replace(of, start=None), ROWS[row(of)][2]
    return [swept_at(of, lr) for lr in rates]


def swept_at(of: Cell, lr: float) -> Cell:
    """The run of a sweep with this learning rate."""
    return replace(of, lr=lr, seed=SWEPT_WITH, scored_on="dev")


# A study returns pairs: a cell, and the cell for whose setting its learning rate is swept (None:
# the first has a learning rate). A cell that is in two studies is run once.
Pairs = list[tuple[Cell, "Cell | None"]]


def seeded(pairs: Pairs, seeds=SEEDS) -> Pairs:
    return [(replace(c, seed=seed), like) for c, like in pairs for seed in seeds]


def swept(cells, seeds=SEEDS) -> Pairs:
    """Cells whose learning rate is swept in their own setting."""
    return seeded([(c, c) for c in cells], seeds)


def methods(tasks=TASKS, seeds=SEEDS) -> Pairs:
    """All methods at one budget of trained parameters, full fine-tuning and a hard prompt."""
    return swept((cell(r, t, largest(r, BUDGET)) for t in tasks for r in ROWS), seeds)


def budget() -> Pairs:
    """Three budgets of trained parameters."""
    rows = [r for r in GROWS if r != "hidden prefix"]
    return swept(cell(r, t, largest(r, b)) for t in ("reverse+increment", "parity") for b in BUDGETS for r in rows)


def scale() -> Pairs:
    """Bases of four sizes."""
    sizes = {"prompt": TOKENS, "prefix": TOKENS, "full": {}}
    return swept(cell(r, t, size, base)
                 for t in QUICK for base in SCALES for r, size in sizes.items())


def length() -> Pairs:
    """Lengths of prompt and prefix."""
    return swept(cell(r, t, {"num_virtual_tokens": P}) for t in TEXTS for r in ("prompt", "prefix") for P in LENGTHS)


def start() -> Pairs:
    """Initial values: noise, vocabulary embeddings, a text that describes the task, the best of the
    base's own instructions, and for a prefix a soft prompt trained for half of the steps, and rows
    matched to a batch of training examples.

    A start from text has the text's length. The learning rates are those of the default start.
    """
    pairs = []
    for t, text in TEXTS.items():
        for r in ("prompt", "prefix"):
            like = cell(r, t, TOKENS)
            of_length = ["random", "vocab"] + ([PROMPT_RUNG, MATCHED] if r == "prefix" else [])
            pairs += [(replace(like, start=s), like) for s in of_length]
            of_text = [{"text": text}, {"rung": "hard-prompt"}]
            pairs += [(replace(like, start=s, size={}), like) for s in of_text]
    return seeded(pairs)


def projection() -> Pairs:
    """A prefix trained directly and through an MLP. Every learning rate is a cell: no sweep."""
    forms = {}, {"prefix_projection": True}
    return seeded([(cell("prefix", "parity", TOKENS | form, lr=lr), None)
                   for form in forms for lr in PROJECTION_LEARNING_RATES])


def data() -> Pairs:
    """10 to 3,000 training examples."""
    sizes = {"prompt": TOKENS, "prefix": TOKENS, "lora": largest("lora", BUDGET), "full": {}}
    return swept(cell(r, t, size, examples=n)
                 for t in TEXTS for n in FEW for r, size in sizes.items())


def real() -> Pairs:
    """A real model on three tasks: a description, a classification and an exact transformation."""
    return swept(real_model.cell(r, REAL_EXAMPLES, t) for r in real_model.ROWS for t in real_model.TASKS)


def real_data() -> Pairs:
    """The same with 50, 200 and 1,000 examples."""
    return swept(real_model.cell(r, n, t) for t in real_model.TASKS for n in REAL_FEW for r in MAIN_ROWS)


def real_prefix() -> Pairs:
    """The same for a prefix and LoRA, one thing changed at a time."""
    rows = ("prefix", AGAINST, "prefix from noise", *real_model.CHANGED)
    return swept(real_model.cell(r, REAL_EXAMPLES, t) for r in rows for t in real_model.TASKS)


def forgetting() -> Pairs:
    """The first study on three of its tasks: what a base forgets on which it knew, or did not."""
    return methods(KNOWN)


# By name. Training time and cost are read from the cells of the first.
STUDIES = {study.__name__: study
           for study in (methods, budget, scale, length, start, projection, data, real, real_data, real_prefix,
                         forgetting)}
REAL = ("real", "real_data", "real_prefix")  # not run unless they are asked for
