"""LLaMA-Adapter (Zhang et al. 2023, "LLaMA-Adapter: Efficient Fine-tuning of Language Models with
Zero-init Attention", 2303.16199 §3).

    in each of the top n blocks:   o = softmax(q Kᵀ / sqrt(hs)) V + g · softmax(q Pkᵀ / sqrt(hs)) Pv

    Pk, Pv = the block's own key and value projections of H (K, C), learnt; g, one per head, learnt, starts at 0
                                           (gate="layer": one for all heads, as in PEFT's ADAPTION_PROMPT)

Prefix tuning's slot with a gate: the prompts have a softmax of their own, so at g = 0 step 0 is
exactly the base. (A prefix, whatever its values, takes attention away from the text.) The prompts
stand beside the sequence and take no positions.

trained = stored = n·(K·C + nh)                  gate="layer": n·(K·C + 1)

Departs from the paper: the gate multiplies as it is (eq. 6); the released code takes its tanh. n is
by default the paper's share of layers, 30 of 32. Rotated queries meet unrotated keys, as in PEFT.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from ..checks import Error, at_least_one, one_of
from ..files.peft import opens_in_adaption_prompt, peft_module
from ..formulas.terms import Cost, Hyperparameter, PrefixCost, Shapes, round_half_even
from ..model import GPT
from ..slots import Prefix, Slots
from .base import Method, new_parameter, noise


class LlamaAdapter(Method):
    """adapt(base, "llama-adapter", adapter_len=10, adapter_layers=None (top 30 of 32), gate="head" | "layer")."""

    name = "llama-adapter"
    learning_rate = 0.1
    learning_rate_wide = 3e-2
    peft_types = ("LLAMA_ADAPTER", "ADAPTION_PROMPT")  # the second is PEFT's, with one gate per layer
    hyperparameters = {
        "adapter_len": Hyperparameter("prompt vectors of a layer", "K"),
        "adapter_layers": Hyperparameter("top layers that have them (default: 30 of 32)", "n", at_most="n_layer"),
        "gate": Hyperparameter("one gate a head, or one a layer as in PEFT")}
    typical = ({"adapter_len": 4}, {"adapter_len": 2, "adapter_layers": 1, "gate": "layer"})
    peft = ("PEFT's ADAPTION_PROMPT is LLaMA-Adapter with one gate a layer on transformers' Llama: "
            "tune with gate='layer' there")
    mixing = "its prefix has a softmax of its own, which rows with another prefix lack"

    @staticmethod
    def shapes(c, adapter_len, adapter_layers, gate):
        K, n, C = adapter_len, adapter_layers, c.n_embd
        trained = {"adaption_prompt": (n, K, C), "adaption_gate": (n, c.n_head if gate == "head" else 1)}
        if not opens_in_adaption_prompt(c, gate):
            return Shapes(trained, trained)
        name = peft_module(c, "{i}", "attn")
        stored = {f"{name}.adaption_prompt": (1, K, C), f"{name}.adaption_gate": (1,)}
        return Shapes(trained, stored, first=c.n_layer - n)

    @staticmethod
    def cost(c, rows, adapter_len, adapter_layers, gate):
        return Cost(prefix=PrefixCost(adapter_len, adapter_layers, own_softmax=True, source="vectors"))

    @staticmethod
    def defaults(c):
        return {"adapter_layers": round_half_even(30 * c.n_layer, 32)}

    def __init__(self, base: GPT, adapter_len: int = 10, adapter_layers: int | None = None,
                 gate: Literal["head", "layer"] = "head"):
        super().__init__()
        c = base.config
        one_of("gate", gate, ("head", "layer"))
        self.gate, self.adapter_len = gate, at_least_one("adapter_len", adapter_len)
        n = self.defaults(c)["adapter_layers"] if adapter_layers is None else adapter_layers
        at_least_one("adapter_layers", n)
        if n > c.n_layer:
            raise Error(f"adapter_layers {n} is more than the base's {c.n_layer} layers")
        self.adapter_layers, C = n, c.n_embd
        self.adaption_prompt = new_parameter(base, noise(base, n * adapter_len, C).view(n, adapter_len, C))
        self.adaption_gate: nn.Parameter = new_parameter(base, torch.zeros(n, c.n_head if gate == "head" else 1))
        self.peft_names = [peft_module(c, i, "attn") for i in range(c.n_layer - n, c.n_layer)]
        self.opens_in_peft = opens_in_adaption_prompt(c, gate)

    def slots(self, base: GPT) -> Slots:
        prompts = self.adaption_prompt.to(base.wte.weight.dtype)
        pairs = [block.attn.qkv(x.unsqueeze(0))[1:]  # n × 2 × (1, n_kv, K, hs)
                 for block, x in zip(base.h[-self.adapter_layers :], prompts, strict=True)]
        k, v = (torch.stack(x) for x in zip(*pairs, strict=True))
        return Slots(prefix=Prefix(k, v, self.adaption_gate.expand(-1, base.config.n_head)))

    def tensors(self) -> dict[str, Tensor]:
        if not self.opens_in_peft:
            return super().tensors()
        prompts, gates = self.adaption_prompt.detach(), self.adaption_gate.detach()
        named = {f"{name}.adaption_prompt": x[None] for name, x in zip(self.peft_names, prompts, strict=True)}
        return named | {f"{name}.adaption_gate": x for name, x in zip(self.peft_names, gates, strict=True)}

    @classmethod
    def adapter_config(cls, c, adapter_len, adapter_layers, gate):
        config = {"adapter_len": adapter_len, "adapter_layers": adapter_layers}
        if opens_in_adaption_prompt(c, gate):
            return {"peft_type": "ADAPTION_PROMPT", **config, "target_modules": "self_attn"}
        return {"peft_type": "LLAMA_ADAPTER", **config, "gate": gate}

    @classmethod
    def from_config(cls, config: dict) -> dict:
        gate = "layer" if config["peft_type"] == "ADAPTION_PROMPT" else config.get("gate", "head")
        return {name: config.get(name) for name in ("adapter_len", "adapter_layers")} | {"gate": gate}

    def for_peft(self, base: GPT) -> Method:
        return self if self.opens_in_peft else super().for_peft(base)
