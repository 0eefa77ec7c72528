"""The explorer's page computes the numbers of the ledger, in a real browser, and loads nothing."""

import json
import random
import re
from dataclasses import replace
from html import unescape

import pytest

from docs.tools import explorer, forms, open_shapes
from minipeft import METHODS, Error, accounting
from minipeft.accounting.shapes import PRESETS
from minipeft.bench import params
from minipeft.config import GPTConfig, RopeScaling, linears
from minipeft.formulas.terms import Cost, Hyperparameter, Shapes, minimum
from minipeft.methods import WHOLE
from minipeft.methods.bottleneck_adapter import BottleneckAdapter

PAGE = explorer.PAGE.read_text(encoding="utf-8")
N_SETTINGS = 200

browser = pytest.mark.skipif(
    explorer.chromium() is None, reason="needs chromium, a browser that runs without a window"
)


def script(name: str) -> str:
    return re.search(f'<script id="{name}">\n(.*?)</script>', PAGE, re.DOTALL)[1]


def some_shape(draw: random.Random) -> GPTConfig:
    """A published shape, or one of any family; sizes from small to larger than any model's."""
    if draw.random() < 0.15:
        return draw.choice(list(PRESETS.values()))
    heads, family = draw.randint(1, 64), draw.choice(list(open_shapes.ON_PAGE))
    head_size, by_layer = 2 * draw.randint(1, 128), open_shapes.ON_PAGE[family][1]
    sizes = {"n_embd": heads * head_size}
    if family in open_shapes.OWN_HEAD_SIZE:
        channels = draw.choice([heads * head_size, draw.randint(1, 3000), heads * draw.randint(1, 100)])
        sizes = {"n_embd": channels, "head_dim": head_size}
    layers = {"sliding_window": draw.randint(1, 8192), "sliding_window_pattern": draw.randint(2, 12),
              "rope_local_base_freq": draw.choice([10000.0, 1e6]), "no_rope_layer_interval": draw.randint(2, 12)}
    return GPTConfig(
        vocab_size=draw.randint(1, 300_000),
        block_size=draw.randint(1, 200_000),
        n_layer=draw.randint(1, 10),
        n_head=heads,
        n_kv_head=draw.choice([None, *(n for n in range(1, heads + 1) if heads % n == 0)]),
        n_inner=draw.choice([None, draw.randint(1, 50_000)]),
        rope_theta=draw.choice([10000.0, 1e6]),
        rope_scaling=draw.choice([None, RopeScaling(8.0, 1.0, 4.0, 16)]),
        layer_norm_epsilon=draw.choice([1e-5, 1e-6, 0.001]),
        tied=draw.random() < 0.5,
        **sizes,
        **open_shapes.choices_of(family),
        **{name: value for name, value in layers.items() if name in by_layer},
    )


def some_sizes(draw: random.Random, c: GPTConfig, method: str) -> dict:
    """Hyper-parameters by their declarations, some of them left to follow the shape."""

    def value(field: dict):
        if field["kind"] == "linears":
            names = list(forms.short_names(c).values())
            return draw.choice([None, draw.sample(names, draw.randint(1, len(names)))])
        if field["kind"] == "size":
            most = getattr(c, field["at_most"]) if field["at_most"] else 5000
            return draw.choice([draw.randint(1, most), None] if field["initial"] is None else [draw.randint(1, most)])
        return draw.choice([False, True] if field["kind"] == "tick" else field["options"])

    return {name: value(field) for name, field in forms.fields(METHODS[method]).items()}


def some_setting(draw: random.Random, method: str) -> dict:
    c = some_shape(draw)
    return {
        "c": c,
        "method": method,
        "h": some_sizes(draw, c, method),
        "B": draw.randint(1, 2048),
        "T": draw.choice([1, draw.randint(1, 8192)]),
        "tasks": draw.randint(1, 10**9),
        "processes": draw.choice([1, draw.randint(1, 1024)]),
        "checkpointing": draw.random() < 0.3,
    }


