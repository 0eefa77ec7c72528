"""(IA)³ (Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than
In-Context Learning", 2205.05638 §3.3).

    k = l_k ⊙ W_k x      v = l_v ⊙ W_v x      mlp(x) = W_out (l_ff ⊙ act(x))          l learnt, W frozen

act(x): the MLP's inner activations. Every l starts at 1, so step 0 is exactly the base. merge()
scales rows of W_k and W_v, with their biases, and columns of W_out; a forward pass then costs the
base's.

trained = stored = L·(2·kv + M); rescaled="qv": L·(nh·hs + kv + M); where q, k and v are one
projection: L·(nh·hs + 2·kv + M).

Departs from the paper, whose T5 has a projection each: where q, k and v are one, as in GPT-2,
queries are rescaled too, as in PEFT. rescaled="qv": queries instead of keys, PEFT's default on
Qwen2.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from ..checks import Error, one_of, shown
from ..config import GPTConfig, linears, linears_by_role
from ..files.peft import peft_module, peft_name
from ..formulas.terms import Cost, Hook, Hyperparameter, Saved, Shapes
from ..model import GPT
from ..slots import Slots
from .base import Method, TensorHook, new_parameter

RESCALED = {"c_attn": "kv", "k_proj v_proj": "kv", "q_proj v_proj": "qv"}  # PEFT's targets in attention: rescaled


class Rescaling(TensorHook):
    """The hook l ⊙ y: l (1, 1, out), or one for each row, (B, 1, out)."""

    neutral = 1.0

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y * self.value.to(y.dtype)


def targets(c: GPTConfig, rescaled: str) -> dict[str, tuple[int, int]]:
    """PEFT's target modules, with the shape of l: (out, 1) scales outputs, (1, in) inputs."""
    into_qkv, _, _, mlp_out = linears_by_role(c)
    chosen = into_qkv if c.projections == "joined" else [f"attn.{letter}_proj" for letter in rescaled]
    return {name: (linears(c)[name][1], 1) for name in chosen} | {mlp_out: (1, c.inner)}


class IA3(Method):
    """adapt(base, "ia3", rescaled="kv" | "qv")."""

    name = "ia3"
    learning_rate = 0.1
    learning_rate_wide = 3e-3  # the paper's, on T0; not measured here
    hyperparameters = {"rescaled": Hyperparameter("keys and values, or queries and values as PEFT does on Qwen2")}
    typical = ({}, {"rescaled": "qv"})
    peft_types = ("IA3",)
    peft = mixing = None

    @staticmethod
    def shapes(c, rescaled):
        tensors = {f"{peft_module(c, '{i}', name)}.ia3_l": shape for name, shape in targets(c, rescaled).items()}
        return Shapes(tensors, tensors)

    @staticmethod
    def cost(c, rows, rescaled):
        *attention, _ = targets(c, rescaled)
        hooks = {name: Hook(saved=(Saved(f"{name}: output", rows * linears(c)[name][1]),)) for name in attention}
        return Cost(hooks=hooks | {"mlp.act": Hook(saved=(Saved("inner activations", rows * c.inner),))})

    def __init__(self, base: GPT, rescaled: Literal["kv", "qv"] = "kv"):
        super().__init__()
        one_of("rescaled", rescaled, ("kv", "qv"))
        self.rescaled, self.targets = rescaled, targets(base.config, rescaled)
        self.layers = nn.ModuleList(nn.ModuleList(
            Rescaling(new_parameter(base, torch.ones(1, 1, max(s)))) for s in self.targets.values()) for _ in base.h)
        self._scales = [(f"h.{i}.{name}", peft_module(base.config, i, name), shape, hook)
                        for i, hooks in enumerate(self.layers)
                        for (name, shape), hook in zip(self.targets.items(), hooks, strict=True)]

    def slots(self, base: GPT) -> Slots:
        places = [*list(self.targets)[:-1], "mlp.act"]  # the input of the MLP's output linear
        return Slots(hooks=[dict(zip(places, hooks, strict=True)) for hooks in self.layers])

    def tensors(self) -> dict[str, Tensor]:
        """Every l, under PEFT's name and in its shape."""
        return {f"{name}.ia3_l": hook.value.detach().view(shape) for _, name, shape, hook in self._scales}

    def weight_changes(self, base: GPT) -> dict[str, Tensor]:
        """{name of a weight or bias of the base: the change to add to it}."""
        changes = {}
        for (name, *_), scale in zip(self._scales, self.tensors().values(), strict=True):
            linear, change = base.get_submodule(name), scale - 1
            changes[f"{name}.weight"] = linear.weight * change
            if linear.bias is not None and ".attn." in name:
                changes[f"{name}.bias"] = linear.bias * change.flatten()
        return changes

    @classmethod
    def adapter_config(cls, c, rescaled):
        names = [peft_name(c, name) for name in targets(c, rescaled)]
        return {"peft_type": "IA3", "target_modules": names, "feedforward_modules": names[-1:],
                "fan_in_fan_out": c.projections == "joined"}

    @classmethod
    def from_config(cls, config: dict) -> dict:
        given = [config.get("target_modules"), config.get("feedforward_modules")]
        names, inner = ({str(x).rpartition(".")[2] for x in v} if isinstance(v, list) else set() for v in given)
        if (kind := " ".join(sorted(names - inner))) not in RESCALED:
            raise Error(f"IA3 with target_modules {shown(given[0])} and feedforward_modules {shown(given[1])} is not "
                        f"supported, only {' or '.join(RESCALED)} and, as feedforward, the MLP's output linear")
        return {"rescaled": RESCALED[kind]}
