import functools
import os
import re
from pathlib import Path

# torch reads this on import, here and in child processes. Tensors this small gain nothing from a
# second thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from minipeft import GPT, METHODS, Error, GPTConfig, accounting
from minipeft.attach import Adapted
from minipeft.config import GEMMA3, LLAMA, QWEN3, RopeScaling, linears
from minipeft.data.batches import TaskData
from minipeft.training import job
from tests.families import WIDE, base_of
from tests.folders import lines

# GPT-2; the shipped bases; Llama with grouped heads, scaled RoPE and an untied head; Qwen3, SmolLM3 and Gemma 3
SHAPES = {
    "learned": {},
    "rotary": {"position": "rotary"},
    "llama": {"n_kv_head": 2, "n_inner": 40, "rope_scaling": RopeScaling(8.0, 1.0, 4.0, 16), "tied": False, **LLAMA},
    "qwen3": {"n_kv_head": 2, "head_dim": 16, "n_inner": 40, **QWEN3},
    "smollm3": {"n_kv_head": 2, "n_inner": 40, "no_rope_layer_interval": 2, **LLAMA},
    "gemma3": {"n_kv_head": 1, "head_dim": 16, "n_inner": 40, "sliding_window": 5, "sliding_window_pattern": 2,
               "rope_local_base_freq": 100.0, **GEMMA3},
}

LLAMA_NAMES = {  # GPT-2's names of linears -> Llama's
    "c_attn": ["q_proj", "k_proj", "v_proj"],
    "c_proj": ["o_proj", "down_proj"],
    "mlp.c_fc": ["gate_proj", "up_proj"],
    "mlp.c_proj": ["mlp.down_proj"],
}


TYPICAL = [(name, h) for name, method in METHODS.items() for h in method.typical]  # settings of every method
TRAINED = [(name, h) for name, h in TYPICAL if METHODS[name].trains()]
FROZEN = [(name, h) for name, h in TRAINED if METHODS[name].freezes_base]


def in_shape(config: GPTConfig, h: dict) -> dict:
    """Hyper-parameters h, with GPT-2's names in target_modules replaced by those of this config."""
    if "target_modules" not in h:
        return h
    names = [name for gpt2s in h["target_modules"] for name in (gpt2s, *LLAMA_NAMES.get(gpt2s, []))]
    known = [name for name in names if any(p == name or p.endswith(f".{name}") for p in linears(config))]
    return h | {"target_modules": list(dict.fromkeys(known))}


def sizes_for(config: GPTConfig, name: str, h: dict) -> dict:
    """The hyper-parameters of a typical setting in the names of this shape.

    Skips the test if the method refuses the shape: with one Error, the same from the ledger and from
    the method itself. No method may refuse GPT-2's, which has every part that there is.
    """
    h = in_shape(config, h)
    sizes = {key: value for key, value in h.items() if key in METHODS[name].sizes()}
    try:
        accounting.count(config, name, **sizes)
    except Error as e:
        assert "\n" not in str(e) and (config.norm, config.bias, config.projections) != ("layer", "all", "joined")
        with pytest.raises(Error, match=f"^{re.escape(str(e))}$"):
            METHODS[name].example(GPT(config), **h)
        pytest.skip(str(e))
    return h


def attached(base: GPT, name: str, h: dict) -> Adapted:
    """A base with a method in a typical setting; skips the test if the method refuses the base."""
    return Adapted(base, METHODS[name].example(base, **sizes_for(base.config, name, h)))


def moved(model: Adapted, by: float = 0.1) -> Adapted:
    """The model with every trained parameter moved from where it started."""
    with torch.no_grad():
        for p in model.trainable_parameters():
            p.add_(by * torch.randn_like(p))
    return model


WITHOUT_CODE = "aot_eager_decomp_partition"  # builds both graphs, generates no code


def compiling_by(backend: str):
    """A stand-in for minipeft.runtime.compiling.compiled, by another backend of torch.compile."""
    return functools.cache(lambda function: torch.compile(function, fullgraph=True, dynamic=False, backend=backend))


def tiny(shape: str = "learned", dtype: torch.dtype = torch.float32, seed: int = 0) -> GPT:
    """A small base of one of SHAPES, with weights so large that every part changes the output."""
    torch.manual_seed(seed)
    base = GPT(GPTConfig(vocab_size=97, block_size=48, n_layer=3, n_head=4, n_embd=32, **SHAPES[shape]))
    with torch.no_grad():
        for p in base.parameters():
            p.normal_(std=0.3) if p.dim() == 2 else p.add_(0.1 * torch.randn_like(p))
    return base.to(dtype)


def read_behind(base: GPT, tokens: torch.Tensor, idx: torch.Tensor) -> torch.Tensor:
    """Logits of idx (B, T) behind a text (P,), which a window leaves visible, as it does virtual tokens."""
    P, read = len(tokens), torch.cat([tokens.expand(len(idx), -1), idx], dim=1)
    if base.config.sliding_window is None:
        return base(read)[:, P:]
    x, ropes = base.add_positions(base.embed(read))
    for block, rope in zip(base.h, ropes, strict=True):
        x = block(x, rope, virtual=P)
    return base.ln_f(x[:, P:]) @ base.head.T


def quick(values, *chosen) -> list:
    """Values, or tuples of values, for parametrize: the chosen run by default, others are marked slow."""

    def slow(value):
        return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow)

    return [value if value in chosen else slow(value) for value in values]


def in_turn(settings: list[tuple], shapes=tuple(SHAPES)) -> list:
    """(name, h, shape), for parametrize: every setting on one of the shapes in turn, slow on the others."""
    return [pytest.param(*setting, shape, marks=[pytest.mark.slow] if (i - j) % len(shapes) else [])
            for i, setting in enumerate(settings) for j, shape in enumerate(shapes)]


one_shape = pytest.mark.parametrize("shape", ["llama"])  # for what is the same on every shape


# without Qwen3's, every choice of which is one of Gemma 3's; SmolLM3's is Llama's but for its layers without rotation
@pytest.fixture(params=quick([name for name in SHAPES if name != "qwen3"], "learned", "rotary", "llama", "gemma3"))
def shape(request) -> str:
    return request.param


@pytest.fixture
def base(shape) -> GPT:
    return tiny(shape)


@pytest.fixture
def idx() -> torch.Tensor:
    return torch.randint(97, (3, 11), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def few_examples(monkeypatch):
    """Tasks with 48 held-out examples instead of 500, and a validation set of 45 instead of 200."""
    monkeypatch.setattr(TaskData.__init__, "__defaults__", (48,))
    monkeypatch.setattr(job, "VALIDATION", 45)


@pytest.fixture
def pairs(tmp_path):
    """A file of 45 examples, nine of them different."""
    places, foods = ("Zizzi", "Aromi", "Fitzbillies"), ("Thai", "French", "Indian")
    rows = [{"input": f"name[{n}], food[{f}]", "target": f"{n} serves {f} food."} for n in places for f in foods]
    return lines(tmp_path / "pairs.jsonl", *rows * 5)


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """{family: folder of a base} of every family that PEFT tunes."""
    root = tmp_path_factory.mktemp("families")
    for family, shape in WIDE.items():
        base_of(shape).save_pretrained(root / family)
    return {family: root / family for family in WIDE}


@pytest.fixture
def read() -> torch.Tensor:
    """A text for a base of a family."""
    return torch.randint(97, (2, 9), generator=torch.Generator().manual_seed(2))
