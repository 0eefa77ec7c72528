"""README and the pages of docs/: generated parts are fresh, links work, blocks run, README keeps within its limits."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from two_languages import assert_in_step

from docs.tools import chinese, claims, refresh, tables
from minipeft import GPT, adapt
from minipeft.attention import BACKENDS
from minipeft.data import NANO
from minipeft.data.tasks import NOVEL, SKILLS
from minipeft.training.flags import ALL_FLAGS, as_flag

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
    assert [name(path) for path in refresh.stale(part)] == [], (
        f"run: python docs/tools/refresh.py {part}"
    )


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
        ("level", "each form is a *level*"), ("hidden prefix", "hidden prefix   P vectors"),
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
        reached = {(index.parent / target).resolve() for target in targets(index)} | {
            index.resolve()
        }
        assert {page.name for page in pages - reached} == set(), index


@pytest.mark.parametrize("english, chinese", TRANSLATED, ids=lambda page: name(page))
def test_the_chinese_page_is_in_step(english, chinese):
    """Blocks of sentences are written by hand there, with the same numbers."""
    places = [
        re.findall(r"<!-- .* -->", page.read_text(encoding="utf-8")) for page in (english, chinese)
    ]
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


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page that a reader may paste: those outside generated places."""
    text = tables.PLACE.sub("", page.read_text(encoding="utf-8"))
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize(
    "page", ["README.md", "docs/api.md", "docs/attention.md", "docs/serving.md"]
)
def test_python_blocks_run_as_they_stand(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = GPT.from_pretrained(NANO)
    adapt(base, "prefix").save(
        "runs/nano-prefix-reverse"
    )  # that of `python train.py`, which docs/serving.md takes
    adapt(base, "lora").save("runs/nano-lora-parity")
    found = blocks(ROOT / page, "python")
    assert found
    for code in found:
        exec(compile(code, page, "exec"), {"__name__": "page"})
    assert "False" not in capsys.readouterr().out


@pytest.mark.parametrize("page", [page for page in PAGES if "zh-CN" not in name(page)], ids=name)
def test_commands_name_scripts_and_flags_that_exist(page):
    code = "".join(
        p.read_text(encoding="utf-8")
        for p in [*ROOT.glob("*.py"), *ROOT.glob("minipeft/**/*.py"), *DOCS.glob("tools/*.py")])
    declared = re.findall(r'"(\w+)": Hyperparameter\(', page.read_text(encoding="utf-8"))  # by a method on the page
    of_methods = {as_flag(flag) for flag in [*ALL_FLAGS, *declared]}
    for command in re.findall(
        r"^(?:.*&& )?(?:\w+=\S+ )*(?:python|torchrun) .*", "".join(blocks(page, "bash")),
        re.MULTILINE):
        command = re.sub(r" # .*", "", command).rpartition("&& ")[2]
        for script in re.findall(r"\S+\.py\b", command):
            assert (ROOT / script).exists(), command
        flags = command.partition("train.py")[2] if command.startswith("torchrun") else command
        for flag in re.findall(r"(?<=\s)--[a-z][\w-]+", flags):
            assert flag in of_methods or f'"{flag}"' in code, f"{flag} of {command}"


def test_the_torch_that_is_named_is_the_one_that_is_required():
    wanted = re.search(
        r"^torch==(\S+)", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE
    )[1]
    assert f"pip install torch=={wanted} --index-url https://download.pytorch.org/whl/cpu" in README


@pytest.mark.parametrize("page", [ENGLISH, DOCS / "attention.md"], ids=name)
def test_every_backend_is_named_with_what_it_copies(page):
    row = r"^\| `(\w+)` \| (?:concatenated|not concatenated|the same|as in)"
    named = re.findall(row, page.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(named) == set(BACKENDS) - {"auto"}


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
    text = " ".join(page.read_text(encoding="utf-8").split()).lower()
    for words in ("contradicted at 135m parameters", "200 and 500 examples", "(none|no large model) was tried"):
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
        files = {Path(p).name for p in listed.stdout.split() if (ROOT / p).exists()} - {
            "__init__.py"
        }
        assert {file for file in files if f" {file}" not in tree} == set()


def test_every_result_file_has_the_command_that_made_it():
    results = DOCS / "results"
    named = re.findall(
        r"^\| `([\w+-]+)\.json` \|", (results / "README.md").read_text(encoding="utf-8"),
        re.MULTILINE)
    patterns = [re.sub("[A-Z]{2,}", "[^.]+", name) for name in named]
    files = [path.stem for path in results.glob("*.json")]
    assert [f for f in files if not any(re.fullmatch(p, f) for p in patterns)] == []
    assert [p for p in patterns if not any(re.fullmatch(p, f) for f in files)] == []
