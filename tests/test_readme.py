"""README and the pages of docs/: generated parts are fresh, links work, blocks run, README keeps within its limits."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch
from two_languages import assert_in_step

import train
from docs.tools import chinese, claims, cost_tables, refresh, tables
from docs.tools.comparison.trends import prompt_behind_full
from docs.tools.results import facts, read
from minipeft import GPT, METHODS, PRESETS, accounting, adapt
from minipeft.accounting.shapes import EMBEDDED
from minipeft.attention import BACKENDS
from minipeft.bench.quality import studies
from minipeft.data.tasks import NOVEL, SKILLS
from minipeft.files import tensors
from minipeft.training.scores import size_kb

ROOT = Path(__file__).parent.parent
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
README = ENGLISH.read_text(encoding="utf-8")
DOCS = ROOT / "docs"
TRANSLATED = [(ENGLISH, CHINESE)] + [
    (DOCS / page.name, page) for page in sorted((DOCS / "zh-CN").glob("*.md"))
]
PAGES = [
    *tables.pages(), ROOT / "CONTRIBUTING.md", DOCS / "results" / "README.md",
    *sorted((DOCS / "lessons").rglob("*.md"))]
NEEDS = {  # of the extras, by part
    "pages": ["scipy"],
    "figures": ["scipy"],
    "comparison": ["scipy", "matplotlib", "markdown2"],
}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize(
    "part", [part for part in refresh.PARTS if part not in ("lessons", "explorer", "comparison")]
)  # these have their own tests
def test_nothing_generated_is_stale(part):
    for library in NEEDS.get(part, ()):
        pytest.importorskip(library)
    assert [name(path) for path in refresh.stale(part)] == [], (f"run: python docs/tools/refresh.py {part}")


def test_refresh_lists_what_is_stale_and_writes_it(tmp_path, monkeypatch, capsys):
    file = tmp_path / "page.md"
    file.write_text("old", encoding="utf-8")
    monkeypatch.setattr(refresh, "PARTS", {"pages": lambda: {file: "new"}})
    monkeypatch.setattr(refresh, "ROOT", tmp_path)
    with pytest.raises(SystemExit) as end:
        refresh.main(["--check"])
    assert (
        end.value.code == 1 and capsys.readouterr().out == "stale: page.md\n"
        and file.read_text(encoding="utf-8") == "old")
    refresh.main([])
    assert (
        capsys.readouterr().out == "written: page.md\n"
        and file.read_text(encoding="utf-8") == "new")
    refresh.main(["--check"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("page", tables.pages(), ids=name)
def test_every_place_is_one_that_can_be_filled(page):
    text = page.read_text(encoding="utf-8")
    opened, closed = (
        re.findall(r"<!-- ([\w.-]+) -->", text), re.findall(r"<!-- /([\w.-]+) -->", text))
    assert opened == closed and set(opened) <= set(tables.BLOCKS)


@pytest.mark.parametrize(
    "page, kilobytes", [(ENGLISH, 16), (CHINESE, 18)], ids=["README.md", "README.zh-CN.md"]
)
def test_readme_is_short(page, kilobytes):
    text = page.read_text(encoding="utf-8")
    assert text.count("\n") <= 250 and len(text.encode()) <= kilobytes * 1024
    assert max(map(len, text.splitlines())) <= 120
    assert max(line.count("|") - 1 for line in text.splitlines() if line.startswith("|")) <= 8


TERMS = {  # where README explains its terms, by language
    ENGLISH: [
        ("base", "The *base* is"), ("new skill", "a *new skill* is"),
        ("exact match", "*Exact\nmatch* is"), ("slot", "two *slots*"), ("backend", "*backends*"),
        ("λ ", "Let λ be"), ("hook", "they are *hooks*"), ("ladder", "That chain is the *ladder*"),
        ("level", "each form is a\n*level*"), ("hidden prefix", "hidden prefix   P vectors"),
        ("virtual token", "are *virtual tokens*")],
    CHINESE: [
        ("基座", "基座模型（base"), ("精确匹配率", "*精确匹配率*（exact match）"), ("插槽", "两个*插槽*（slot）"),
        ("后端", "*后端*（backend）"), ("λ ", "设 λ 是"), ("钩子", "它们是*钩子*（hook）"),
        ("阶梯", "这条链叫*阶梯*（ladder）"), ("隐藏前缀", "隐藏前缀    每个块"),
        ("虚拟 token", "都叫*虚拟 token*（virtual token）")]}


@pytest.mark.parametrize(
    "page, term, explained", [(page, *pair) for page, pairs in TERMS.items() for pair in pairs],
    ids=lambda value: None if isinstance(value, str) else name(value))
def test_a_term_is_explained_where_it_is_first_used(page, term, explained):
    code, heading, target = r"```python.*?```", r"^#[^\n]*$", r"\([^)\s]+\)"
    text = page.read_text(encoding="utf-8")
    prose = re.sub(f"{code}|{heading}|{target}", "", text, flags=re.DOTALL | re.MULTILINE)
    paragraph = prose[: prose.index(explained)].rpartition("\n\n")[0]
    assert term not in paragraph, f"{term} is used before {explained!r}"


def targets(page: Path) -> list[str]:
    """The relative links and images of a page, without its fenced blocks."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    return [target for target in found if "://" not in target]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page):
    assert [t for t in targets(page) if not (page.parent / t.partition("#")[0]).exists()] == []


