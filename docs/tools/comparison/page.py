"""The page: its template filled in from the lines, as Markdown and as one HTML file."""

import base64
import re
from pathlib import Path

import jinja2  # torch itself requires it

from docs.tools.comparison import figures, trends
from docs.tools.comparison.facts import CELLS_OF, FITTED, Facts
from docs.tools.comparison.tables import TABLES, cost, digits_of
from docs.tools.drawing import picture
from minipeft import Error
from minipeft.bench.measure import card_line
from minipeft.bench.quality import forgetting, real, studies
from minipeft.bench.quality.again import AVX2, TOLERANCE
from minipeft.bench.quality.cell import DEV, HELD_OUT
from minipeft.bench.quality.costs import place
from minipeft.bench.quality.grid import BEYOND
from minipeft.bench.quality.lines import Lines, read
from minipeft.files.atomic import read_json, write_atomically, write_text
from minipeft.methods import WHOLE

SECTIONS = ("methods", "budget", "time", "scale", "length", "start", "projection", "data", *studies.REAL,
            "forgetting", "cost")

def write(path: Path, folder: Path) -> dict:
    """Write pages and figures; returns {"pages", "figures", "trends"}.

    Raises Error without lines, without a package that is needed, and if a sentence of the page no
    longer follows from the lines.
    """
    facts = facts_of(path)
    text = markdown(facts, path)
    pictures = {}
    for name in drawn(facts):
        figure = getattr(figures, name)(facts.lines, facts.costs)
        for kind in ("png", "svg"):
            pictures[name] = data = picture(figure, kind)  # the HTML page takes the last
            file = folder / "figures" / f"quality-{name}.{kind}"
            write_atomically(file, lambda to, data=data: to.write_bytes(data))
    write_text(folder / "comparison.html", html(text, pictures))
    write_text(folder / "comparison.md", text)
    return {"pages": [str(folder / f"comparison.{kind}") for kind in ("md", "html")],
            "figures": list(pictures), "trends": len(trends.shown(facts))}


def facts_of(path: Path) -> Facts:
    """The facts of a file of lines and its costs. Raises Error if it has no lines."""
    if not (lines := read(path)):
        raise Error(f"{path} has no lines: `python bench.py quality` writes them")
    costs = place(path)
    return Facts(lines, read_json(costs) if costs.exists() else None)


def drawn(facts: Facts) -> list[str]:
    """The figures of the page: one per section that has been run, and the sweeps of the first."""
    names = [name for name in SECTIONS if facts.is_there(name)]
    return names + ["sweeps"] * ("methods" in names)


def command(study: str) -> str:
    """The command that writes a section's lines."""
    name = f"{CELLS_OF[study]} cost" if study in CELLS_OF else study
    folders = " --smollm2 FOLDER --e2e FOLDER" * (study in studies.REAL)
    return f"python bench.py quality --study {name}{folders}"


def markdown(facts: Facts, path: Path) -> str:
    """The page as Markdown. Raises Error if one of its sentences does not follow from the lines."""
    lines = facts.lines
    seeds = {line["cell"]["seed"] for line in lines.values()} - {studies.SWEPT_WITH}
    hours = sum(line["seconds"] for line in lines.values()) / 3600

    def tables(study: str) -> str:
        if study == "cost":
            return cost(lines, facts.costs).markdown()
        return "\n\n".join(t.markdown() for t in TABLES.get(study, lambda lines: [])(lines))

    template = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True,
                                  lstrip_blocks=True)
    text = (Path(__file__).parent / "page.md.jinja").read_text(encoding="utf-8")
    page = template.from_string(text).render(
        f=facts, file=path.name, tables=tables, command=command, digits_of=digits_of, avx2=AVX2,
        tolerance=TOLERANCE, held_out=HELD_OUT, machines=machines(lines), runs=f"{len(lines):,}",
        hours=f"{hours:.1f}", seeds=len(seeds),
        rates=len(studies.ROWS[WHOLE][2]), beyond=BEYOND, matched=studies.MATCHED["match"],
        dev=DEV, scored=real.SCORED, sentences=real.SENTENCES_SCORED, paragraphs=forgetting.PARAGRAPHS, fitted=FITTED,
        examples=studies.REAL_EXAMPLES, steps=real.STEPS, batch=real.BATCH, rule=trends.RULE,
        behind=trends.prompt_behind_full(facts),
        trends=trends.table(facts))
    return facts.checked(re.sub(r"\n{3,}", "\n\n", page).strip() + "\n")


def machines(lines: Lines) -> str:
    """The machines that the lines were made on, with the commits."""
    commits: dict[str, dict[str, None]] = {}
    for line in lines.values():
        machine, _, commit = card_line(line["card"]).rpartition(", commit ")
        commits.setdefault(machine, {})[commit] = None
    return "; ".join(f"{machine}, commits {', '.join(its)}" for machine, its in commits.items())


STYLE = """
body { font: 17px/1.55 system-ui, sans-serif; max-width: 860px; margin: 2rem auto; padding: 0 1rem }
body { color: #1a1a1a; background: #fff } h1, h2 { line-height: 1.2 }
h2 { margin-top: 3rem; border-top: 1px solid #ddd; padding-top: 1.5rem }
img { width: 100%; height: auto; margin: 1rem 0 } nav li { list-style: none }
.scroll { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; vertical-align: top; text-align: left } td { white-space: nowrap }
thead th { border-bottom: 2px solid #999 } tbody tr { border-bottom: 1px solid #e5e5e5 }
h2:last-of-type ~ .scroll td { min-width: 7rem; white-space: normal }
code { background: #f2f2f2; padding: .1em .3em; border-radius: 3px; font-size: .9em }
code { overflow-wrap: anywhere }
"""


def html(text: str, pictures: dict[str, bytes]) -> str:
    """The page as one HTML file with its figures. Raises Error when markdown2 is missing."""
    try:
        import markdown2
    except ImportError:
        raise Error("the HTML page needs: pip install markdown2") from None
    text = text.replace(" [The same as one HTML page](comparison.html).", "")
    body = str(markdown2.markdown(text, extras=["tables", "header-ids"]))
    for name, data in pictures.items():
        picture = f"data:image/svg+xml;base64,{base64.b64encode(data).decode()}"
        body = body.replace(f'src="figures/quality-{name}.png"', f'src="{picture}"')
    body = body.replace("<table>", '<div class="scroll"><table>')
    body = body.replace("</table>", "</table></div>")
    entries = re.findall(r'<h2 id="([^"]+)">(.+?)</h2>', body)
    items = "".join(f'<li><a href="#{name}">{heading}</a></li>' for name, heading in entries)
    title = re.search("<h1[^>]*>(.+?)</h1>", body)[1]
    body = body.replace("<h2", f"<nav><ul>{items}</ul></nav>\n\n<h2", 1)
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{viewport}'
            f"<title>{title}</title><style>{STYLE}</style></head>\n<body>\n{body}</body></html>\n")
