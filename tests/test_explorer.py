"""The explorer's page computes the numbers of the ledger, in a real browser, and loads nothing."""

import json
import random
import re
from dataclasses import replace
from html import unescape

import pytest

from docs.tools import explorer
from minipeft import METHODS, accounting
from minipeft.accounting.shapes import PRESETS
from minipeft.bench import params
from minipeft.config import CHOICES, GPTConfig, RopeScaling, linears

PAGE = explorer.PAGE.read_text(encoding="utf-8")
N_SETTINGS = 200

browser = pytest.mark.skipif(
    explorer.chromium() is None, reason="needs chromium, a browser that runs without a window"
)


def script(name: str) -> str:
    return re.search(f'<script id="{name}">\n(.*?)</script>', PAGE, re.DOTALL)[1]


def some_shape(draw: random.Random) -> GPTConfig:
    """A published shape, or any mixture of what a base may be made of; sizes from small to larger than any model's."""
    if draw.random() < 0.15:
        return draw.choice(list(PRESETS.values()))
    heads = draw.randint(1, 64)
    return GPTConfig(
        vocab_size=draw.randint(1, 300_000),
        block_size=draw.randint(1, 200_000),
        n_layer=draw.randint(1, 10),
        n_head=heads,
        n_embd=heads * 2 * draw.randint(1, 128),
        n_kv_head=draw.choice([None, *(n for n in range(1, heads + 1) if heads % n == 0)]),
        n_inner=draw.choice([None, draw.randint(1, 50_000)]),
        rope_theta=draw.choice([10000.0, 1e6]),
        rope_scaling=draw.choice([None, RopeScaling(8.0, 1.0, 4.0, 16)]),
        layer_norm_epsilon=draw.choice([1e-5, 1e-6, 0.001]),
        **{
            name: draw.choice(choices)
            for name, choices in (CHOICES | draw.choice([{}, llama_like(draw)])).items()
        },
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
        **{
            f"{part}{name}": value
            for part, values in parts.items()
            for name, value in values._asdict().items()
        },
        "wire": sum(accounting.wire_bytes(*of, s["processes"], **s["h"])),
        "adapter_bytes": accounting.adapter_bytes(*of, **s["h"]),
        "storage": accounting.storage_bytes(*of, s["tasks"], **s["h"]),
    }


HARNESS = """
const big = (x) => Object.fromEntries(Object.entries(x).map(([k, v]) => [k, typeof v === "number" ?
BigInt(v) : v]));
const answers = CASES.map(({ c, h, ...work }) => ledger({ ...big(work), c: big(c), h: big(h) }).values);
const layers = Array.from({ length: 100 }, (_, i) => topLayers({ n_layer: BigInt(i + 1) }));
document.body.textContent = JSON.stringify([answers, layers], (_, value) => (typeof value ===
"bigint" ? String(value) : value));
"""


@browser
def test_any_setting_gives_the_ledgers_numbers(tmp_path):
    draw = random.Random(0)
    settings = [
        some_setting(draw, method)
        for method, _ in zip(list(METHODS) * N_SETTINGS, range(N_SETTINGS), strict=False)
    ]
    cases = json.dumps([s | {"c": explorer.preset(s["c"])} for s in settings])
    code = f"{script('data')}{script('ledger')}const CASES = {cases};{HARNESS}"
    page = f"<meta charset=utf-8><body><script>{code}</script>"
    (tmp_path / "cases.html").write_text(page, encoding="utf-8")
    dom = explorer.browse((tmp_path / "cases.html").as_uri(), "--dump-dom")
    answers, layers = json.loads(unescape(re.search(r"<body>(\[.*\])", dom, re.DOTALL)[1]))
    assert list(map(int, layers)) == [
        accounting.top_layers(GPTConfig(n_layer=i + 1)) for i in range(100)
    ]  # halves are rounded alike
    for s, answer in zip(settings, answers, strict=True):
        wanted = expected(s)
        assert {name: int(value) for name, value in answer.items()} == wanted, s
    assert (
        max(max(map(int, answer.values())) for answer in answers) > 2**53
    )  # where JavaScript's own numbers go wrong


def test_the_page_is_what_the_command_writes():
    assert explorer.filled(PAGE) == PAGE, "run: python docs/tools/explorer.py"


def test_nothing_leaves_the_page():
    """The browser itself is told to load nothing, and the page names nothing that could be loaded."""
    assert (
        "content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' "
        "'unsafe-eval'\"" in PAGE
    )
    assert not re.findall(
        r"https?://|\bsrc=|url\(|@import|<link|fetch\(|XMLHttpRequest|import\(", PAGE
    )


def table(dom: str) -> dict[tuple[str, str], tuple[str, str]]:
    """What the page shows: {(row, method): (value, text)}."""
    cell = r'<td[^>]* data-row="(\w+)" data-method="([\w-]+)"[^>]*><data value="([\d.e-]+)">([^<]*)</data>'
    return {(row, method): (value, text) for row, method, value, text in re.findall(cell, dom)}


