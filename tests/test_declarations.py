"""The declarations of the methods: none can be forgotten, and the tensors and files are those declared."""

import json

import pytest
from conftest import TYPICAL, attached, in_shape, sizes_for
from test_ledger import EVERY, SHAPES

from minipeft import GPT, METHODS, Error, accounting, load_adapter
from minipeft.formulas.declaration import DECLARED
from minipeft.formulas.terms import Cost
from minipeft.methods import registry
from minipeft.methods.base import Method

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def copied(method: type[Method], without: str = "", **changed) -> type[Method]:
    """A class made anew from what the method's own class holds, without one thing or with others."""
    own = {name: value for name, value in vars(method).items() if name not in (without, "__dict__", "__weakref__")}
    return type(method.__name__, method.__bases__, own | changed)


FITS = ("full", "hard-prompt", "prompt", "prefix", "lora", "adapter", "llama-adapter", "ia3", "prefix-memory")


@pytest.mark.parametrize("shape", SHAPES)
def test_these_methods_fit_every_shape(shape):
    c, of = SHAPES[shape][0], [(name, h) for name, h in TYPICAL if name in FITS]
    assert {name for name, _ in of} == set(FITS)
    for name, h in of:
        sizes = {key: value for key, value in in_shape(c, h).items() if key in METHODS[name].sizes()}
        assert accounting.count(c, name, **sizes).stored > 0


@every_method
def test_a_class_without_one_of_its_declarations_cannot_be_made(method):
    assert set(DECLARED) <= set(vars(copied(method)))
    for name, meaning in DECLARED.items():
        with pytest.raises(Error) as e:
            copied(method, without=name)
        assert str(e.value) == f"method class {method.__name__} does not declare {name}: {meaning}"


@every_method
def test_a_class_without_a_help_text_cannot_be_made(method):
    for name in {*method.arguments(), *method.sizes()}:
        others = {key: value for key, value in method.hyperparameters.items() if key != name}
        with pytest.raises(Error) as e:
            copied(method, hyperparameters=others)
        assert str(e.value).endswith(f"{method.__name__} does not declare hyperparameters[{name!r}]: its help")


@every_method
def test_shapes_and_cost_take_the_same_sizes(method):
    more = staticmethod(lambda c, rows, *sizes, another: Cost())
    line = rf"^method class {method.__name__}: shapes takes \(.*\), but cost takes \(.*another\)$"
    with pytest.raises(Error, match=line):
        copied(method, cost=more)


@pytest.mark.parametrize("name, size", [("prompt", "num_virtual_tokens"), ("prefix", "num_virtual_tokens"),
                                        ("lora", "target_modules"), ("llama-adapter", "adapter_layers")])
def test_a_size_needs_a_default(name, size):
    line = rf"^method class {METHODS[name].__name__} does not declare defaults\(c\)\['{size}'\]: its value where none"
    with pytest.raises(Error, match=line):
        copied(METHODS[name], without="defaults")


def test_two_methods_cannot_share_a_name_or_a_peft_type():
    lora = METHODS["lora"]
    with pytest.raises(Error, match="^LoRA and LoRA both have the name 'lora'$"):
        registry([*METHODS.values(), copied(lora)])
    with pytest.raises(Error, match="^LoRA and LoRA both have the peft_type 'LORA'$"):
        registry([*METHODS.values(), copied(lora, name="another")])
    assert registry(list(METHODS.values())) == METHODS


@every_method
def test_typical_settings_are_sizes_of_the_method(method):
    assert method.typical and all(set(h) <= set(method.sizes()) for h in method.typical)


def named(c, shapes, tensors) -> dict[str, tuple]:
    """{name: shape} of declared tensors, a name with {i} once for each block."""
    return {name.replace("{i}", str(i)): tuple(shape) for name, shape in tensors.items()
            for i in (range(shapes.first, c.n_layer) if "{i}" in name else [0])}


def lengths(shapes: dict[str, tuple]) -> list[tuple]:
    """The shapes in any order, without the dimensions of 1 that broadcasting needs."""
    return sorted(tuple(n for n in shape if n > 1) for shape in shapes.values())


def shapes_of(tensors) -> dict[str, tuple]:
    return {name: tuple(t.shape) for name, t in tensors}


@pytest.mark.parametrize("shape, name, h", EVERY)
def test_tensors_and_files_are_those_declared(shape, name, h, tmp_path):
    """Trained ones by their shapes, as they may have other names in the model; those of the file by name."""
    c, method = SHAPES[shape][0], METHODS[name]
    h = sizes_for(c, name, h)
    model = attached(GPT(c), name, h)
    sizes = method.with_defaults(c, h)
    shapes = method.shapes(c, **sizes)
    assert lengths(shapes_of(model.named_trainable_parameters())) == lengths(named(c, shapes, shapes.trained))
    assert shapes_of(model.method.named_buffers()) == named(c, shapes, shapes.frozen)
    stored = model.method.tensors() if method.freezes_base else dict(model.base.named_parameters())
    assert shapes_of(stored.items()) == named(c, shapes, shapes.stored)
    assert {t.element_size() for t in stored.values()} == {shapes.each}

    model.save(tmp_path)
    if method.freezes_base:
        saved = json.loads((tmp_path / "adapter_config.json").read_text())
        initial = {key: p.default for key, p in method.arguments().items()} | sizes
        declared = method.adapter_config(c, **{key: initial[key] for key in method.config_fields()})
        assert saved.items() >= json.loads(json.dumps(declared)).items()
        assert saved.keys() - declared.keys() <= {"task_type", "inference_mode", "base_model_name_or_path", "minipeft"}
        again = load_adapter(model.base, tmp_path).method
        assert type(again) is method and again.config(model.base) == model.method.config(model.base)
