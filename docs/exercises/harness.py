"""Run exercises: load an answer, compare what it returns, and name the mistake that it shows."""

import functools
import importlib.util
import inspect
import itertools
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from minipeft import GPT, GPTConfig
from minipeft.data import NANO

EXERCISES = Path(__file__).parent


class Mistake(AssertionError):
    """A wrong answer, with the message for the learner."""


def load(path: Path) -> ModuleType:
    """The module in this file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(right: object, message: str) -> None:
    """Raise Mistake with the message unless `right`."""
    __tracebackhide__ = True
    if not right:
        raise Mistake(message)


def expect(name: str, got, want: Tensor, mistakes: dict[str, Tensor] | None = None, atol: float = 1e-8) -> None:
    """Raise Mistake unless `got` is `want`, to atol.

    mistakes: {message: the value that this mistake gives}; the first that fits is the message. Without
    one it is the wrong type, the wrong shape, or the element that is furthest off.
    """
    __tracebackhide__ = True
    check(isinstance(got, Tensor), f"{name} must be a tensor, but it is {type(got).__name__}")
    if got.shape == want.shape and torch.allclose(got.to(want.dtype), want, rtol=1e-6, atol=atol):
        return
    for message, value in (mistakes or {}).items():
        if got.shape == value.shape and torch.allclose(got.to(value.dtype), value, rtol=1e-6, atol=atol):
            raise Mistake(f"{name}: {message}")
    for i, j in itertools.combinations(range(want.dim()), 2):
        exchanged = want.transpose(i, j)
        check(got.shape != exchanged.shape or not torch.allclose(got.to(want.dtype), exchanged, rtol=1e-6, atol=atol),
              f"{name} has the right elements with dimensions {i} and {j} exchanged: transpose them")
    check(got.shape == want.shape, f"{name} has shape {tuple(got.shape)} and should have {tuple(want.shape)}")
    check(bool(got.isfinite().all()) or not want.isfinite().all(), f"{name} has elements that are nan or infinite")
    difference = (got.to(want.dtype) - want).abs().double().nan_to_num()
    at = tuple(int(i) for i in torch.unravel_index(difference.argmax(), difference.shape))
    raise Mistake(f"{name} has the right shape, but element {at} is {got[at].item():.4g} "
                  f"and should be {want[at].item():.4g}")


def failures(tests: ModuleType, answer: ModuleType) -> dict[str, str]:
    """{test: message} of the tests that fail with this answer. `tests` holds functions test_…(answer)."""
    found = {}
    for name, test in inspect.getmembers(tests, inspect.isfunction):
        if name.startswith("test_"):
            try:
                test(answer)
            except Exception as e:  # an answer may fail in any way
                found[name] = f"{type(e).__name__}: {e}"
    return found


@functools.cache
def nano() -> GPT:
    """The shipped base nano (rotary positions), frozen, in float64."""
    return GPT.from_pretrained(NANO, torch.float64).requires_grad_(False)


@functools.cache
def small() -> GPT:
    """A GPT-2 of 3 layers and 32 channels with random weights and learned positions, frozen, in float64."""
    torch.manual_seed(0)
    base = GPT(GPTConfig(vocab_size=50, block_size=40, n_layer=3, n_head=4, n_embd=32)).double()
    with torch.no_grad():
        for p in base.parameters():
            p.normal_(std=0.3) if p.dim() == 2 else p.add_(0.1 * torch.randn_like(p))
    return base.requires_grad_(False)


def random(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal elements in float64, the same for the same seed."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
