"""Combinations: several methods on one base are what applying each of them by hand gives."""

import shutil
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from conftest import moved, one_shape, tiny
from test_methods import COMBINED

from minipeft import METHODS, Error, adapt, load_adapter
from minipeft.config import linears
from minipeft.files.tensors import StoredTensors
from minipeft.formulas.terms import Cost, Hook, Hyperparameter, Saved, Shapes
from minipeft.methods.base import Method, new_parameter
from minipeft.slots import Slots


def test_lora_bottleneck_adapter_and_prefix_are_those_applied_by_hand(shape, tmp_path):
    base, idx = tiny(shape, torch.float64), torch.randint(97, (3, 11))
    h = dict(r=2, lora_alpha=6, bottleneck_size=3, num_virtual_tokens=4)
    model = moved(adapt(base, ["prefix", "adapter", "lora"], **h))
    parts = {part.name: part for part in model.method.parts()}
    assert list(parts) == ["prefix", "lora", "adapter"]

    def low_rank(pair):
        return lambda x, y: y + 3 * (x @ pair.A.T @ pair.B.T)  # lora_alpha / r

    def bottleneck(mlp):
        return lambda x, y: y + F.gelu(y @ mlp.down.T + mlp.b_down) @ mlp.up.T + mlp.b_up

    hooks = [{name: low_rank(pair) for name, pair in zip(parts["lora"].linears, pairs, strict=True)}
             | {place: bottleneck(layer[place]) for place in ("attn", "mlp")}
             for pairs, layer in zip(parts["lora"].layers, parts["adapter"].layers, strict=True)]
    rows = parts["prefix"].prompt_embeddings  # (P, L·2·n_kv·hs)
    prefix = rows.view(4, 3, 2, base.config.n_kv, base.config.head_size).permute(1, 2, 3, 0, 4)[:, :, None]
    by_hand = base(idx, prefix=prefix, hooks=hooks)
    torch.testing.assert_close(model(idx), by_hand, rtol=0, atol=1e-12)
    for name in parts:  # every part has a say
        rest = [other for other in parts if other != name]
        without = adapt(base, rest, **{key: h[key] for key in h if any(key in METHODS[m].arguments() for m in rest)})
        for part in without.method.parts():
            part.load_state_dict(parts[part.name].state_dict())
        assert (without(idx) - by_hand).abs().max() > 1e-3, name
        without.detach()
    model.save(tmp_path)
    torch.testing.assert_close(load_adapter(base, tmp_path)(idx), by_hand, rtol=0, atol=1e-12)


class Scaled(Method, registered=False):
    """y ← s·y behind the first linear of every block: a place that LoRA hooks, too."""

    name = "scaled"
    learning_rate = learning_rate_wide = 1e-2
    hyperparameters: dict[str, Hyperparameter] = {}
    typical = ({},)
    peft_types = ("SCALED",)
    peft = mixing = "only a test has it"

    @staticmethod
    def shapes(c):
        return Shapes({"scales": (c.n_layer,)}, {"scales": (c.n_layer,)})

    @staticmethod
    def cost(c, rows):
        place, (_, out) = next(iter(linears(c).items()))
        return Cost(hooks={place: Hook(saved=(Saved("output", rows * out),))})

    def __init__(self, base):
        super().__init__()
        self.scales = new_parameter(base, torch.full((base.config.n_layer,), 3.0))
        self.place = next(iter(linears(base.config)))

    def slots(self, base):
        return Slots(hooks=[{self.place: lambda x, y, s=s: s * y} for s in self.scales])


@pytest.fixture
def registered() -> Iterator[None]:
    """METHODS as it was, behind a test that adds to it."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


@pytest.mark.parametrize("first", ["lora", "scaled"])
def test_two_hooks_at_one_place_are_applied_in_the_order_of_methods(first, base, idx, registered, tmp_path):
    if first == "scaled":
        others = dict(METHODS)
        METHODS.clear()
        METHODS.update({"scaled": Scaled} | others)
    METHODS["scaled"] = Scaled
    place = next(iter(linears(base.config)))
    for names in (["lora", "scaled"], ["scaled", "lora"]):  # the order given does not matter
        model = moved(adapt(base, names, target_modules=[place]))
        assert [part.name for part in model.method.parts()][0] == first
        parts = {part.name: part for part in model.method.parts()}

        def hook(pair, scale):
            if first == "lora":
                return lambda x, y: scale * (y + x @ pair.A.T @ pair.B.T)
            return lambda x, y: scale * y + x @ pair.A.T @ pair.B.T

        hooks = [{place: hook(pairs[0], scale)}
                 for pairs, scale in zip(parts["lora"].layers, parts["scaled"].scales, strict=True)]
        torch.testing.assert_close(model(idx), base(idx, hooks=hooks), rtol=0, atol=1e-5)
        model.loss(idx, idx).backward()
        assert all(p.grad.abs().sum() > 0 for p in model.trainable_parameters())
        model.save(tmp_path / "+".join(names))
        torch.testing.assert_close(load_adapter(base, tmp_path / "+".join(names))(idx), model(idx), rtol=0, atol=0)
        model.detach()


@one_shape
def test_methods_combine(base, idx, tmp_path):
    names, h = COMBINED
    model = moved(adapt(base, names, **h))
    prefix, lora = model.method.parts()
    together = base(idx, prefix=prefix.slots(base).prefix, hooks=lora.slots(base).hooks)
    assert torch.equal(model(idx), together) and model.method.name == "prefix+lora"
    rates = {part.name: part.learning_rate for part in (lora, prefix)}
    assert [(len(g["params"]), g["lr"]) for g in model.parameter_groups()] == [
        (1, rates["prefix"]),
        (3 * 2 * len(lora.linears), rates["lora"]),
    ]
    model.save(tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == {"lora", "prefix", "combination.json"}
    for part in (prefix, lora):
        assert dict(StoredTensors(tmp_path / part.name, "adapter_model", {})).keys() == part.tensors().keys()
    again = load_adapter(base, tmp_path)
    torch.testing.assert_close(again(idx), together, rtol=0, atol=1e-5)
    assert again.method.name == model.method.name
    with pytest.raises(Error, match="already holds a combination: save an adapter in a folder of its own"):
        adapt(base, "prompt").save(tmp_path)
    with pytest.raises(Error, match="already holds an adapter: save a combination"):
        model.save(tmp_path / "lora")
    adapt(base, "lora", r=2).save(tmp_path / "lora")  # as if a second run had been stopped between its parts
    with pytest.raises(Error, match="its lora is not the one it was saved with"):
        load_adapter(base, tmp_path)
    shutil.rmtree(tmp_path / "lora")
    with pytest.raises(Error, match="lora.adapter_config.json is missing"):
        load_adapter(base, tmp_path)
    (tmp_path / "combination.json").write_text('{"parts": {"magic": ""}}')
    with pytest.raises(Error, match="must name the parts, of full"):
        load_adapter(base, tmp_path)
    adapt(base, ["lora", "prompt"]).save(tmp_path)  # the whole again, of other parts
    assert load_adapter(base, tmp_path).method.name == "prompt+lora"
    both = moved(adapt(base, ["adapter", "lora", "prompt"]))  # two kinds of hooks, and a prompt
    both.save(tmp_path / "three")
    torch.testing.assert_close(load_adapter(base, tmp_path / "three")(idx), both(idx), rtol=0, atol=1e-5)