def expected(s: dict) -> dict[str, int | str]:
    """The values of accounting under the page's names, or the text of its refusal."""
    of = s["c"], s["method"]
    try:
        train = accounting.train_bytes(*of, s["B"], s["T"], s["checkpointing"], **s["h"])
    except Error as e:
        return {"refused": str(e)}
    flops = accounting.flops(*of, s["B"], s["T"], **s["h"])
    parts = {
        "": accounting.count(*of, **s["h"]),
        "train_": train,
        "flops_": flops,
        "inference_": accounting.inference(*of, s["B"], s["T"], **s["h"]),
    }
    return {
        "base_parameters": accounting.base_parameters(s["c"]),
        **{f"{part}{name}": value for part, values in parts.items() for name, value in values._asdict().items()},
        "memory": sum(train),
        "flops_step": sum(flops),
        "wire": sum(accounting.wire_bytes(*of, s["processes"], **s["h"])),
        "adapter_bytes": accounting.adapter_bytes(*of, **s["h"]),
        "storage": accounting.storage_bytes(*of, s["tasks"], **s["h"]),
    }


HARNESS = """
const big = (x) => Object.fromEntries(Object.entries(x).map(([k, v]) => [k, typeof v === "number" ? BigInt(v) : v]));
const answers = CASES.map(({ c, h, ...work }) => {
  const question = { ...big(work), c: big(c), h: big(h) };
  const whole = ledger({ ...question, method: WHOLE, h: {} });
  const { refused, values } = question.method === WHOLE ? whole : ledger(question, whole);
  return refused ? { refused: refused.text } : values;
});
document.body.textContent = JSON.stringify(answers, (_, x) => (typeof x === "bigint" ? String(x) : x));
"""


def answers_of(page: str, settings: list[dict], tmp_path) -> list[dict]:
    """The values that the scripts `page` compute for these settings."""
    cases = json.dumps([s | {"c": explorer.preset(s["c"])} for s in settings])
    code = f"{page}const CASES = {cases}, WHOLE = {WHOLE!r};{HARNESS}"
    (tmp_path / "cases.html").write_text(f"<meta charset=utf-8><body><script>{code}</script>", encoding="utf-8")
    dom = explorer.browse((tmp_path / "cases.html").as_uri(), "--dump-dom")
    return json.loads(unescape(re.search(r"<body>(\[.*\])", dom, re.DOTALL)[1]))


@browser
def test_any_setting_gives_the_ledgers_numbers(tmp_path):
    draw = random.Random(0)
    settings = [some_setting(draw, list(METHODS)[i % len(METHODS)]) for i in range(N_SETTINGS)]
    largest = 0
    for s, answer in zip(settings, answers_of(script("data") + script("ledger"), settings, tmp_path), strict=True):
        wanted = expected(s)
        assert {name: answer.get(name) for name in wanted} == {name: str(x) for name, x in wanted.items()}, s
        largest = max([largest, *(x for x in wanted.values() if isinstance(x, int))])
    assert largest > 2**53  # where JavaScript's own numbers go wrong


@browser
def test_the_scripts_hold_no_formula_of_their_own(tmp_path):
    """With nothing but zeros for the emitted formulas, every quantity is zero; and no script does sums with symbols."""
    draw = random.Random(1)
    formula = re.compile(r"^(\[\"(?!\d+\")[^\n]*), \(s\) => .*\],$", re.MULTILINE)  # but for plain numbers
    data, n = formula.subn(r"\1, (s) => 0n],", script("data"))
    assert n > 100
    settings = [some_setting(draw, method) | {"c": PRESETS["gpt2"], "h": {}} for method in METHODS]
    for answer in answers_of(data + script("ledger"), settings, tmp_path):
        assert {name: x for name, x in answer.items() if x != "0"}.keys() <= {"tensors"}  # one tensor is no formula
    linear = "|".join({name.partition(".")[2] for c in PRESETS.values() for name in linears(c)})
    named = "|".join([*METHODS, *(name for method in METHODS.values() for name in method.hyperparameters)])
    for name in ("ledger", "page"):
        code = re.sub(r"//.*|createElement\(\"template\"\)", "", script(name))  # the element has a field's name
        assert "·" not in code
        assert not re.findall(rf"\b(?:{linear})\b", code)
        assert not re.findall(rf"[\"'`](?:{named})[\"'`]|\.(?:{named})\b", code)
        assert not re.findall(r"(?:symbols|\bs|\bc|\bh)\.\w+\s*[-+*/]|[-+*/]\s*(?:symbols|s|c|h)\.\w", code)


