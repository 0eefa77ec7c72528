"""Comparison page: tables, figures and findings from the lines of `python bench.py quality`.

    python bench.py report                                  runs/quality.jsonl -> runs/comparison/
    python bench.py report --lines docs/results/quality.jsonl --folder docs/results

Writes comparison.md, comparison.html (a single file that loads nothing), figures/quality-STUDY.png
and .svg. The text, docs/tools/comparison/page.md.jinja, is written by hand. Its figures come from
the lines, and the command stops when a sentence or a verdict no longer follows from them. A study
without lines is named with the command that runs it; one that was run in part has tables and a
figure, but no findings. Needs matplotlib, scipy and markdown2.
"""

from pathlib import Path

from docs.tools.comparison import page
from docs.tools.comparison.summary import points, student_quantile
from docs.tools.comparison.tables import TABLES, forgetting
from minipeft.bench.flags import parse
from minipeft.bench.quality.lines import Lines
from minipeft.runtime.console import Parser, local_path


def run(argv: list[str]) -> tuple[dict, str, str | None]:
    """`bench.py report`; returns the result, its text, and the path of --out."""
    p = Parser(__doc__)
    p.add_argument("--lines", metavar="FILE.jsonl", type=local_path, default="runs/quality.jsonl",
                   help="the file that `bench.py quality` wrote")
    p.add_argument("--folder", metavar="FOLDER", type=local_path, default="runs/comparison",
                   help="where pages and figures go")
    args = parse(p, argv)
    result = page.write(Path(args.lines), Path(args.folder))
    counts = f"{len(result['figures'])} figures, {result['trends']} trends"
    return result, f"{counts}: {', '.join(result['pages'])}", args.out


def tables_of(lines: Lines, studies: list[str]) -> str:
    """The tables of these studies as text, for `bench.py quality`. Raises Error without scipy."""
    student_quantile(1)
    found = [table for study in studies for table in TABLES[study](lines)]
    if "methods" in studies:
        found += forgetting(lines, points(lines, "methods"))
    return "\n\n".join(table.text() for table in found)
