"""The pages: every question with its sentence, figure and tables, what was reported elsewhere, and how to make it all again."""

import base64
import html
import re
from dataclasses import replace
from pathlib import Path

from ...config import Error
from ...data.tasks import KINDS, find_task
from ...files.atomic import write_atomically, write_text
from ..drawing import picture
from ..measure import card_line
from ..quality import studies
from ..quality.again import AVX2
from ..quality.cell import HELD_OUT, Cell
from ..quality.costs import read_costs
from ..quality.grid import Lines, read
from ..quality.summary import points
from .figures import FIGURES
from .findings import FINDINGS
from .tables import TABLES, Table, cost
from .trends import Trend, all_trends

TITLE = "Prompt against prefix against the rest, on equal terms"
QUESTIONS = {
    "methods": "Which method can do what, at equal trained parameters?",
    "budget": "Which is best at a given number of trained parameters?",
    "time": "Which is fastest to learn?",
    "scale": "Does the gap to full fine-tuning close as the base grows?",
    "length": "How many virtual tokens?",
    "start": "What should a prompt or prefix start from?",
    "projection": "What does the MLP do for a prefix?",
    "data": "Who wins, and who overfits, with little data?",
    "real": "Does it hold on a real model and real language?",
    "cost": "What does a score cost?",
}
READ_OFF = {"time": "methods", "cost": "methods"}  # drawn from the cells of another study …
MEASURED = ("time", "cost")  # … and from what its methods cost


def command(study: str) -> str:
    """What makes the lines of this study."""
    name = f"{READ_OFF[study]} cost" if study in MEASURED else study
    folders = " --smollm2 FOLDER --e2e FOLDER" if study == "real" else ""
    return f"python bench.py quality --study {name}{folders}"


def is_there(lines: Lines, study: str) -> bool:
    """Whether it is run: half of its points are enough, since studies share some of their cells."""
    wanted = {replace(cell, seed=0).key for cell, _ in studies.STUDIES[study]()}
    return 2 * len(points(lines, study)) >= len(wanted)


def run(path: Path, folder: Path) -> dict:
    """Draw and write everything; returns {"pages", "figures", "trends"}. Raises Error where there are no lines, or no matplotlib."""
    lines, costs = read(path), read_costs(path)
    if not lines:
        raise Error(f"{path} has no lines: `python bench.py quality` writes them")
    sections, trends = [section(lines, costs, study) for study in QUESTIONS], all_trends(lines)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    pictures = {}
    for name in drawn(sections):
        figure = FIGURES[name](lines, costs)
        for kind in ("png", "svg"):
            pictures[name] = picture(figure, kind)  # the page takes the last
            write_atomically(folder / "figures" / f"quality-{name}.{kind}", lambda to, data=pictures[name]: to.write_bytes(data))
    write_text(folder / "comparison.md", markdown(lines, path, sections, trends))
    write_text(folder / "comparison.html", page(lines, path, sections, trends, pictures))
    return {"pages": [str(folder / f"comparison.{kind}") for kind in ("md", "html")], "figures": list(pictures), "trends": len(trends)}


def drawn(sections: "list[Section]") -> list[str]:
    """The figures of these sections: one each that has something to say, and the sweeps beside the first."""
    names = [s.study for s in sections if s.sentence]
    return names + ["sweeps"] * ("methods" in names)


class Section:
    """A question and what there is to say of it."""

    def __init__(self, study: str, sentence: str, tables: list[Table]):
        self.study, self.sentence, self.tables = study, sentence, tables
        self.question, self.command = QUESTIONS[study], command(study)


def section(lines: Lines, costs: dict | None, study: str) -> Section:
    """A study's section; without a sentence where it is not run."""
    if not is_there(lines, READ_OFF.get(study, study)) or (study in MEASURED and not costs):
        return Section(study, "", [])
    tables = cost(lines, costs) if study == "cost" else TABLES[study](lines) if study in TABLES else []
    return Section(study, FINDINGS[study](lines, costs), tables)


def head(lines: Lines, path: Path) -> list[str]:
    """How it was made, in paragraphs of Markdown."""
    commits: dict[str, list[str]] = {}  # of every machine
    for line in lines.values():
        machine, _, commit = card_line(line["card"]).rpartition(", commit ")
        commits.setdefault(machine, []).append(commit)
    cards = [f"{machine}, commits {', '.join(dict.fromkeys(its))}" for machine, its in commits.items()]
    hours = sum(line["seconds"] for line in lines.values()) / 3600
    seeds = len({line["cell"]["seed"] for line in lines.values() if line["cell"]["scored_on"] == "held-out"})
    rates = len(studies.RATES["full"])
    kinds = {t: find_task(t).kind for t in studies.TASKS}
    tasks = "; ".join(
        f"**{kind}** ({KINDS[kind]}): {', '.join(f'`{t}`' for t in kinds if kinds[t] == kind)}" for kind in dict.fromkeys(kinds.values())
    )
    return [
        f"{len(lines):,} runs, one JSON line each, in `{path.name}`: {hours:.1f} hours of training, one CPU thread a run. Every line holds "
        "what it takes to run it again, and the machine it ran on; `python bench.py quality --lines FILE --again N` runs line N again "
        "and compares. With the same torch and vector instructions it agrees to the last bit; on a CPU that has more of them "
        f"`{AVX2}` in front of the command takes AVX2.",
        f"A study varies one thing. The rest is the same for all: the base `{studies.BASE}` unless a study says otherwise, "
        f"{Cell.steps} steps of AdamW on {Cell.batch_size} examples, new ones in every batch, warm-up and cosine, the same examples in "
        f"the same order for all methods of a seed. Every method has a sweep of {rates} learning rates on every base and task (at one "
        "size), by its loss on dev examples, with a seed of its own. Scores are of "
        f"{HELD_OUT} held-out examples: exact match, the share of answers without a wrong digit. (The real model's work is less, and its "
        f"score BLEU, as its table says.) Means are over {seeds} seeds, with the 95 % interval of Student's t; differences between methods "
        "are taken seed by seed. *Ahead* and *behind* are said where that interval leaves zero out.",
        f"The tasks: {tasks}.",
        "Machines and versions: " + "; ".join(cards) + ".",
    ]


