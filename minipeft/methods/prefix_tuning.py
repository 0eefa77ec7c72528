"""Prefix tuning (Li & Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation",
2101.00190 §4).

    in every block:   o = softmax(q [Pk ; K]ᵀ / sqrt(hs)) [Pv ; V]          Pk, Pv learnt, everything else frozen

in one of two spaces:

    space="kv"       Pk, Pv (P, n_kv, hs) are learnt themselves (Li & Liang)         stored = 2·L·P·n_kv·hs
    space="hidden"   H (P, C) per block is learnt, as if concatenated to its input   stored =   L·P·C
                     Pk, Pv = the block's own ln_1 and projections of H; the block's outputs at H are dropped
                     (beside LoRA in a combination too: the base's projections, without hooks)

either directly (trained = stored) or by the paper's two-layer MLP (§4.3), folded away when saved:

    row p = W₂ tanh(W₁ e_p + b₁) + b₂     e (P, C), W₁ (m, C), W₂ (W, m), W = 2·L·n_kv·hs or L·C
    trained = P·C + (C + 1)·m + (m + 1)·W          m = encoder_hidden_size

A prefix need not be P tokens. `positions` says how many it takes: 64 rows that stand for a text of
512 tokens take 512, and the input goes on behind them. `key_bias` learns a β for each key, added to
its scores:

    o = softmax([q Pkᵀ / sqrt(hs) + β ; q Kᵀ / sqrt(hs)]) [Pv ; V]           β (L, n_kv, P), + L·n_kv·P

so one row can weigh as exp β rows (attention matching, 2602.16284). At β → -inf with no positions,
the prefix is the base; noise starts at β = -8, near it, and a text at 0, where it is exact. PEFT
has neither.

Departs from the paper: the direct form is the default. "random" draws from N(0, σ²), σ the standard
deviation of the base's embeddings; "vocab" starts from tokens drawn from the vocabulary. Started
from a text (§7.4), step 0 answers as if the text stood before the input.
"""

import math
from typing import Literal

import torch
import torch.nn as nn
from torch import Tensor

from ..checks import Error, at_least_one, check_shape, one_of, shown
from ..files.peft import prefix_config
from ..formulas.terms import Cost, Hyperparameter, Matmul, PrefixCost, Saved, Shapes
from ..ladder import convert_up, prefix_from_hidden
from ..model import GPT
from ..slots import Prefix, Slots
from .base import LENGTH, Method, Start, initial_value, new_parameter, noise, virtual_tokens

START_BIAS = -8.0  # of rows that mean nothing yet: exp(-8) of a key's weight


