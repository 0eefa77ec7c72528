"""Many tasks, one base: every row of a batch carries its own (Lester et al. 2021, 2104.08691 §1, figure 2).

What the tasks add to the base is turned into two things that a batch can gather row by row:

    prefix    hard prompt, soft prompt and hidden prefix climb the ladder once, when they are loaded (exactly: ladder.py), so that all
              of them are keys and values, of a length for every row
    LoRA      y = W x + B_i A_i x          the pair of row i, as two batched products (ranks filled up with zeros)

Full fine-tuning and bottleneck adapters cannot be mixed: the one is another base, the others are layers and no vectors.
"""

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from ..adapters import fingerprint, load_adapter
from ..config import Error
from ..ladder import prefix_from_prompt
from ..methods.base import Adapted
from ..methods.lora import LowRank
from ..model import GPT
from ..slots import Prefix
from .generation import generate


class Rows:
    """A batch's tasks, gathered: what `generate` and `base.hidden` need. rows(idx) gives logits."""

    def __init__(self, base: GPT, slots: dict):
        self.base, self._slots, self.training = base, slots, False

    def slots(self) -> dict:
        return self._slots

    def __call__(self, idx: Tensor) -> Tensor:
        return self.base(idx, **self._slots)

    def eval(self) -> None:
        """Nothing here is trained."""

    def train(self, mode: bool) -> None:
        """Nothing here is trained."""


class TaskBank:
    """bank = TaskBank(base, {"reverse": folder, …}); bank(idx, tasks=["reverse", None, …]) -> logits (B, T, V).

    tasks: name -> an adapter folder, or an Adapted on this base. Row i answers as its task alone would, None as the bare base.
    Raises Error for adapters of another base, and for methods that cannot be mixed, by name and reason.
    """

    @torch.no_grad()
    def __init__(self, base: GPT, tasks: "dict[str, str | Path | Adapted]"):
        self.base = base
        self.names = list(tasks)
        loaded: list[Adapted] = []
        here = None if all(isinstance(task, Adapted) for task in tasks.values()) else fingerprint(base)  # once for all folders
        try:
            slots = []
            for name, task in tasks.items():
                if not isinstance(task, Adapted):
                    loaded.append(task := load_adapter(base, task, here))
                slots.append(self._mixable(name, task))
            self.prefix = self._prefix_table([s["prefix"] for s in slots])
            self.lora = self._lora_table([s["hooks"] for s in slots])
        finally:
            for model in loaded:
                model.detach()  # what is needed of it lies in the tables

    def _mixable(self, name: str, model: Adapted) -> dict:
        """{"prefix": (L, 2, 1, n_kv, P, hs) or None, "hooks": [{place: LowRank}] or None} of one task."""
        if reason := why_not(model):
            raise Error(f"task {name!r}: {reason}")
        if model.base is not self.base:
            raise Error(f"task {name!r} was tuned on another base than the bank's")
        training = model.training
        slots = model.eval().slots()  # nothing is dropped out on the way up the ladder
        prefix, hooks = slots.get("prefix"), slots.get("hooks")
        if "prompt" in slots:
            prefix = prefix_from_prompt(self.base, slots["prompt"], hooks)
        model.train(training)
        return {"prefix": prefix, "hooks": hooks}

    def _prefix_table(self, prefixes: list[Tensor | None]) -> "tuple[Tensor, Tensor] | None":
        """(keys and values (2, L, n + 1, n_kv, P, hs), lengths (n + 1,)), P the longest; task 0 is none."""
        longest = max((p.size(4) for p in prefixes if p is not None), default=0)
        if not longest:
            return None
        c, weight = self.base.config, self.base.wte.weight
        table = weight.new_zeros(2, c.n_layer, len(prefixes) + 1, c.n_kv, longest, c.head_size)
        for i, p in enumerate(prefixes, start=1):
            if p is not None:
                table[:, :, i, :, : p.size(4)] = p[:, :, 0].transpose(0, 1)
        return table, torch.tensor([0] + [0 if p is None else p.size(4) for p in prefixes], device=weight.device)

    def _lora_table(self, hooks: list[list[dict] | None]) -> "list[dict[str, tuple[Tensor, Tensor]]] | None":
        """For every layer {place: (A (n + 1, r, in), B (n + 1, out, r) with the scale in it)}, r the largest; task 0 is none."""
        places = list(dict.fromkeys(place for e in hooks if e for place in e[0]))
        if not places:
            return None
        layers = []
        for i in range(self.base.config.n_layer):
            layer = {}
            for place in places:
                out, into = self.base.h[i].get_submodule(place).weight.shape
                pairs = [e[i][place] if e and place in e[0] else None for e in hooks]
                r = max(pair.A.size(0) for pair in pairs if pair is not None)
                A, B = (self.base.wte.weight.new_zeros(len(hooks) + 1, *shape) for shape in ((r, into), (out, r)))
                for n, pair in enumerate(pairs, start=1):
                    if pair is not None:
                        A[n, : pair.A.size(0)], B[n, :, : pair.A.size(0)] = pair.A, pair.scaled_B()
                layer[place] = (A, B)
            layers.append(layer)
        return layers

    def task_ids(self, tasks: list[str | None]) -> Tensor:
        """Names -> (B,) int64, 0 for None. Raises Error for a name that is not in the bank."""
        for name in tasks:
            if name is not None and name not in self.names:
                raise Error(f"no task {name!r} in this bank: it has {', '.join(self.names)}")
        ids = {None: 0} | {name: i for i, name in enumerate(self.names, start=1)}
        return torch.tensor([ids[name] for name in tasks], device=self.base.wte.weight.device)

    @torch.no_grad()
    def rows(self, tasks: list[str | None]) -> Rows:
        """What the rows of a batch need, gathered once; when all rows have one task its prefix is shared instead of gathered."""
        ids = self.task_ids(tasks)
        shared = len(set(tasks)) == 1 and not self.base.through_compile  # compiled, one shape serves every mixture
        slots = {}
        if self.prefix is not None:
            table, lengths = self.prefix
            P = table.size(4) if self.base.through_compile else int(lengths[ids].max())  # the longest of the batch
            if P:
                k, v = table[:, :, ids[:1] if shared else ids, :, :P]
                slots["prefix"] = Prefix(k, v, length=None if shared else lengths[ids])
        if self.lora is not None and not (shared and tasks[0] is None):
            chosen = ids[0] if shared else ids
            slots["hooks"] = [{place: LowRank(A[chosen], B[chosen], 1.0) for place, (A, B) in layer.items()} for layer in self.lora]
        return Rows(self.base, slots)

    def __call__(self, idx: Tensor, tasks: list[str | None]) -> Tensor:
        """idx (B, T) int64 -> logits (B, T, V); tasks: a name of the bank, or None, for every row."""
        if len(tasks) != idx.size(0):
            raise Error(f"{len(tasks)} tasks for {idx.size(0)} rows: every row needs one, or None")
        with torch.no_grad():
            return self.rows(tasks)(idx)