def test_every_page_is_reached_from_the_index_and_from_readme():
    pages = {page.resolve() for page in DOCS.glob("*.md")}
    for index in (DOCS / "README.md", ENGLISH):
        reached = {(index.parent / target).resolve() for target in targets(index)} | {index.resolve()}
        assert {page.name for page in pages - reached} == set(), index


@pytest.mark.parametrize("english, chinese", TRANSLATED, ids=lambda page: name(page))
def test_the_chinese_page_is_in_step(english, chinese):
    """Blocks of sentences are written by hand there, with the same numbers."""
    places = [re.findall(r"<!-- .* -->", page.read_text(encoding="utf-8")) for page in (english, chinese)]
    assert places[0] == places[1]
    assert_in_step(english, chinese)


@pytest.mark.parametrize("page", [page for _, page in TRANSLATED], ids=name)
def test_generated_parts_of_a_chinese_page_are_in_chinese(page):
    pytest.importorskip("scipy")
    places = {m[2] for m in tables.PLACE.finditer(page.read_text(encoding="utf-8"))}
    places.discard("hyperparameters")  # a new method's help texts may come before their Chinese
    english = {block: chinese.untranslated(tables.BLOCKS[block]()) for block in sorted(places)}
    missing = {block: texts for block, texts in english.items() if texts}
    assert not missing, "add the Chinese of these to docs/tools/chinese.txt"


def test_the_torch_that_is_named_is_the_one_that_is_required():
    wanted = re.search(
        r"^torch==(\S+)", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE
    )[1]
    assert f"pip install torch=={wanted} --index-url https://download.pytorch.org/whl/cpu" in README


@pytest.mark.parametrize("page", [ENGLISH, DOCS / "attention.md"], ids=name)
def test_every_backend_is_named_with_what_it_copies(page):
    row = r"^\| `(\w+)` \| (?:concatenated|not concatenated|the same|as in)"
    named = re.findall(row, page.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(named) == set(BACKENDS) - {"auto", "auto-any-length"}


def test_readme_says_what_the_claims_contradict_or_withdraw():
    pytest.importorskip("scipy")
    verdicts = [c.verdict for c in claims.claims()]
    for word in ("contradicted", "withdrawn"):
        wanted = any(v.startswith(word) for v in verdicts)
        assert wanted == bool(re.search(rf"^- \*\*{word.capitalize()}[^*]*: ", README, re.MULTILINE)), word


@pytest.mark.parametrize(
    "page", [ENGLISH, DOCS / "claims.md", DOCS / "comparison.md", DOCS / "results" / "comparison.md"], ids=name
)
def test_pages_agree_on_large_models(page):
    pytest.importorskip("scipy")
    text = " ".join(page.read_text(encoding="utf-8").split()).lower()
    assert prompt_behind_full(facts()) == "agrees"
    for words in ("135m parameters", "200 examples", "(not|no large model was) tried",
                  r"behind (full fine-tuning|it is|\w+: agrees)|its loss is higher|behind: agrees"):
        assert re.search(words, text), words


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_of_the_first_figure_is_readable(theme):
    """Contrast of at least 4.5 with the paper, as WCAG asks of text of this size."""
    svg = (DOCS / "figures" / f"hero-{theme}.svg").read_text(encoding="utf-8")
    paper = luminance(re.search('<rect width[^>]* fill="([^"]+)"', svg)[1])
    for colour in sorted(set(re.findall('<text[^>]* fill="([^"]+)"', svg))):
        light, dark = sorted([luminance(colour), paper], reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, colour


COUNTED = [  # table of README, shape, columns of the parameters and of the adapter's bytes
    ("summary", PRESETS["gpt2"], 2, None), ("costs", PRESETS["gpt2"], 2, 3), ("results", EMBEDDED["small"], 2, None)]


def cells(page: Path, place: str) -> list[list[str]]:
    """The rows of the table in a page's place, without its head."""
    text = next(m[3] for m in tables.PLACE.finditer(page.read_text(encoding="utf-8")) if m[2] == place)
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip(" *") for cell in row.split("|")[1:-1]] for row in rows]


def setting(place: str, method: str, size: str) -> tuple[str, dict]:
    """Method and hyper-parameters of a row: those of the study, or of its size, P 8, or the defaults."""
    if place == "results":
        row = next(row for row in studies.ROWS if tables.name(row) == method)
        return studies.method_of(row), studies.largest(row, studies.BUDGET)
    key = next(key for key in METHODS if tables.name(key) == method)
    letters = {spec.symbol: name for name, spec in METHODS[key].hyperparameters.items()}
    given = re.fullmatch(r"(\w) (\d+)", size)
    return key, {letters[given[1]]: int(given[2])} if given else {}


