"""docs/live-attention.html computes nano's attention as the package does, in a real browser, and loads nothing."""

import json
import re
from html import unescape

import pytest
import torch

from docs.tools import explorer, live_attention
from minipeft import GPT, Prefix, adapt, generate, prefix_from_prompt, prompt_from_tokens
from minipeft.attention import causal_mask
from minipeft.data import NANO

PAGE = live_attention.PAGE.read_text(encoding="utf-8")
DATA = live_attention.constants(PAGE)
browser = pytest.mark.skipif(
    explorer.chromium() is None, reason="needs chromium, a browser that runs without a window")
TEXTS = ["58213764 -> 46731285", "x", "reverse: 90 -> "]
VIRTUAL = ["none", "words:reverse: ", "zeros", "prompt", "prefix"]


@pytest.fixture(scope="module")
def nano() -> GPT:
    return GPT.from_pretrained(NANO)


def prefix_of(base: GPT, choice: str) -> torch.Tensor | None:
    """The virtual tokens of the page, by the package: (L, 2, 1, nh, P, hs)."""
    c = base.config
    if choice == "none":
        return None
    if choice == "zeros":
        return torch.zeros(c.n_layer, 2, 1, c.n_head, 8, c.head_size)
    if choice.startswith("words:"):
        return prefix_from_prompt(base, prompt_from_tokens(base, torch.tensor(list(choice[6:].encode()))))
    rows = live_attention.unpacked(DATA["ADAPTERS"][choice])
    if choice == "prompt":
        return prefix_from_prompt(base, rows[None])
    model = adapt(base, "prefix", num_virtual_tokens=len(rows))
    with torch.no_grad():
        model.method.prompt_embeddings.copy_(rows)
    prefix = model.method.ladder_value().detach()
    model.detach()
    return prefix


@torch.no_grad()
def expected(base: GPT, text: str, choice: str) -> tuple[torch.Tensor, str]:
    """λ (L, nh, T) from log-sum-exps, and the text that generate() writes."""
    idx, prefix = torch.tensor([list(text.encode())]), prefix_of(base, choice)
    if prefix is None:
        prefix = torch.zeros(4, 2, 1, 4, 0, 32)
    x, (rope, *_) = base.add_positions(base.wte(idx), first=prefix.size(4))
    found, T = [], idx.size(1)
    for block, own in zip(base.h, Prefix.of(prefix).layers(4), strict=True):
        q, k, _ = block.attn.qkv(block.ln_1(x), rope)
        scores = (q @ k.mT / 32**0.5).masked_fill(~causal_mask((0, T), (0, T)), -torch.inf)
        on_prefix = q @ own.k.mT / 32**0.5
        found.append((on_prefix.logsumexp(-1) - scores.logsumexp(-1)).sigmoid()[0])
        x = block(x, rope, prefix=own)
    model = base
    if prefix.size(4):
        model = adapt(base, "prefix", init=prefix)
    new = generate(model, idx, 12, stop_token=256)[0, T:].tolist()
    if prefix.size(4):
        model.detach()
    return torch.stack(found), bytes(x for x in new if x < 256).decode("utf-8", errors="replace")


def seen(tmp_path, person: str, address: str = "", size: str = "500,800") -> tuple:
    """The report of `person`, a script in the page, and the page behind it."""
    report = "const report = (seen) => (document.body.dataset.seen = JSON.stringify(seen));"
    (tmp_path / "page.html").write_text(f"{PAGE}<script>{{{report}{person}}}</script>", encoding="utf-8")
    url = (tmp_path / "page.html").as_uri() + address
    dom = explorer.browse(url, "--dump-dom", f"--window-size={size}", "--virtual-time-budget=4000")
    return json.loads(unescape(re.search(r'data-seen="([^"]*)"', dom)[1])), dom


def test_the_page_holds_nanos_weights_and_is_small(nano):
    assert len(PAGE.encode()) < 4 * 2**20
    stored = dict(nano.named_parameters())
    assert set(DATA["WEIGHTS"]) == set(stored)
    for name, p in stored.items():
        assert DATA["WEIGHTS"][name] == live_attention.packed(p), f"{name}: run docs/tools/live_attention.py"
        x = live_attention.unpacked(DATA["WEIGHTS"][name])
        rows = p.detach().reshape(len(p) if p.dim() > 1 else 1, -1)
        step = rows.abs().amax(dim=1, keepdim=True) / 32767
        assert bool(((x.view_as(rows) - rows).abs() <= 0.51 * step).all())


