"""Hooks that no shipped method has: the ledger counts what they save and multiply, wherever they stand."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from conftest import attached, quick
from test_ledger import QUICK, SHAPES, counter

from minipeft import GPT, METHODS, Error, accounting
from minipeft.bench import params
from minipeft.formulas.declaration import DECLARED
from minipeft.formulas.terms import Cost, Hook, Hyperparameter, Matmul, Saved, Shapes, maximum, minimum, round_half_even
from minipeft.methods.base import Method, new_parameter
from minipeft.runtime.profiling import saved_bytes
from minipeft.slots import Slots

COMMON = {"learning_rate": 0.1, "learning_rate_wide": 0.1, "peft_types": ("TEST",), "peft": "none", "mixing": "none",
          "__module__": __name__}
PLACES = ("attn", "mlp", "mlp.act")


class Parallel(nn.Module):
    """y + up(gelu(down(x))): a bottleneck beside a module instead of behind it (He et al. 2022, 2110.04366)."""

    def __init__(self, base: GPT, m: int, out: int):
        super().__init__()
        self.down = new_parameter(base, torch.randn(m, base.config.n_embd))
        self.up = new_parameter(base, torch.randn(out, m))

    def forward(self, x, y):
        return y + F.linear(F.gelu(F.linear(x, self.down)), self.up)


class Gate(nn.Module):
    """g ⊙ y, one g for all positions and heads."""

    def __init__(self, base: GPT, width: int):
        super().__init__()
        self.g = new_parameter(base, torch.full((width,), 0.5))

    def forward(self, x, y):
        return self.g * y


def parallel(place: str) -> type[Method]:
    """A method with Parallel at one place."""
    def width(c):
        return c.inner if place == "mlp.act" else c.n_embd

    def shapes(c, m):
        tensors = {"layers.{i}.down": (m, c.n_embd), "layers.{i}.up": (width(c), m)}
        return Shapes(tensors, tensors)

    def cost(c, rows, m):
        matmuls = Matmul("down", c.n_embd, m, "x"), Matmul("up", m, width(c))
        return Cost(hooks={place: Hook(matmuls, (Saved("before and after gelu", 2 * rows * m),), saves_x=True)})

    def __init__(self, base: GPT, m: int = 3):
        Method.__init__(self)
        self.m = m
        self.layers = nn.ModuleList(Parallel(base, m, width(base.config)) for _ in base.h)

    def slots(self, base):
        return Slots(hooks=[{place: hook} for hook in self.layers])

    return type("ParallelAdapter", (Method,), COMMON | {
        "name": "parallel", "hyperparameters": {"m": Hyperparameter("width", "m")}, "typical": ({"m": 3},),
        "shapes": staticmethod(shapes), "cost": staticmethod(cost), "__init__": __init__, "slots": slots})


def gate(place: str) -> type[Method]:
    """A method with Gate at one place."""
    def width(c):
        return {"attn.heads": c.head_size, "mlp.act": c.inner}.get(place, c.n_embd)

    def shapes(c):
        return Shapes({"layers.{i}.g": (width(c),)}, {"layers.{i}.g": (width(c),)})

    def __init__(self, base: GPT):
        Method.__init__(self)
        self.layers = nn.ModuleList(Gate(base, width(base.config)) for _ in base.h)

    def slots(self, base):
        return Slots(hooks=[{place: hook} for hook in self.layers])

    return type("Gates", (Method,), COMMON | {
        "name": "gate", "hyperparameters": {}, "typical": ({},), "shapes": staticmethod(shapes), "__init__": __init__,
        "cost": staticmethod(lambda c, rows: Cost(hooks={place: Hook(saves_y=True)})), "slots": slots})


@pytest.mark.parametrize("shape", quick(SHAPES, *QUICK))
@pytest.mark.parametrize("method", [*map(parallel, PLACES), *map(gate, ("attn.heads", *PLACES))],
                         ids=[*(f"parallel-{x}" for x in PLACES), *(f"gate-{x}" for x in ("heads", *PLACES))])
def test_saved_tensors_and_matmuls_are_those_of_autograd(shape, method, monkeypatch):
    monkeypatch.setitem(METHODS, method.name, method)
    c, B, T = SHAPES[shape]
    torch.manual_seed(0)
    model = attached(GPT(c), method.name, {})
    idx, targets = torch.randint(c.vocab_size, (2, B, T)).unbind()
    held = [*model.parameters(), *model.buffers()]
    said = accounting.train_bytes(c, method.name, B, T)
    assert said.activations == saved_bytes(lambda: model.loss(idx.clone(), targets.clone()), held)
    with counter() as counted:
        loss = F.cross_entropy(model(idx).flatten(0, 1), targets.flatten())
        forward = counted.get_total_flops()
        loss.backward()
    assert accounting.flops(c, method.name, B, T) == (forward, counted.get_total_flops() - forward)


@pytest.mark.parametrize("size, wanted", [
    (lambda c, m: minimum(m, c.n_embd), 3), (lambda c, m: maximum(m, c.n_embd), 128),
    (lambda c, m: round_half_even(30 * c.n_layer, 32) + m, 7)])
def test_a_derivation_evaluates_what_takes_the_place_of_an_if(size, wanted, monkeypatch):
    """minimum, maximum and round_half_even of sizes, in a formula as on numbers."""
    def shapes(c, m):
        return Shapes({"x": (size(c, m),)}, {"x": (size(c, m),)})

    one = parallel("mlp")
    method = type("Sized", (one,), {name: vars(one)[name] for name in [*DECLARED, "__module__"]}
                  | {"name": "sized", "shapes": staticmethod(shapes)})
    monkeypatch.setitem(METHODS, "sized", method)
    s = params.ParamsSettings("nano", "sized", {"m": 3}, tasks=7, batch_size=2, seq_len=16)
    steps = {x["name"]: x for x in params.run(s)["steps"]}
    assert steps["trained"]["value"] == accounting.count(params.shape_of("nano"), "sized", m=3).trained == wanted
    assert steps["trained"]["formula"] != steps["trained"]["numbers"]


@pytest.mark.parametrize("changed, message", [
    ({"typical": {"m": 3}}, "typical must be a tuple of {hyper-parameter: value}, not {'m': 3}"),
    ({"typical": ({"n": 3},)}, "typical must be a tuple of {hyper-parameter: value}, not ({'n': 3},)"),
    ({"peft_types": "TEST"}, "peft_types must be a tuple of strings, not 'TEST'"),
    ({"mixing": True}, "mixing must be None or the reason, not True"),
    ({"shapes": lambda c, m: None}, "shapes must be a @staticmethod, since no method is built to read it"),
    ({"cost": staticmethod(lambda c, rows, m: Cost(hooks={"mlps": Hook()}))},
     "a hook must be at attn.c_attn, attn.heads"),
    ({"cost": staticmethod(lambda c, rows, m: Cost(hooks={"mlp": Hook((Matmul("z", 1, 2, "z"),))}))},
     "`of` of the Matmul 'z' must be 'x' or 'y' or 'own', not 'z'"),
    ({"cost": staticmethod(lambda c, rows, m: Cost(hooks={"attn.heads": Hook(saves_x=True)}))},
     "of the queries at attn.heads declare what is saved as a Saved, not saves_x")])
def test_a_declaration_that_cannot_be_is_refused_when_the_class_is_made(changed, message):
    known = {name: value for name, value in vars(parallel("mlp")).items() if name not in ("__dict__", "__weakref__")}
    with pytest.raises(Error) as e:
        type("ParallelAdapter", (Method,), known | changed)
    assert str(e.value).startswith("method class ParallelAdapter: ") and message in str(e.value)


def test_a_hyperparameter_that_is_not_kept_is_named_when_saving(tmp_path):
    method = parallel("mlp")
    c = SHAPES["gpt2"][0]
    base = GPT(c)
    one = method(base)
    del one.m
    with pytest.raises(Error, match="^method class ParallelAdapter must keep m as an attribute, to be saved$"):
        one.save(base, tmp_path)