@pytest.mark.slow
def test_the_page_is_what_the_command_writes():
    assert explorer.filled(PAGE) == PAGE, "run: python docs/tools/explorer.py"


def test_nothing_leaves_the_page():
    """The browser itself is told to load nothing, and the page names nothing that could be loaded."""
    assert "content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\"" in PAGE
    assert not re.findall(r"https?://|\bsrc=|url\(|@import|<link|fetch\(|XMLHttpRequest|import\(", PAGE)


def table(dom: str) -> dict[tuple[str, str], tuple[str, str]]:
    """What the page shows: {(row, method): (value, text)}."""
    cell = r'<td[^>]* data-row="(\w+)" data-method="([\w-]+)"[^>]*><data value="([\d.e-]+)">([^<]*)</data>'
    return {(row, method): (value, text) for row, method, value, text in re.findall(cell, dom)}


def check_table(shown: dict, c: GPTConfig, work: dict, sizes: dict) -> None:
    """Every exact number of the table is accounting's, and stands there as bench.py params writes it."""
    rows = {row for row, _ in shown} - {"share", "step"}
    answers = {
        method: expected({"c": c, "method": method, "h": sizes.get(method, {}), **work})
        for method in METHODS
    }
    assert rows == set(answers[WHOLE]) - {"base_parameters", "flops_step"}
    for method, answer in answers.items():
        if "refused" in answer:
            assert not any(other == method for _, other in shown)
            continue
        for row in rows:
            value, text = shown[row, method]
            assert int(value) == answer[row], (row, method)
            if "flops" in row:
                assert text == params.in_units(answer[row]).replace(" bytes", "").rstrip("B")
            else:
                assert text == (
                    f"{answer[row]:,}" if row in ("trained", "stored") else params.in_units(answer[row])
                )
        step = answer["flops_step"] / answers[WHOLE]["flops_step"]
        assert float(shown["step", method][0]) == pytest.approx(step, rel=1e-12)
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
for (const key of ["ArrowRight", "ArrowRight", "ArrowDown", "ArrowDown", "ArrowDown", "ArrowUp"]) press(key);
report({
  stops: stop.length,
  at: [document.activeElement.dataset.row, document.activeElement.dataset.method],
  unnamed: [...document.querySelectorAll("input, select")].filter((x) => !(x.labels?.length || x.ariaLabel)).length,
  formula: document.getElementById("formula").textContent,
  notes: document.querySelector(".notes").textContent,
  address: location.hash,
  figures: [...document.querySelectorAll("figure > svg")].map((x) => x.querySelectorAll("[data-row]").length),
  wide: document.documentElement.scrollWidth > document.documentElement.clientWidth,
  loaded: performance.getEntriesByType("resource").length,
});
"""


def seen(tmp_path, person: str, address: str = "", size: str = "500,800") -> tuple[dict, str]:
    """What `person`, a script, reports of the page, and the page behind it."""
    report = "const report = (seen) => (document.body.dataset.seen = JSON.stringify(seen));"
    (tmp_path / "page.html").write_text(f"{PAGE}<script>{{{report}{person}}}</script>", encoding="utf-8")
    url = (tmp_path / "page.html").as_uri() + address
    dom = explorer.browse(url, "--dump-dom", f"--window-size={size}", "--virtual-time-budget=2000")
    return json.loads(unescape(re.search(r'data-seen="([^"]*)"', dom)[1])), dom


@browser
def test_an_address_the_fields_and_the_keys(tmp_path):
    address = (
        "#preset=llama-7b&seq_len=100&prefix.prefix_projection=true&checkpointing=true&tasks=5"
        "&vocab_size=none&no=1&cell=no.thing"
    )
    found, dom = seen(tmp_path, PERSON, address)
    sizes = {
        "prefix": {"num_virtual_tokens": 20, "prefix_projection": True, "encoder_hidden_size": 800},
        "lora": {"target_modules": ["q_proj", "v_proj", "down_proj"]},
    }
    work = WORK | {"T": 100, "tasks": 5, "checkpointing": True}
    c = replace(PRESETS["llama-7b"], n_layer=30)
    check_table(table(dom), c, work, sizes)
    # one stop for Tab; from prompt, trained: right twice, three down, one up
    assert found["stops"] == 1 and found["at"] == ["share", "lora"]
    assert "100·stored / base" in found["formula"]
    refused = {m: x for m in METHODS if "refused" in (x := expected({"c": c, "method": m, "h": {}, **WORK}))}
    assert refused and all(f"{method}: {answer['refused']}." in found["notes"] for method, answer in refused.items())
    changed = (
        "preset=llama-7b n_layer=30 seq_len=100 tasks=5 checkpointing=true cell=share.lora"
        " prefix.num_virtual_tokens=20 prefix.prefix_projection=true"
        " prefix.encoder_hidden_size=800 lora.target_modules=q_proj%2Cv_proj%2Cdown_proj"
    )
    assert set(found["address"][1:].split("&")) == set(changed.split())
    n = len(METHODS) - len(refused)
    assert found["figures"][0] == n and found["figures"][2:] == [4 * n, 2 * n]
    assert not found["unnamed"] and not found["wide"] and not found["loaded"]


@pytest.mark.slow
@browser
def test_a_change_and_back_is_the_shape_it_was_and_a_text_too_long_is_said_once(tmp_path):
    """Digits typed on the way to a number, and a family without a field, lose nothing."""
    person = """
    const counts = () => [answers[WHOLE].values.base_parameters, answers.prefix.values.trained].map(String), found = {};
    found.before = counts();
    set("n_head", 6); set("n_head", 64); set("n_head", 32);
    set("family", "qwen3"); set("family", "gpt2"); set("family", "llama");
    found.after = counts();
    found.address = location.hash;
    set("seq_len", 200000);
    found.notes = document.querySelector(".notes").textContent;
    found.units = [999n, 1000n, 999949n, 999950n, 999950000n].map((n) => inUnits(n, "bytes"));
    report(found);
    """
    found, _ = seen(tmp_path, person, "#preset=llama-3.2-1b&lang=en")
    c = PRESETS["llama-3.2-1b"]
    expected_now = [str(accounting.base_parameters(c)), str(accounting.count(c, "prefix").trained)]
    assert found["before"] == found["after"] == expected_now
    assert found["address"] == "#preset=llama-3.2-1b"
    assert found["notes"].startswith("200,000 tokens do not fit the block size of 131,072")
    assert "prefix" not in found["notes"]
    assert found["units"] == ["999 bytes", "1.0 KB", "999.9 KB", "1.0 MB", "1.0 GB"]
    assert [params.in_units(n) for n in (999, 1000, 999949, 999950, 999950000)] == found["units"]


@pytest.mark.slow
@browser
def test_a_preset_link_selects_the_cell_it_speaks_of(tmp_path):
    person = """
    const links = [...document.querySelectorAll(".try a")], found = [];
    function next() {
      if (!links.length) return report(found);
      const link = links.shift();
      window.addEventListener("hashchange", () => setTimeout(() => {
        const cell = document.querySelector("td.chosen"), { left, right } = cell.getBoundingClientRect();
        found.push({ href: link.hash, cell: `${cell.dataset.row}.${cell.dataset.method}`, model: state.preset,
          address: location.hash, visible: left >= 0 && right <= innerWidth });
        next();
      }), { once: true });
      link.click();
    }
    next();
    """
    found, _ = seen(tmp_path, person)
    assert len(found) == 3
    for link in found:
        asked = dict(part.split("=") for part in link["href"][1:].split("&"))
        assert link["cell"] == asked["cell"] and link["model"] == asked["preset"] and link["visible"]
        assert f"cell={link['cell']}" in link["address"] or link == found[0]  # where the page begins


@pytest.mark.slow
@browser
def test_both_languages_have_every_text(tmp_path):
    person = r"""
    const emitted = [...Object.values(GLOSSARY), ...Object.values(METHODS).flatMap((m) => [
      ...Object.values(m.fields).map((field) => field.help), ...Object.values(m.terms).flat().map(([what]) => what)])];
    const parts = new Set(emitted.flatMap((text) => text.split(": ")));
    const all = () => document.body.innerText;
    const english = all();
    document.querySelector("#language").click();
    report({
      texts: TEXTS, asked: [...document.querySelectorAll("[data-text]")].map((x) => x.dataset.text),
      unused: Object.keys(CHINESE).filter((text) => !parts.has(text)),
      missing: [...parts].filter((text) => /[a-z]{2,} /.test(text) && !(text in CHINESE)),
      english, chinese: all(), lang: document.documentElement.lang, address: location.hash, title: document.title,
      rows: [...document.querySelectorAll("tbody th")].map((x) => x.textContent),
      labels: [...document.querySelectorAll("form label, legend, summary, option")].length,
    });
    """
    found, _ = seen(tmp_path, person)
    for key, text in found["texts"].items():
        places = [sorted(re.findall(r"\{\w+\}", text[lang])) for lang in ("en", "zh")]
        assert set(text) == {"en", "zh"} and all(text.values()) and places[0] == places[1], key
    assert set(found["asked"]) <= set(found["texts"]) and not found["unused"] and not found["missing"]
    chinese = re.compile("[\u4e00-\u9fff]")
    assert len(chinese.findall(found["english"])) == 2  # the name of the other language
    assert found["lang"] == "zh-CN" and chinese.search(found["title"]) and "lang=zh" in found["address"]
    assert all(map(chinese.search, found["rows"])), found["rows"]
    again, _ = seen(tmp_path, "report(document.documentElement.lang);", "#lang=zh&preset=nano")
    assert again == "zh-CN"


@pytest.mark.slow
@browser
def test_on_a_phone_the_table_comes_first_and_shows_that_it_scrolls(tmp_path):
    person = """
    const at = (x) => document.querySelector(x).getBoundingClientRect().top;
    const shown = (x) => document.querySelector(x).checkVisibility();
    const fade = () => getComputedStyle(document.querySelector(".frame"), "::after").opacity;
    const before = [fade(), shown(".swipe")];
    scroll.scrollLeft = scroll.scrollWidth;
    const places = { table: at("table"), form: at("form"), charts: at(".charts") };
    scroll.dispatchEvent(new Event("scroll")); // the browser's own comes with the next picture, if one is drawn
    report({ ...places, before, after: fade() });
    """
    phone, _ = seen(tmp_path, person, size="500,800")
    assert phone["table"] < phone["form"] < phone["charts"]
    assert phone["before"] == ["1", True] and phone["after"] == "0"
    desk, _ = seen(tmp_path, person, size="1900,1000")
    assert desk["form"] < desk["charts"] and desk["before"] == ["0", False]


def test_a_new_method_appears_in_the_data():
    """From its declarations alone: sizes, choices, terms, refusals."""

    class Mine(BottleneckAdapter):
        name = "mine"
        hyperparameters = {"width": Hyperparameter("its width", "m"), "twice": Hyperparameter("two of them")}
        learning_rate = learning_rate_wide = 0.1
        typical, peft_types, peft, mixing = ({},), (), "no", "no"

        def __init__(self, base, width: int | None = None, twice: bool = False):
            super().__init__(base)

        @staticmethod
        def defaults(c):
            return {"width": minimum(c.n_embd, 9)}

        @staticmethod
        def shapes(c, width, twice):
            if c.norm == "rms":
                raise Error("only LayerNorm")
            return Shapes({"a": (width, 2)} | ({"b": (width, c.n_embd)} if twice else {}), {"a": (width, 2)})

        @staticmethod
        def cost(c, rows, width, twice):
            return Cost()

        slots = BottleneckAdapter.slots

    pool = forms.Pool()
    width, twice = forms.fields(Mine).values()
    assert (width["kind"], width["initial"], twice["kind"], twice["initial"]) == ("size", None, "tick", False)
    assert pool.formulas[forms.defaults(pool, Mine)["width"][0][0]].text == "min(C, 9)"
    [[message, _]] = forms.refusals(pool, Mine)
    assert message == "only LayerNorm"
    (a, m2, always), (b, mC, twice) = forms.quantities(pool, "counts", Mine)["trained"]
    assert (a, pool.formulas[m2].text) == ("a", "2·m") and (b, pool.formulas[mC].text) == ("b", "C·m")
    assert pool.formulas[pool.trees[always]].text == "1"
    assert pool.trees[twice][0] == "h.twice" and set(pool.trees[twice][1]) == {"false", "true"}
