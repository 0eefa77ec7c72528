"""Parameters: of a base, trained by a method, stored by an adapter."""

import contextlib
import math
import typing
from typing import NamedTuple

from ..checks import Error, at_least_one, described, one_of
from ..config import GPTConfig
from ..files.huggingface import count_parameters
from ..formulas.terms import Cost, Shapes, Size, Term, total
from ..methods import METHODS, method_class
from ..methods.base import Method
from .shapes import T5Shape


class Count(NamedTuple):
    """Parameters of one task."""

    trained: int  # elements that receive a gradient
    stored: int  # elements of the saved file (a hard prompt: token ids)


def base_parameters(c: GPTConfig | T5Shape) -> int:
    """Parameters of a base.

        V·C              token embeddings; once more for a head that is not tied
        block_size·C     position embeddings, if learned
        L · block        a block's linears (config.linears), their biases if any, and its norms
        2·C or C         a norm, "layer" or "rms": ln_f, and two in a block (sandwich_norm: four;
                         qk_norm: two more, of hs)

    GPT-2: V·C + block_size·C + L·(12·C² + 13·C) + 2·C.
    T5 v1.1: 2·V·C + 2·buckets·nh + L·(12·C·nh·hs + 6·C·M + 5·C) + 2·C. Here a layer is one of the
    encoder and one of the decoder: three attentions of four C × nh·hs matrices, two MLPs of three
    C × M matrices, five norms.
    """
    if hasattr(c, "position_buckets"):  # T5
        C, V, M = c.n_embd, c.vocab_size, c.inner
        layer = 12 * C * c.n_head * c.head_size + 6 * C * M + 5 * C
        return 2 * V * C + 2 * c.position_buckets * c.n_head + c.n_layer * layer + 2 * C
    check_gpt(c)
    return count_parameters(c)


class Declared(NamedTuple):
    """Declarations of a method for one shape and one setting: the source of every closed form."""

    method: type[Method]
    sizes: dict  # the hyper-parameters that its cost depends on, defaults filled in
    shapes: Shapes

    def cost(self, c: GPTConfig, rows: Size) -> Cost:
        """The method's Cost for so many positions in the batch."""
        return self.method.cost(c, rows, **self.sizes)


def check_gpt(c) -> None:
    """Raise Error for what has no GPT's blocks, on numbers or symbols."""
    if isinstance(c, T5Shape):
        raise Error("of an encoder-decoder parameters alone are counted: this needs a GPT's blocks")
    if not hasattr(c, "n_kv"):
        raise Error(f"a shape must be a GPTConfig, such as base.config or PRESETS['gpt2'], not {described(c)}")


def declared(c: GPTConfig, name: str, hyperparameters: dict) -> Declared:
    """A method's declarations on a GPT. Raises Error as `count`, and for an encoder-decoder."""
    check_gpt(c)
    return declared_of_any(c, name, hyperparameters)


def declared_of_any(c: GPTConfig | T5Shape, name: str, hyperparameters: dict) -> Declared:
    """`declared`, for what counts parameters alone: of an encoder-decoder too."""
    if not isinstance(c, T5Shape):
        check_gpt(c)
    method = method_class(name)
    check_sizes(c, method, hyperparameters)
    sizes = method.with_defaults(c, hyperparameters)
    if isinstance(c, T5Shape) and not method.freezes_base:  # its tensors are counted, not listed
        every = {"base": (base_parameters(c),)}
        return Declared(method, sizes, Shapes(every, every))
    return Declared(method, sizes, method.shapes(c, **sizes))


def check_sizes(c: GPTConfig | T5Shape, method: type[Method], given: dict) -> None:
    """Raise Error for hyper-parameters that do not fit, or that the method's cost has not."""
    hints = typing.get_type_hints(method.__init__)
    for name, value in given.items():
        if name not in method.sizes():
            allowed = ", ".join(method.sizes()) or "the shape alone"
            raise Error(f"the cost of {method.name!r} depends on {allowed}, not on {name!r}")
        spec, choices = method.hyperparameters[name], typing.get_args(hints.get(name))
        if typing.get_origin(hints.get(name)) is typing.Literal:
            one_of(name, value, choices)
        if spec.symbol and value is not None:
            at_least_one(name, value)
        if spec.at_most and value is not None and value > (most := getattr(c, spec.at_most)):
            raise Error(f"{name} {value} is more than the base's {spec.at_most}, {most}")
    if isinstance(c, T5Shape) and method.name not in encoder_decoder():
        raise Error(f"{method.name!r} needs a GPT's blocks: an encoder-decoder can be counted with "
                    f"{', '.join(encoder_decoder())}")


def methods_that_fit(c: GPTConfig | T5Shape, names=METHODS) -> list[str]:
    """The methods, of these, that a base of this shape can have."""
    found = []
    for name in names:
        with contextlib.suppress(Error):
            declared_of_any(c, name, {})
            found.append(name)
    return found


def encoder_decoder() -> list[str]:
    """The methods whose count holds for a T5Shape too: those that put nothing into the blocks."""
    c = GPTConfig()
    costs = {name: method.cost(c, 1, **method.with_defaults(c, {})) for name, method in METHODS.items()}
    return [name for name, cost in costs.items() if cost.prefix is None and not cost.hooks]


def elements(c: GPTConfig | T5Shape, shapes: Shapes, tensors: dict[str, tuple]) -> Size:
    """Elements of these tensors; a name with {i} counts once a block."""
    return total(tensor_terms(c, shapes, tensors))


def tensor_terms(c: GPTConfig | T5Shape, shapes: Shapes, tensors: dict[str, tuple]) -> list[Term]:
    """Elements of each of these tensors."""
    return [Term(name, math.prod(shape), repeats(c, shapes, name)) for name, shape in tensors.items()]


def repeats(c: GPTConfig | T5Shape, shapes: Shapes, name: str) -> Size:
    """Number of tensors that this name of a shape stands for."""
    return c.n_layer - shapes.first if "{i}" in name else 1


def depends_on(method: str) -> list[str]:
    """The hyper-parameters that a method's count depends on."""
    return method_class(method).sizes()


def count(config: GPTConfig | T5Shape, method: str, **hyperparameters: object) -> Count:
    """Parameters trained and stored by a method; hyper-parameters default to the method's own.

    Raises Error for an unknown method or hyper-parameter, a size below 1, or a method that is not
    defined on an encoder-decoder.
    """
    shapes = declared_of_any(config, method, hyperparameters).shapes
    return Count(elements(config, shapes, shapes.trained), elements(config, shapes, shapes.stored))
