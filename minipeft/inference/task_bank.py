"""Many tasks on one base: every row of a batch has its own (Lester et al. 2021, 2104.08691 §1).

Every task becomes one or both of two things that can be gathered row by row:

    prefix    hard prompts, soft prompts and hidden prefixes are converted up to keys and values
              when they are loaded (exactly: ladder.py); rows may differ in length
    hooks     stacked, and gathered by row (LowRank.stack, .rows): LoRA is y = W x + B_i A_i x with
              the pair of row i, in two batched matmuls, padded to one rank
"""

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from ..adapters import fingerprint, load_adapter
from ..attach import Adapted, check_unmerged
from ..checks import Error, check_base, check_tokens, described, shown
from ..ladder import prefix_from_prompt
from ..model import GPT
from ..runtime.modes import in_eval_mode
from ..slots import Prefix, Slots
from .generation import generate


class SlottedBase:
    """A base with fixed slots, as a model for `generate`: rows(idx) returns logits.

    num_tasks: rows that idx must have, one for each task gathered from a bank; None: any number."""

    def __init__(self, base: GPT, slots: Slots, num_tasks: int | None = None):
        self.base, self._slots, self.num_tasks, self.training = base, slots, num_tasks, False

    def slots(self) -> Slots:
        return self._slots

    def __call__(self, idx: Tensor) -> Tensor:
        self.check_rows(idx)
        return self.base(idx, *self._slots)

    def check_rows(self, idx: Tensor) -> None:
        """Raise Error unless idx (B, T) has a row a task, and while an adapter is merged."""
        check_tokens(idx)
        if self.num_tasks is not None:
            check_unmerged(self.base)  # all rows would have it
        if self.num_tasks not in (None, idx.size(0)):
            raise Error(f"{self.num_tasks} tasks for {idx.size(0)} rows: every row needs one, or None")

    def train(self, mode: bool = True) -> None:
        """Nothing to do: rows are for inference only."""

    eval = train


