"""python bench.py report: what it says follows from the lines, and the pages need nothing else."""

import json
import math
import random
import re
from pathlib import Path

import numpy as np
import pytest

import bench
from minipeft import Error
from minipeft.bench.drawing import COLOURS
from minipeft.bench.quality import studies
from minipeft.bench.quality.cell import Cell
from minipeft.bench.quality.costs import place, read_costs
from minipeft.bench.quality.grid import rated, read
from minipeft.bench.quality.studies import method_of
from minipeft.bench.quality.summary import STUDENT, Point, beyond_chance, interval, points
from minipeft.bench.report import figures, findings, page, tables, trends
from minipeft.runtime import console

CARD = {"device": "X", "device_type": "cpu", "cores": 2, "threads": 1, "platform": "P", "python": "3", "torch": "2", "commit": "c"}
RESULTS = Path(__file__).parent.parent / "docs" / "results"
GOOD = {"full": 0.95, "lora": 0.8, "prefix": 0.5, "prompt": 0.3}


def made_up(cell: Cell, rng: random.Random) -> dict:
    """A line with a score by the method and some noise; curves rise evenly to it."""
    score = min(1, max(0, GOOD.get(cell.method, 0.6) + rng.gauss(0, 0.05))) * (50 if cell.task == "e2e" else 1)
    curve = [[step, score * step / cell.steps, 1.0] for step in range(0, cell.steps, 37)]
    few = {"loss_on_learnt": rng.random()} if cell.examples else {}
    loss = 2 - GOOD.get(cell.method, 0.6) + rng.random() / 10
    numbers = {"score": score, "loss": loss, "trained": 10, "stored_bytes": 20, "seconds": 1.0}
    return {"cell": json.loads(cell.key), **numbers, "curve": curve, **few, "card": CARD}


def all_lines(names, seed: int = 0) -> dict:
    lines, rng = {}, random.Random(seed)
    for name in names:
        pairs = studies.STUDIES[name]()
        for cell in [c for _, like in pairs if like is not None for c in studies.sweep(like)]:
            lines.setdefault(cell.key, made_up(cell, rng))
        for pair in pairs:
            cell = rated(lines, *pair)
            lines.setdefault(cell.key, made_up(cell, rng))
    return lines


@pytest.fixture(scope="module")
def lines() -> dict:
    return all_lines(studies.STUDIES)


@pytest.fixture(scope="module")
def costs() -> dict:
    rows = [
        {"row": row, "size": {}, "kept_bytes": 1000 * i, "peak_bytes": 10**6, "step_ms": {"median": float(i)}}
        for i, row in enumerate([*studies.GROWS, "full"], 1)
    ]
    return {"card": CARD, "rows": rows}


def write(folder, lines: dict, costs: dict | None = None):
    path = folder / "quality.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines.values()), encoding="utf-8")
    if costs:
        place(path).write_text(json.dumps(costs), encoding="utf-8")
    return path


def test_quantiles_of_student_hold_95_percent_of_its_density():
    for freedom, q in enumerate(STUDENT, 1):
        t = np.linspace(-q, q, 200_001)
        c = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
        density = c * (1 + t**2 / freedom) ** (-(freedom + 1) / 2)
        assert np.trapezoid(density, t) == pytest.approx(0.95, abs=2e-4)


def test_an_interval_is_the_textbooks():
    values = [0.1, 0.4, 0.2, 0.9, 0.3]
    mean, half = interval(values)
    assert mean == pytest.approx(np.mean(values))
    assert half == pytest.approx(2.776 * np.std(values, ddof=1) / np.sqrt(5))
    assert interval([0.5]) == (0.5, None)
    for wrong in ([], [0.0] * 20):
        with pytest.raises(Error, match="values"):
            interval(wrong)


def of(scores: dict[int, float]) -> Point:
    return Point(Cell("small", "reverse", "prompt"), {seed: {"score": score} for seed, score in scores.items()})


def test_differences_are_taken_seed_by_seed_over_those_that_both_have():
    a, b = of({0: 0.9, 1: 0.5, 2: 0.7, 7: 1.0}), of({2: 0.6, 1: 0.4, 0: 0.8, 9: 0.0})
    mean, half = a.less(b)
    assert mean == pytest.approx(0.1) and half == pytest.approx(0, abs=1e-12)
    assert beyond_chance(a.less(b)) == 1 and beyond_chance(b.less(a)) == -1
    assert beyond_chance((0.1, 0.2)) == beyond_chance((0.1, None)) == 0


def test_half_way_is_half_of_all_steps_those_of_the_prompt_below_included():
    looks = [[step, step / 1000, 0.0] for step in range(0, 300, 37)]
    whole = Point(Cell("small", "reverse", "prefix", start="random"), {0: {"curve": looks}})
    climbed = Point(Cell("small", "reverse", "prefix", start={"rung": "prompt", "lr": 0.1}), {0: {"curve": looks[:5]}})
    assert whole.values("half-way") == {0: 0.148} and climbed.values("half-way") == {0: 0.0}
    assert whole.values("curve") == {0: pytest.approx(0.148)}


def test_a_study_has_what_is_run_of_it_and_no_more(lines):
    assert not points({}, "methods")
    without = {k: v for k, v in lines.items() if v["cell"]["seed"] != 3}
    assert {len(p.runs) for p in points(without, "methods")} == {4}
    unswept = {k: v for k, v in lines.items() if not (v["cell"]["scored_on"] == "dev" and v["cell"]["method"] == "lora")}
    assert {p.row for p in points(lines, "methods")} - {p.row for p in points(unswept, "methods")} == {"lora"}