def test_the_page_loads_nothing():
    assert "default-src 'none'" in PAGE and not re.search(r"https?://|<link|<img|fetch\(|import ", PAGE)


def test_the_trained_prompt_and_prefix_do_their_task(nano):
    for choice in ("prompt", "prefix"):
        assert expected(nano, "58213764 -> ", choice)[1] == "46731285"


@browser
def test_lambda_and_completion_are_the_packages(nano, tmp_path):
    person = f"""
    report({json.dumps(TEXTS)}.map((text) => {json.dumps(VIRTUAL)}.map((choice) => {{
      const prefix = prefixOf(choice), tokens = encode(text), {{ weights }} = run(tokens, prefix);
      return [masses(weights, prefix ? prefix[0].P : 0), completion(tokens, prefix)];
    }})));
    """
    found, _ = seen(tmp_path, person)
    for text, of_text in zip(TEXTS, found, strict=True):
        for choice, (lam, completion) in zip(VIRTUAL, of_text, strict=True):
            want, written = expected(nano, text, choice)
            largest = float((torch.tensor(lam, dtype=want.dtype) - want).abs().max())
            assert largest < 1e-3, f"{text!r} with {choice}: λ differs by {largest}"
            assert completion == written, (text, choice)


@browser
def test_keys_languages_and_a_phone(tmp_path):
    person = """
    const stops = () => document.querySelectorAll("#mass td[tabindex='0'], #head td[tabindex='0']").length;
    const press = (id, key) =>
      document.getElementById(id).dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
    const english = document.body.innerText, before = stops();
    press("mass", "ArrowRight"); press("mass", "ArrowDown"); press("mass", "ArrowDown");
    const after = ["massDetail", "headTitle"].map((id) => document.getElementById(id).textContent);
    document.getElementById("language").click();
    const chinese = document.body.innerText;
    report({ english, chinese, before, stops: stops(), after, lang: document.documentElement.lang,
      title: document.title, texts: Object.values(TEXTS).map((x) => Object.keys(x).sort()),
      wide: document.documentElement.scrollWidth > innerWidth,
      loaded: performance.getEntriesByType("resource").length });
    """
    found, _ = seen(tmp_path, person, "#virtual=prefix")
    chinese = re.compile("[\u4e00-\u9fff]")
    assert found["texts"][0] == found["texts"][1] and found["lang"] == "zh-CN"
    assert len(chinese.findall(found["english"])) == 2  # the name of the other language
    assert chinese.search(found["title"]) and found["before"] == found["stops"] == 2
    # from layer 1, head 0, token 12: right once, down twice
    detail, title = found["after"]
    assert detail.startswith("layer 1, head 2, at 6 (13): λ = 0.") and title.endswith("layer 1, head 2")
    assert not found["wide"] and not found["loaded"]


@browser
def test_without_a_text_nothing_is_drawn(tmp_path):
    person = """
    const text = document.getElementById("text"), cells = () => document.querySelectorAll("td").length;
    const found = [cells()];
    for (const typed of ["", "12 -> "]) {
      text.value = typed;
      text.dispatchEvent(new Event("input"));
      found.push(cells(), document.getElementById("continuation").textContent);
    }
    report(found);
    """
    before, none, said, again, _ = seen(tmp_path, person, "#language=en")[0]
    assert before and again and not none and said == "(type a text, or choose an example)"


@browser
@pytest.mark.parametrize("address, want", [
    ("#layer=2&head=1&virtual=prefix&text=x&at=0", {"layer": 2, "head": 1, "virtual": "prefix", "text": "x", "at": 0}),
    ("#layer=9&head=-1&virtual=words&language=fr&at=no&key=7", {"layer": 1, "head": 0, "virtual": "words:reverse: "}),
])
def test_an_address_sets_what_makes_sense(address, want, tmp_path):
    found, _ = seen(tmp_path, "report({ state, rows: document.querySelectorAll('#head td').length });", address)
    assert want.items() <= found["state"].items() and found["state"]["language"] == "en" and found["rows"]