def markdown(lines: Lines, path: Path, sections: list[Section], trends: list[Trend]) -> str:
    out = [
        f"# {TITLE}",
        "",
        "Written by `python bench.py report`, as are all figures in it. [The same as one HTML page](comparison.html).",
        "",
    ]
    for paragraph in head(lines, path):
        out += [paragraph, ""]
    for number, s in enumerate(sections, 1):
        out += [f"## {number}. {s.question}", ""]
        if not s.sentence:
            out += [f"Not run yet: `{s.command}`.", ""]
            continue
        out += [s.sentence, "", f"![{s.question}](figures/quality-{s.study}.png)", ""]
        for table in s.tables:
            out += [table.markdown(), ""]
        if s.study == "methods":
            out += ["![the sweep of learning rates](figures/quality-sweeps.png)", ""]
        out += [f"`{s.command}`", ""]
    out += ["## What was reported elsewhere", "", *trend_rows(trends), ""]
    return "\n".join(out)


def trend_rows(trends: list[Trend]) -> list[str]:
    rows = ["| reported by | what | measured here | verdict | likely reason |", "|---|---|---|---|---|"]
    return rows + [f"| {t.source} | {t.says} | {t.measured} | **{t.verdict}** | {t.why or '-'} |" for t in trends]


STYLE = """
body { font: 17px/1.55 system-ui, sans-serif; max-width: 860px; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; background: #fff }
h1, h2 { line-height: 1.2 } h2 { margin-top: 3rem; border-top: 1px solid #ddd; padding-top: 1.5rem }
figure { margin: 1.5rem 0 } figure img { width: 100%; height: auto }
.scroll { overflow-x: auto; margin: 1rem 0 } table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums }
caption { text-align: left; font-style: italic; padding: .3rem 0 } th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap }
th { white-space: normal }
th:first-child, td:first-child { text-align: left } thead th { border-bottom: 2px solid #999 } tbody tr { border-bottom: 1px solid #e5e5e5 }
.trends td, .trends th { white-space: normal; text-align: left; vertical-align: top; min-width: 7rem }
code { background: #f2f2f2; padding: .1em .3em; border-radius: 3px; font-size: .9em; overflow-wrap: anywhere }
nav li { margin: .2rem 0 }
"""


def page(lines: Lines, path: Path, sections: list[Section], trends: list[Trend], pictures: dict[str, bytes]) -> str:
    """The HTML page: its figures are in it, and it loads nothing."""

    def shown(name: str) -> str:
        data = base64.b64encode(pictures[name]).decode()
        return f'<figure><img alt="{html.escape(QUESTIONS.get(name, name))}" src="data:image/svg+xml;base64,{data}"></figure>'

    body = [f"<h1>{TITLE}</h1>", *(f"<p>{inline(p)}</p>" for p in head(lines, path)), "<nav><ol>"]
    body += [f'<li><a href="#{s.study}">{html.escape(s.question)}</a></li>' for s in sections]
    body += ['</ol><p><a href="#elsewhere">What was reported elsewhere</a></p></nav>']
    for number, s in enumerate(sections, 1):
        body.append(f'<h2 id="{s.study}">{number}. {html.escape(s.question)}</h2>')
        if not s.sentence:
            body.append(f"<p>Not run yet: <code>{s.command}</code>.</p>")
            continue
        body += [f"<p>{inline(s.sentence)}</p>", shown(s.study), *(f'<div class="scroll">{t.html()}</div>' for t in s.tables)]
        if s.study == "methods":
            body.append(shown("sweeps"))
        body.append(f"<p><code>{s.command}</code></p>")
    body.append('<h2 id="elsewhere">What was reported elsewhere</h2><div class="scroll"><table class="trends">')
    body.append(
        "<thead><tr><th>reported by</th><th>what</th><th>measured here</th><th>verdict</th><th>likely reason</th></tr></thead><tbody>"
    )
    for t in trends:
        cells = [inline(t.source), inline(t.says), inline(t.measured), f"<b>{t.verdict}</b>", inline(t.why or "-")]
        body.append("<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    body.append("</tbody></table></div>")
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    start = f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{viewport}<title>{TITLE}</title><style>{STYLE}</style></head>'
    return "\n".join([start, "<body>", *body, "</body></html>", ""])


def inline(text: str) -> str:
    """The little Markdown of our sentences as HTML: code, bold, emphasis, links."""
    text = html.escape(text, quote=False)
    for pattern, replacement in (
        (r"`([^`]+)`", r"<code>\1</code>"),
        (r"\*\*([^*]+)\*\*", r"<b>\1</b>"),
        (r"\*([^*]+)\*", r"<em>\1</em>"),
        (r"\[([^\]]+)\]\(([^)]+)\)", r'<a href="\2">\1</a>'),
    ):
        text = re.sub(pattern, replacement, text)
    return text