REFUSED = {
    "full": "every task is a base of its own",
    "adapter": "its networks are layers of the model, not vectors that a row can bring along",
    "llama-adapter": "its prefix has a softmax of its own, which rows with another prefix do not have",
}


def why_not(model: Adapted) -> str | None:
    """Why rows of one batch cannot have this task among others; None when they can."""
    names = [part.name for part in model.method.parts()]
    for name in names:
        if name in REFUSED:
            return f"{name} cannot be mixed in one batch: {REFUSED[name]}"
    if "prefix" in names and len(names) > len({"prefix", "lora"} & set(names)):
        return f"{model.method.name} cannot be mixed in one batch: its prompt was learnt behind its prefix, not in the place of one"
    return "it is merged into the base, where all rows would have it: unmerge it first" if model.merged else None


def vote(bank: TaskBank, idx: Tensor, tasks: list[str], max_new_tokens: int, stop_token: "int | list[int] | None" = None) -> Tensor:
    """Several prompts for one task, asked in one batch: the answer that most of them give (Lester et al. §6, prompt ensembling).

    idx (1, T) -> (1, <= T + max_new_tokens); of answers given equally often the one that came first in `tasks`.
    """
    if idx.size(0) != 1 or not tasks:
        raise Error(f"a vote is on one input by at least one task, not on {idx.size(0)} by {len(tasks)}")
    answers = generate(bank.rows(tasks), idx.expand(len(tasks), -1), max_new_tokens, stop_token=stop_token)
    (answer, _), *_ = Counter(map(tuple, answers.tolist())).most_common(1)
    return torch.tensor([answer], device=idx.device)