def test_the_main_table_holds_the_means_of_the_lines(lines):
    table = tables.methods(lines)[0]
    scores = {}
    for line in lines.values():
        c = line["cell"]
        of_study = (c["examples"], c["base"], c["scored_on"]) == (None, "small", "held-out")
        if of_study and (c["method"], c["task"], c["size"]) == ("lora", "parity", {"r": 4}):
            scores[c["seed"]] = line["score"]
    assert len(scores) == 5
    column = next(i for i, head in enumerate(table.head) if head.startswith("parity"))
    cell = next(row for row in table.rows if row[0] == "lora")[column]
    mean, half = map(float, cell.split(" ± "))
    assert mean == pytest.approx(np.mean(list(scores.values())), abs=0.006)
    assert half == pytest.approx(2.776 * np.std(list(scores.values()), ddof=1) / np.sqrt(5), abs=0.006)


def test_a_sweep_is_a_row_with_the_rate_of_the_lowest_loss_marked_and_none_where_every_rate_came_apart(lines):
    shown = tables.sweep(lines, "real")
    assert [row[0] for row in shown.rows] == [*studies.REAL_RATES]  # once for all numbers of examples
    for row in shown.rows:
        losses = {mark: float(mark.split(": ")[1].removesuffix(" ←")) for mark in row[4:]}
        assert [mark.endswith("←") for mark in losses] == [loss == min(losses.values()) for loss in losses.values()]
    apart = {k: v | {"loss": None} if v["cell"]["scored_on"] == "dev" and v["cell"]["method"] == "lora" else v for k, v in lines.items()}
    assert [row for row in tables.sweep(lines, "methods").rows if row[0] != "lora"] == tables.sweep(apart, "methods").rows


@pytest.mark.parametrize(
    "differences, word",
    [
        ([(0.5, 0.1), (0.2, 0.1)], "reproduced"),
        ([(0.5, 0.1), (0.0, 0.1)], "reproduced in part"),
        ([(0.5, 0.1), (-0.5, 0.1)], "reproduced in part"),
        ([(0.1, 0.2), (-0.5, 0.1)], "contradicted"),
        ([(0.1, 0.2), (-0.1, 0.2)], "inconclusive"),
    ],
)
def test_a_verdict_follows_from_the_intervals(differences, word, monkeypatch):
    monkeypatch.setattr(trends, "WHY", {"name": ("contradicted", "because")})
    made = trends.trend("name", "paper", "claim", {str(i): d for i, d in enumerate(differences)})
    assert made.verdict == word and made.why == ("because" if word == "contradicted" else "")


def test_every_trend_of_the_committed_lines_that_is_not_reproduced_has_its_reason():
    found = trends.all_trends(read(RESULTS / "quality.jsonl"))
    assert len(found) >= 8
    assert all(bool(t.why) == (t.verdict != "reproduced") for t in found)


def test_the_committed_page_is_what_the_committed_lines_say():
    path = RESULTS / "quality.jsonl"
    lines, costs = read(path), read_costs(path)
    sections = [page.section(lines, costs, study) for study in page.QUESTIONS]
    written = page.markdown(lines, path, sections, trends.all_trends(lines))
    assert (RESULTS / "comparison.md").read_text(encoding="utf-8") == written, (
        "run: python bench.py report --lines docs/results/quality.jsonl --folder docs/results"
    )
    for name in page.drawn(sections):
        assert all((RESULTS / "figures" / f"quality-{name}.{kind}").exists() for kind in ("png", "svg"))


def test_every_question_has_a_sentence_and_every_sentence_numbers(lines, costs):
    assert set(findings.FINDINGS) == set(page.QUESTIONS)
    for name, sentence in findings.FINDINGS.items():
        text = sentence(lines, costs)
        assert re.search(r"\d", text) and "nan" not in text and text.endswith("."), name


def test_pages_name_what_is_not_run_and_load_nothing(lines, costs, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    some = {k: v for k, v in lines.items() if v["cell"]["task"] == "parity" and v["cell"]["method"] == "prefix"}
    path = write(tmp_path, some, costs)
    assert console.run("bench.py", lambda: bench.main(["report", "--lines", str(path), "--folder", str(tmp_path / "out")])) == 0
    text, html = ((tmp_path / "out" / f"comparison.{kind}").read_text(encoding="utf-8") for kind in ("md", "html"))
    for question in page.QUESTIONS.values():
        assert question in text and question in html
    assert "Not run yet: `python bench.py quality --study scale`." in text
    for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        assert (tmp_path / "out" / link).stat().st_size > 1000
    assert not re.findall(r'(?:src|href)="(?!data:|#|https://(?:arxiv.org|github.com)/)', html) and "<script" not in html
    assert read(path) == some


def test_a_method_has_its_colour_in_every_figure(lines, costs):
    pytest.importorskip("matplotlib")
    for name in ("methods", "data"):
        for ax in figures.FIGURES[name](lines, costs).axes:
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
                assert handle[0].get_color() == COLOURS[method_of(label)]


def test_without_lines_there_is_nothing_to_report(tmp_path, capsys):
    assert console.run("bench.py", lambda: bench.main(["report", "--lines", str(tmp_path / "none.jsonl")])) == 2
    assert "`python bench.py quality` writes them" in capsys.readouterr().err