@pytest.mark.parametrize("page", [ENGLISH, CHINESE], ids=name)
@pytest.mark.parametrize("place, config, parameters, size", COUNTED, ids=[place for place, *_ in COUNTED])
def test_counted_columns_are_what_the_code_of_today_counts(page, place, config, parameters, size):
    for english, row in zip(cells(ENGLISH, place), cells(page, place), strict=True):
        method, h = setting(place, *english[:2])
        wanted = [f"{accounting.count(config, method, **h).trained:,}" if METHODS[method].trains() else "0"]
        if size is not None:
            wanted.append(cost_tables.file_size(accounting.adapter_bytes(config, method, **h)))
        assert [row[i] for i in (parameters, size) if i is not None] == wanted, (
            f"{name(page)}, {row[0]}: run: python docs/tools/refresh.py pages")


@pytest.mark.parametrize("page", [ENGLISH, CHINESE], ids=name)
def test_the_first_result_has_the_sizes_of_today(page, tmp_path, monkeypatch):
    """Those of a machine with requirements.txt alone: without safetensors."""
    monkeypatch.setattr(tensors, "have_safetensors", lambda: False)
    base = GPT.from_pretrained("nano")
    model = adapt(base, "prefix")
    model.save(tmp_path)
    pattern = r"^(runs/\S+): (\S+) KB, beside the base's (\S+) KB$"
    ((out, *printed),) = re.findall(pattern, page.read_text(encoding="utf-8"), re.MULTILINE)
    refresh_it = ("run, without safetensors: python train.py --method prefix --task reverse; take its scores.json as "
                  "docs/results/train-prefix-reverse.json; python docs/tools/refresh.py pages")
    assert model.trainable_summary() in page.read_text(encoding="utf-8"), refresh_it
    assert Path(out) == train.arguments([]).out, refresh_it
    of_base = 4 * accounting.base_parameters(base.config) / 1000
    measured_with = read("train-prefix-reverse")["card"]["torch"].partition("+")[0]
    if torch.__version__.partition("+")[0] == measured_with:  # a .bin of other versions has other margins
        assert printed == [f"{size_kb(tmp_path):,.1f}", f"{of_base:,.1f}"], refresh_it
    assert float(printed[0]) == pytest.approx(size_kb(tmp_path), rel=0.01), refresh_it


def test_the_default_run_reaches_what_it_should():
    """`python train.py`: a select task from at most 0.25 to at least 0.90 in at most 3 minutes."""
    result = json.loads((DOCS / "results" / "train-prefix-reverse.json").read_text())
    before, after = result["exact_match"]
    assert (
        result["command"] == "python train.py --method prefix --task reverse"
        and result["seconds"] < 180)
    assert before <= 0.25 and after >= 0.90


def test_the_examples_of_tasks_are_what_the_tasks_make():
    text = (DOCS / "tasks.md").read_text(encoding="utf-8")
    examples = re.findall(r"`([a-z+-]+)`(?: \([^)]*\))?: (\d{8}) → (\d{8})", text)
    assert [name for name, *_ in examples] == [
        "reverse", "reverse+increment", "parity", "differences"]
    for task, given, wanted in examples:
        apply = {**{n: skill.apply for n, skill in SKILLS.items()}, **NOVEL}
        for part in task.split("+"):
            given = apply[part](given)
        assert given == wanted, task


def test_the_tree_has_every_file():
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "minipeft/*.py", "docs/tools/*.py"], capture_output=True,
        text=True)
    if listed.returncode == 0:
        tree = (DOCS / "files.md").read_text(encoding="utf-8")
        files = {Path(p).name for p in listed.stdout.split() if (ROOT / p).exists()} - {"__init__.py"}
        assert {file for file in files if f" {file}" not in tree} == set()


def test_the_top_level_has_what_a_repository_needs_and_no_output_of_a_command():
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True)
    if listed.returncode == 0:
        top = {path.split("/")[0] for path in listed.stdout.split("\0") if path and (ROOT / path).exists()}
        assert top == {
            "minipeft", "train.py", "bench.py", "tests", "docs", "README.md", "README.zh-CN.md", "requirements.txt",
            "requirements-extra.txt", "pyproject.toml", "LICENSE", "CITATION.cff", "CONTRIBUTING.md", ".ci", ".github",
            ".gitignore"}


def test_every_result_file_has_the_command_that_made_it():
    results = DOCS / "results"
    named = re.findall(
        r"^\| `([\w+.-]+)\.json` \|", (results / "README.md").read_text(encoding="utf-8"),
        re.MULTILINE)
    patterns = [re.sub("[A-Z]{2,}", "[^.]+", name) for name in named]
    files = [path.stem for path in results.glob("*.json")]
    assert [f for f in files if not any(re.fullmatch(p, f) for p in patterns)] == []
    assert [p for p in patterns if not any(re.fullmatch(p, f) for f in files)] == []
