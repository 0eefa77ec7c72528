"""LLaMA-Adapter (Zhang et al. 2023, "LLaMA-Adapter: Efficient Fine-tuning of Language Models with Zero-init Attention", 2303.16199 §3).

    in each of the top n blocks:   o = softmax(q Kᵀ / sqrt(hs)) V + g · softmax(q Pkᵀ / sqrt(hs)) Pv

    Pk, Pv = the block's own key and value projections of H (K, C), learnt; g, one number a head, learnt, starts at 0

Prefix tuning's slot with a gate: what the prompts say has a softmax of its own, so that at g = 0 step 0 is exactly the base, where a
prefix of any values takes weight away from the text. The prompts stand beside the sequence and take no positions.

trained = stored = n·(K·C + nh)

Departs from the paper: a gate multiplies as it is (eq. 6), where the released code takes its tanh. By default n is the paper's share of
the layers, 30 of 32.
"""

import torch
from torch import nn

from ..accounting import top_layers
from ..config import Error
from ..model import GPT, Prefix
from .base import Method, at_least_one, new_parameter, noise


class LlamaAdapter(Method):
    """adapt(base, "llama-adapter", adapter_len=10, adapter_layers=None (the top 30 of 32 of them))."""

    name = "llama-adapter"
    learning_rate = 0.1
    peft_types = ("LLAMA_ADAPTER",)  # PEFT's ADAPTION_PROMPT has one gate a layer instead of one a head

    def __init__(self, base: GPT, adapter_len: int = 10, adapter_layers: int | None = None):
        super().__init__()
        L, C = base.config.n_layer, base.config.n_embd
        self.adapter_len = at_least_one("adapter_len", adapter_len)
        self.adapter_layers = n = top_layers(base.config) if adapter_layers is None else at_least_one("adapter_layers", adapter_layers)
        if n > L:
            raise Error(f"adapter_layers {n} is more than the base's {L} layers")
        self.adaption_prompt = new_parameter(base, noise(base, n * adapter_len, C).view(n, adapter_len, C))
        self.adaption_gate: nn.Parameter = new_parameter(base, torch.zeros(n, base.config.n_head))

    def slots(self, base: GPT) -> dict:
        top = list(base.h)[-self.adapter_layers :]
        prompts = self.adaption_prompt.to(base.wte.weight.dtype)
        pairs = [block.attn.qkv(x.unsqueeze(0))[1:] for block, x in zip(top, prompts, strict=True)]  # n × 2 × (1, nh, K, hs)
        k, v = (torch.stack(x) for x in zip(*pairs, strict=True))
        return {"prefix": Prefix(k, v, self.adaption_gate)}

    def peft_config(self, base: GPT) -> dict:
        return {"peft_type": self.peft_types[0], "adapter_len": self.adapter_len, "adapter_layers": self.adapter_layers}

    @classmethod
    def hyperparameters(cls, config: dict) -> dict:
        return {name: config.get(name) for name in ("adapter_len", "adapter_layers")}