class PrefixTuning(Method):
    """adapt(base, "prefix", num_virtual_tokens=P, space="kv", prefix_projection=False, init="random").

    space: "kv" or "hidden"; encoder_hidden_size: m, by default C; init: "random", "vocab", token
    ids (n,) int64 of a text, a prompt (1, P, C), a hidden prefix (L, 1, P, C) or a prefix, as a
    tensor or a Prefix with its bias and positions. Unless given, P is the length of `init`, or 8 if
    it has none.
    """

    name = "prefix"
    learning_rate = 0.1
    learning_rate_wide = 3e-2
    hyperparameters = {
        "num_virtual_tokens": Hyperparameter("virtual tokens (default: those of the start, or 8)", "P"),
        "space": Hyperparameter("train keys and values, or hidden vectors"),
        "prefix_projection": Hyperparameter("produce it by an MLP, at a tenth of the learning rate"),
        "encoder_hidden_size": Hyperparameter("width of that MLP (default: the base's)", "m"),
        "init": Hyperparameter("start from noise, or from tokens of the vocabulary"),
        "key_bias": Hyperparameter("also train a bias on each key"),
        "positions": Hyperparameter("positions that the prefix takes (default: one for each virtual token)")}
    typical = ({"num_virtual_tokens": 5}, {"num_virtual_tokens": 3, "space": "hidden"},
               {"num_virtual_tokens": 5, "prefix_projection": True},
               {"num_virtual_tokens": 2, "space": "hidden", "prefix_projection": True, "encoder_hidden_size": 11},
               {"num_virtual_tokens": 4, "key_bias": True})
    peft_types = ("PREFIX_TUNING", "HIDDEN_PREFIX_TUNING", "BIASED_PREFIX_TUNING")  # the first is PEFT's
    peft = mixing = None

    @staticmethod
    def shapes(c, num_virtual_tokens, space, prefix_projection, encoder_hidden_size, key_bias):
        if key_bias and space == "hidden":
            raise Error("key_bias goes with space='kv': hidden vectors are no keys yet")
        P, C, m = num_virtual_tokens, c.n_embd, encoder_hidden_size
        W = 2 * c.n_layer * c.kv if space == "kv" else c.n_layer * C
        rows = {"prompt_embeddings": (P, W)}
        mlp = {"embedding": (P, C), "transform.0.weight": (m, C), "transform.0.bias": (m,),
               "transform.2.weight": (W, m), "transform.2.bias": (W,)}
        bias = {"prompt_bias": (P, c.n_layer * c.n_kv)} if key_bias else {}
        return Shapes((mlp if prefix_projection else rows) | bias, rows | bias)

    @staticmethod
    def cost(c, rows, num_virtual_tokens, space, prefix_projection, encoder_hidden_size, key_bias):
        P, C, L, m, hidden = num_virtual_tokens, c.n_embd, c.n_layer, encoder_hidden_size, space == "hidden"
        mlp = (Matmul("mlp of the prefix, first", C, m, rows=P), Saved("mlp of the prefix: tanh", P * m, 4),
               Matmul("mlp of the prefix, second", m, L * C if hidden else 2 * L * c.kv, rows=P))
        if hidden:
            mlp += (Saved("mlp of the prefix: hidden vectors", P * L * C, 4),)
        return Cost(prefix=PrefixCost(P, L, source="states" if hidden else "parameters", bias=key_bias,
                                      made=prefix_projection),
                    folded=mlp if prefix_projection else ())

    @staticmethod
    def defaults(c):
        return {"num_virtual_tokens": LENGTH, "encoder_hidden_size": c.n_embd}

    def __init__(self, base: GPT, num_virtual_tokens: int | None = None, space: Literal["kv", "hidden"] = "kv",
                 prefix_projection: bool = False, encoder_hidden_size: int | None = None, init: Start = "random",
                 key_bias: bool = False, positions: int | None = None):
        super().__init__()
        one_of("space of a prefix", space, ("kv", "hidden"))
        for name, value in (("prefix_projection", prefix_projection), ("key_bias", key_bias)):
            if not isinstance(value, bool):
                raise Error(f"{name} must be False or True, not {shown(value)}")
        if encoder_hidden_size is not None and not prefix_projection:
            raise Error("encoder_hidden_size is the width of the MLP: it goes with prefix_projection")
        bias = START_BIAS if isinstance(init, str) else 0.0  # that keys start from
        if isinstance(init, Prefix):
            if init.gate is not None or init.length is not None:
                raise Error("a prefix starts from a Prefix without a gate or lengths by row")
            check_shape("init's keys", init.k, (base.config.n_layer, 1, base.config.n_kv, "P", base.config.head_size))
            check_shape("init's values", init.v, tuple(init.k.shape))
            if init.bias is not None:
                check_shape("init's bias", init.bias, tuple(init.k.shape[:4]))
            positions = init.taken if positions is None else positions
            key_bias, bias = key_bias or init.bias is not None, 0.0 if init.bias is None else init.bias
            init = torch.stack([init.k, init.v], dim=1)
        self.num_virtual_tokens = P = virtual_tokens(base, num_virtual_tokens, init)
        c = base.config
        self.key_bias, self.positions = key_bias, P if positions is None else positions
        if type(self.positions) is not int or not 0 <= self.positions < c.block_size:
            raise Error(f"positions of a prefix must be 0 … {c.block_size - 1} with a block size of {c.block_size}, "
                        f"not {shown(self.positions)}")
        if (key_bias or self.positions != P) and space == "hidden":
            raise Error("key_bias and positions go with space='kv': hidden vectors are no keys yet")
        self.space = space
        self.row_shape = (c.n_layer, 2, c.n_kv, c.head_size) if space == "kv" else (c.n_layer, c.n_embd)
        C, W = c.n_embd, math.prod(self.row_shape)
        if prefix_projection:
            if isinstance(init, Tensor) or init != "random":
                raise Error("a prefix with a projection starts random: no inputs of the MLP are known "
                            "that give the keys and values of a text")
            self.learning_rate, self.learning_rate_wide = 0.01, 3e-3  # chosen by study `projection`
            m = C if encoder_hidden_size is None else at_least_one("encoder_hidden_size", encoder_hidden_size)
            self.embedding = new_parameter(base, torch.randn(P, C))
            self.transform = nn.Sequential(nn.Linear(C, m), nn.Tanh(), nn.Linear(m, W)).to(self.embedding)
        else:
            self.transform = None
            self.prompt_embeddings = new_parameter(base, self._initial_rows(base, P, W, init))  # (P, W), PEFT's name
        if key_bias:
            bias = torch.as_tensor(bias).detach().expand(c.n_layer, 1, c.n_kv, P)
            self.prompt_bias = new_parameter(base, bias.permute(3, 0, 2, 1).reshape(P, -1))  # (P, L·n_kv)

    @torch.no_grad()
    def _initial_rows(self, base: GPT, P: int, W: int, init) -> Tensor:
        if (x := initial_value(base, P, init)) is None:
            return noise(base, P, W)
        x = convert_up(base, x, self.space)
        x = x[:, 0].transpose(0, 1) if self.space == "hidden" else x[:, :, 0].permute(3, 0, 1, 2, 4)
        return x.reshape(P, W)

    @property
    def positions_taken(self) -> int:
        return self.positions

    def rows(self) -> Tensor:
        """(P, W): a row per virtual token, PEFT's order (layer, k then v, head, channel)."""
        return self.prompt_embeddings if self.transform is None else self.transform(self.embedding)

    def ladder_value(self) -> "Tensor | Prefix":
        """The prefix, as the ladder has it: (L, 1, P, C) or (L, 2, 1, n_kv, P, hs); with a bias or
        positions of its own a Prefix."""
        P, rows = self.num_virtual_tokens, self.rows().view(-1, *self.row_shape)
        if self.space == "hidden":
            return rows.transpose(0, 1).unsqueeze(1)
        prefix = rows.permute(1, 2, 3, 0, 4).unsqueeze(2)
        if not self.key_bias and self.positions == P:
            return prefix
        bias = None
        if self.key_bias:
            L, _, n_kv, _ = self.row_shape
            bias = self.prompt_bias.view(P, L, 1, n_kv).permute(1, 2, 3, 0)  # (L, 1, n_kv, P)
        return Prefix.of(prefix)._replace(bias=bias, positions=self.positions)

    def slots(self, base: GPT) -> Slots:
        prefix = self.ladder_value()
        return Slots(prefix=prefix_from_hidden(base, prefix) if self.space == "hidden" else prefix)

    def tensors(self) -> dict[str, Tensor]:
        bias = {"prompt_bias": self.prompt_bias.detach()} if self.key_bias else {}
        return {"prompt_embeddings": self.rows().detach()} | bias  # the MLP is folded away

    adapter_config = staticmethod(prefix_config)

    def for_peft(self, base: GPT) -> Method:
        if isinstance(self.ladder_value(), Prefix):
            bias = "a bias on its keys" if self.key_bias else "no bias"
            raise Error(f"{self.num_virtual_tokens} rows that take {self.positions} positions, with {bias}: "
                        "PEFT's prefixes have no bias, and as many positions as rows")
        return self if self.space == "kv" else PrefixTuning(base, init=convert_up(base, self.ladder_value(), "kv"))

    @classmethod
    def from_config(cls, config: dict) -> dict:
        space = "hidden" if config["peft_type"] == cls.peft_types[1] else "kv"
        given = {"num_virtual_tokens": config.get("num_virtual_tokens"), "space": space, "init": "random"}
        if config["peft_type"] == cls.peft_types[2]:
            given |= {"key_bias": config.get("key_bias"), "positions": config.get("positions")}
        return given