def check_table(shown: dict, c: GPTConfig, work: dict, sizes: dict) -> None:
    """Every exact number of the table is accounting's, and stands there as bench.py params writes it."""
    rows = {row for row, _ in shown} - {"share", "memory", "step"}
    answers = {
        method: expected({"c": c, "method": method, "h": sizes.get(method, {}), **work})
        for method in METHODS
    }
    assert rows == set(answers["full"]) - {"base_parameters"}
    for method, answer in answers.items():
        for row in rows:
            value, text = shown[row, method]
            assert int(value) == answer[row], (row, method)
            if text.endswith("FLOP"):
                assert text.replace("FLOP", "B").replace(" B", " bytes") == params.in_units(
                    answer[row]
                )
            else:
                assert text == (
                    f"{answer[row]:,}"
                    if row in ("trained", "stored")
                    else params.in_units(answer[row])
                )
        memory = sum(value for name, value in answer.items() if name.startswith("train_"))
        step, full = (a["flops_forward"] + a["flops_backward"] for a in (answer, answers["full"]))
        assert int(shown["memory", method][0]) == memory and shown["memory", method][
            1
        ] == params.in_units(memory)
        assert float(shown["step", method][0]) == pytest.approx(step / full, rel=1e-12)
        assert float(shown["share", method][0]) == pytest.approx(
            100 * answer["stored"] / answer["base_parameters"], rel=1e-12
        )


WORK = {
    "B": 8,
    "T": 128,
    "tasks": 1000,
    "processes": 2,
    "checkpointing": False,
}  # what the page begins with


@browser
def test_the_page_opens_with_the_ledgers_numbers():
    dom = explorer.browse(explorer.PAGE.as_uri(), "--dump-dom")
    check_table(table(dom), PRESETS["gpt2"], WORK, {})


PERSON = """
function type(key, value) {
  const field = document.getElementById(`of-${key}`);
  field.focus();
  field.value = value;
  field.dispatchEvent(new Event("input"));
  field.blur();
}
function press(key) {
  document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
}
type("prefix.num_virtual_tokens", 20);
type("prefix.encoder_hidden_size", 800);
type("adapter.bottleneck_size", -3); // refused: stays as it was
type("n_layer", 80);
type("n_layer", 30);
const box = document.querySelector('[role="group"] input[value="down_proj"]');
box.click();
const stop = document.querySelectorAll('table [tabindex="0"]');
stop[0].focus();
for (const key of ["ArrowRight", "ArrowDown", "ArrowDown", "ArrowDown", "ArrowUp"]) press(key);
document.body.dataset.seen = JSON.stringify({
  stops: stop.length,
  at: [document.activeElement.dataset.row, document.activeElement.dataset.method],
  unnamed: [...document.querySelectorAll("input, select")].filter((x) => !(x.labels?.length || x.ariaLabel)).length,
  formula: document.getElementById("formula").textContent,
  address: location.hash,
  figures: [...document.querySelectorAll("figure > svg")].map((x) =>
  x.querySelectorAll("[data-row]").length),
  wide: document.documentElement.scrollWidth > document.documentElement.clientWidth,
  loaded: performance.getEntriesByType("resource").length,
});
"""


@browser
def test_an_address_the_fields_and_the_keys(tmp_path):
    (tmp_path / "page.html").write_text(f"{PAGE}<script>{PERSON}</script>", encoding="utf-8")
    address = (
        "#preset=llama-7b&seq_len=100&prefix.prefix_projection=true&checkpointing=true&tasks=5"
        "&vocab_size=none&no=1"
    )
    dom = explorer.browse(
        (tmp_path / "page.html").as_uri() + address, "--dump-dom", "--window-size=500,800"
    )
    seen = json.loads(unescape(re.search(r'data-seen="([^"]*)"', dom)[1]))
    sizes = {
        "prefix": {"num_virtual_tokens": 20, "prefix_projection": True, "encoder_hidden_size": 800},
        "lora": {"target_modules": ["q_proj", "v_proj", "down_proj"]},
    }
    work = WORK | {"T": 100, "tasks": 5, "checkpointing": True}
    check_table(table(dom), replace(PRESETS["llama-7b"], n_layer=30), work, sizes)
    assert seen["stops"] == 1 and seen["at"] == [
        "share",
        "lora",
    ]  # one stop for Tab; from prefix, trained: right, three down, one up
    assert "100·stored / base" in seen["formula"]
    changed = (
        "preset=llama-7b n_layer=30 seq_len=100 tasks=5 checkpointing=true"
        " prefix.num_virtual_tokens=20 prefix.prefix_projection=true"
    )
    changed += " prefix.encoder_hidden_size=800 lora.target_modules=q_proj%2Cv_proj%2Cdown_proj"
    assert set(seen["address"][1:].split("&")) == set(changed.split())
    assert (
        seen["figures"] == [7, 5, 28, 14]
        and not seen["unnamed"]
        and not seen["wide"]
        and not seen["loaded"]
    )