class TaskBank:
    """bank = TaskBank(base, {"a": folder, "b": model}); bank(idx, tasks=["b", None, …]) -> logits.

    tasks: name -> an adapter folder, or an Adapted on this base. Every row's logits are those of
    its task alone, or of the base for None, as it was when the bank was made: training that goes on
    does not reach it. Raises Error for adapters of another base, and for
    methods that cannot be mixed, with the reason, and while an adapter is merged into the base.
    """

    @torch.no_grad()
    def __init__(self, base: GPT, tasks: "dict[str, str | Path | Adapted]"):
        check_base(base)
        if not isinstance(tasks, dict) or not all(isinstance(name, str) for name in tasks):
            raise Error(f"tasks must be {{name: adapter folder or Adapted}}, not {shown(tasks)}")
        self.base, self.names = base, list(tasks)
        loaded: list[Adapted] = []
        has_folders = not all(isinstance(task, Adapted) for task in tasks.values())
        base_fingerprint = fingerprint(base) if has_folders else None  # once for all folders
        try:
            slots = []
            for name, task in tasks.items():
                if not isinstance(task, Adapted):
                    loaded.append(task := load_adapter(base, task, base_fingerprint))
                slots.append(self._slots_of(name, task))
            self.prefix = self._prefix_table([Prefix.of(s.prefix) if isinstance(s.prefix, Tensor) else s.prefix
                                              for s in slots])
            self.hooks = self._hook_table([s.hooks for s in slots])
        finally:
            for model in loaded:
                model.detach()  # the tables hold copies

    def _slots_of(self, name: str, model: Adapted) -> Slots:
        """The task's slots, its prompt converted up to a prefix (L, 2, 1, n_kv, P, hs)."""
        if reason := why_not(model):
            raise Error(f"task {name!r}: {reason}")
        check_unmerged(self.base)  # the prompt is converted through its weights
        if model.base is not self.base:
            raise Error(f"task {name!r} was tuned on another base than the bank's")
        with in_eval_mode(model):  # no dropout in the conversion
            slots = model.slots()
            if slots.prompt is not None:
                slots = Slots(prefix=prefix_from_prompt(self.base, slots.prompt, slots.hooks),
                              hooks=slots.hooks)
        p = slots.prefix
        if isinstance(p, Prefix) and (p.gate is not None or len(p.k) != self.base.config.n_layer):
            raise Error(f"task {name!r}: a prefix with a gate, or in some layers only, cannot be mixed in one batch")
        return slots

    def _prefix_table(self, prefixes: list[Prefix | None]) -> Prefix | None:
        """All prefixes as rows of one (L, n + 1, n_kv, P, hs), P the longest; row 0 is the base. A
        bias where one has a bias; positions where one takes others than its rows."""
        lengths = [0] + [0 if p is None else p.k.size(3) for p in prefixes]
        if not max(lengths):
            return None
        c, weight = self.base.config, self.base.wte.weight
        k, v = weight.new_zeros(2, c.n_layer, len(lengths), c.n_kv, max(lengths), c.head_size)
        has_bias = any(p is not None and p.bias is not None for p in prefixes)
        bias = k.new_zeros(k.shape[:4], dtype=torch.promote_types(k.dtype, torch.float32)) if has_bias else None
        for i, p in enumerate(prefixes, start=1):
            if p is not None:
                k[:, i, :, : lengths[i]], v[:, i, :, : lengths[i]] = p.k[:, 0], p.v[:, 0]
                if p.bias is not None:
                    bias[:, i, :, : lengths[i]] = p.bias[:, 0]
        positions = [0] + [0 if p is None else p.most_taken for p in prefixes]
        length, taken = torch.tensor([lengths, positions], device=weight.device)
        return Prefix(k, v, None, length, bias, None if positions == lengths else taken)

    def _hook_table(self, hooks: list[list[dict] | None]) -> "list[dict] | None":
        """Per layer {place: the stacked hook of all tasks}; entry 0 of a stack is the base."""
        places = list(dict.fromkeys(place for h in hooks if h for place in h[0]))
        if not places:
            return None
        layers = []
        for i in range(self.base.config.n_layer):
            at = {place: [None, *(h[i].get(place) if h else None for h in hooks)] for place in places}
            for place, found in at.items():
                kinds = {type(hook).__name__ for hook in found if hook is not None}
                if len(kinds) > 1 or "tuple" in kinds:  # a combination that has several hooks there
                    raise Error(f"tasks that hook {place} in different ways, or more than once, cannot be mixed in "
                                f"one batch: {' and '.join(sorted(kinds))}")
                if not hasattr(next(h for h in found if h is not None), "stack"):
                    raise Error(f"{kinds.pop()}, the hook of {place}, has no stack and rows, so no batch can mix it")
            layers.append({place: next(h for h in found if h is not None).stack(found) for place, found in at.items()})
        return layers

    @torch.no_grad()
    def rows(self, tasks: list[str | None]) -> SlottedBase:
        """The tasks of a batch, gathered. If all rows have the same one, they share its prefix."""
        check_unmerged(self.base)
        rows = {None: 0} | {name: i for i, name in enumerate(self.names, start=1)}  # of the tables
        if not isinstance(tasks, (list, tuple)) or not tasks:
            raise Error(f"tasks must be a list, a name or None for each row, not {shown(tasks)}")
        for name in tasks:
            if not isinstance(name, (str, type(None))) or name not in rows:
                raise Error(f"no task {shown(name)} in this bank: it has {', '.join(self.names)}")
        ids = torch.tensor([rows[name] for name in tasks], device=self.base.wte.weight.device)
        compiled = self.base.through_compile
        shared = len(set(tasks)) == 1 and not compiled  # compiled: one shape for every mixture
        slots = Slots()
        if self.prefix is not None:
            k, v, _, lengths, bias, positions = self.prefix
            P = k.size(3) if compiled else int(lengths[ids].max())  # the longest of the batch
            if P:
                of = ids[:1] if shared else ids
                k, v, bias = (None if x is None else x[:, of, :, :P] for x in (k, v, bias))
                if positions is not None:
                    positions = int(positions[of]) if shared else positions[ids]
                slots = slots._replace(prefix=Prefix(k, v, None, None if shared else lengths[ids], bias, positions))
        if self.hooks is not None and not (shared and tasks[0] is None):
            i = ids[0] if shared else ids
            hooks = [{place: hook.rows(i) for place, hook in layer.items()} for layer in self.hooks]
            slots = slots._replace(hooks=hooks)
        return SlottedBase(self.base, slots, len(tasks))

    @torch.no_grad()
    def __call__(self, idx: Tensor, tasks: list[str | None]) -> Tensor:
        """idx (B, T) int64 -> logits (B, T, V); tasks: a name, or None, for each row."""
        return self.rows(tasks)(idx)


def why_not(model: Adapted) -> str | None:
    """The reason why this task cannot be mixed with others in a batch; None if it can."""
    parts = model.method.parts()
    for part in parts:
        if part.mixing is not None:
            return f"{part.name} cannot be mixed in one batch: {part.mixing}"
    if sum(part.num_virtual_tokens > 0 for part in parts) > 1:
        return (f"{model.method.name} cannot be mixed in one batch: its prompt was learnt behind "
                "its prefix, not in the place of one")
    if model.merged:
        return "it is merged into the base, where all rows would have it: unmerge it first"
    return None


def vote(bank: TaskBank, idx: Tensor, tasks: list[str], max_new_tokens: int,
         stop_token: "int | list[int] | None" = None) -> Tensor:
    """The most frequent completion of one input by several tasks (ensembling, Lester et al. §6).

    idx (1, T) -> (1, <= T + max_new_tokens). Of equally frequent ones the first in `tasks` wins.
    """
    check_tokens(idx)
    if not isinstance(bank, TaskBank):
        raise Error(f"a vote is among the tasks of a TaskBank, not {described(bank)}")
    rows = bank.rows(tasks)
    if idx.size(0) != 1:
        raise Error(f"a vote needs one input and at least one task, not {idx.size(0)} and {len(tasks)}")
    idx = idx.expand(len(tasks), -1)
    completions = generate(rows, idx, max_new_tokens, stop_token=stop_token)
    (winner, _), *_ = Counter(map(tuple, completions.tolist())).most_common(1)
    return torch.tensor([winner], device=idx.device)
