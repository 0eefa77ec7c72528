"""The explorer's page computes what the ledger says, in a real browser, and nothing leaves it."""

import importlib.util
import json
import random
import re
from html import unescape
from pathlib import Path

import pytest

from minipeft import METHODS, accounting
from minipeft.accounting import ledger
from minipeft.config import CHOICES, PRESETS, GPTConfig, RopeScaling, linears

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("explorer", ROOT / "docs" / "explorer.py")
explorer = importlib.util.module_from_spec(spec)
spec.loader.exec_module(explorer)
PAGE = explorer.PAGE.read_text(encoding="utf-8")
N_SETTINGS = 200

browser = pytest.mark.skipif(explorer.chromium() is None, reason="needs chromium, a browser that runs without a window")


def script(name: str) -> str:
    return re.search(f'<script id="{name}">\n(.*?)</script>', PAGE, re.DOTALL)[1]


def some_shape(draw: random.Random) -> GPTConfig:
    """A published shape, or any mixture of what a base may be made of; sizes from small to larger than any model's."""
    if draw.random() < 0.3:
        return draw.choice(list(PRESETS.values()))
    heads = draw.randint(1, 64)
    return GPTConfig(
        vocab_size=draw.randint(1, 300_000),
        block_size=draw.randint(1, 200_000),
        n_layer=draw.randint(1, 20),
        n_head=heads,
        n_embd=heads * 2 * draw.randint(1, 128),
        n_kv_head=draw.choice([None, *(n for n in range(1, heads + 1) if heads % n == 0)]),
        n_inner=draw.choice([None, draw.randint(1, 50_000)]),
        rope_theta=draw.choice([10000.0, 1e6]),
        rope_scaling=draw.choice([None, RopeScaling(8.0, 1.0, 4.0, 16)]),
        layer_norm_epsilon=draw.choice([1e-5, 1e-6, 0.001]),
        **{name: draw.choice(choices) for name, choices in (CHOICES | draw.choice([{}, llama_like(draw)])).items()},
    )


def llama_like(draw: random.Random) -> dict:
    """Choices of transformers' Llama or Qwen2, which mixtures seldom are."""
    kind = explorer.CHOSEN[draw.choice(["llama", "qwen2"])]
    return {name: [value] for name, value in kind.items()}


def some_sizes(draw: random.Random, c: GPTConfig, method: str) -> dict:
    """Hyper-parameters, some of them left to follow the shape."""
    places = list(linears(c))
    most = min(min(sides) for sides in linears(c).values())
    names = draw.sample(places, draw.randint(1, len(places)))
    of = {
        "num_virtual_tokens": draw.randint(1, 500),
        "space": draw.choice(["kv", "hidden"]),
        "prefix_projection": draw.random() < 0.5,
        "encoder_hidden_size": draw.choice([None, draw.randint(1, 5000)]),
        "r": draw.randint(1, min(most, 300)),
        "target_modules": draw.choice([None, names, [name.split(".")[1] for name in names]]),
        "bottleneck_size": draw.randint(1, 500),
        "placement": draw.choice(["houlsby", "pfeiffer"]),
        "adapter_len": draw.randint(1, 500),
        "adapter_layers": draw.choice([None, draw.randint(1, c.n_layer)]),
        "gate": draw.choice(["head", "layer"]),
    }
    return {name: of[name] for name in accounting.depends_on(method)}


def some_setting(draw: random.Random, method: str) -> dict:
    c = some_shape(draw)
    return {
        "c": c,
        "method": method,
        "h": some_sizes(draw, c, method),
        "B": draw.randint(1, 2048),
        "T": draw.randint(1, 8192),
        "tasks": draw.randint(1, 10**9),
        "processes": draw.randint(1, 1024),
        "checkpointing": draw.random() < 0.3,
    }


def expected(s: dict) -> dict[str, int]:
    """What accounting says, under the page's names."""
    of = s["c"], s["method"]
    train = accounting.train_bytes(*of, s["B"], s["T"], s["checkpointing"], **s["h"])
    parts = {
        "": accounting.count(*of, **s["h"]),
        "train_": train,
        "flops_": accounting.flops(*of, s["B"], s["T"], **s["h"]),
        "inference_": accounting.inference(*of, s["B"], s["T"], **s["h"]),
    }
    return {
        "base_parameters": accounting.base_parameters(s["c"]),
        **{f"{part}{name}": value for part, values in parts.items() for name, value in values._asdict().items()},
        "wire": sum(accounting.wire_bytes(*of, s["processes"], **s["h"])),
        "adapter_bytes": accounting.adapter_bytes(*of, **s["h"]),
        "storage": accounting.storage_bytes(*of, s["tasks"], **s["h"]),
    }


HARNESS = """
const big = (x) => Object.fromEntries(Object.entries(x).map(([k, v]) => [k, typeof v === "number" ? BigInt(v) : v]));
const answers = CASES.map(({ c, h, ...work }) => ledger({ ...big(work), c: big(c), h: big(h) }).values);
document.body.textContent = JSON.stringify(answers, (_, value) => (typeof value === "bigint" ? String(value) : value));
"""


@browser
def test_any_setting_gives_the_ledgers_numbers(tmp_path):
    draw = random.Random(0)
    settings = [some_setting(draw, method) for method, _ in zip(list(METHODS) * N_SETTINGS, range(N_SETTINGS), strict=False)]
    cases = json.dumps([s | {"c": explorer.preset(s["c"])} for s in settings])
    page = f"<meta charset=utf-8><body><script>{script('data')}{script('ledger')}const CASES = {cases};{HARNESS}</script>"
    (tmp_path / "cases.html").write_text(page, encoding="utf-8")
    dom = explorer.browse((tmp_path / "cases.html").as_uri(), "--dump-dom")
    answers = json.loads(unescape(re.search(r"<body>(\[.*\])", dom, re.DOTALL)[1]))
    assert len(answers) == N_SETTINGS
    for s, answer in zip(settings, answers, strict=True):
        wanted = expected(s)
        assert {name: int(value) for name, value in answer.items()} == wanted, s
    assert max(max(map(int, answer.values())) for answer in answers) > 2**53  # where JavaScript's own numbers go wrong
