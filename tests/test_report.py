"""python bench.py report: its figures are those of the lines, its sentences stop when they no longer follow."""

import json
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy")
import bench
from docs.tools import advice, chinese, claims, comparison, hero, study_tables
from docs.tools.comparison import figures, page, summary, tables, trends
from docs.tools.comparison.facts import Facts
from docs.tools.comparison.summary import Point, beyond_chance, interval, points, student_quantile
from docs.tools.drawing import COLOURS, MARKERS, PALETTE, looks
from docs.tools.results import quality, seeds_above, trained
from minipeft import METHODS, Error
from minipeft.bench.quality import studies
from minipeft.bench.quality.costs import place
from minipeft.bench.quality.grid import with_learning_rate
from minipeft.bench.quality.lines import Cell, read
from minipeft.bench.quality.studies import method_of
from minipeft.runtime import console

CARD = {"device": "X", "device_type": "cpu", "cores": 2, "threads": 1, "platform": "P", "python": "3", "torch": "2",
        "commit": "c"}
RESULTS = Path(__file__).parent.parent / "docs" / "results"
GOOD = {"full": 0.95, "lora": 0.8, "prefix": 0.5, "prompt": 0.3}


def made_up(cell: Cell, rng: random.Random) -> dict:
    """A line with a score by the method and some noise; curves rise evenly to it."""
    score = min(1, max(0, GOOD.get(cell.method, 0.6) + rng.gauss(0, 0.05))) * (50 if cell.task == "e2e" else 1)
    curve = [[step, score * step / cell.steps, 1.0] for step in range(0, cell.steps, 37)]
    few = {"loss_on_learnt": rng.random() / 20} if cell.examples else {}
    loss = 2 - GOOD.get(cell.method, 0.6) + rng.random() / 10
    numbers = {"score": score, "loss": loss, "trained": 10, "stored_bytes": 20, "seconds": 1.0}
    known = {"before": [0.1, 0.99], "after": [0.1 + rng.random(), 0.5], "off": [0.1, 0.99]}
    return {"cell": json.loads(cell.key), **numbers, "curve": curve, **few, "known": known, "card": CARD}


def all_lines(names, seed: int = 0) -> dict:
    lines, rng = {}, random.Random(seed)
    for name in names:
        pairs = studies.STUDIES[name]()
        for cell in [c for _, like in pairs if like is not None for c in studies.sweep(like)]:
            lines.setdefault(cell.key, made_up(cell, rng))
        for pair in pairs:
            cell = with_learning_rate(lines, *pair)
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


def test_an_interval_is_the_textbooks():
    assert [round(student_quantile(n), 3) for n in (1, 4, 9)] == [12.706, 2.776, 2.262]
    values = [0.1, 0.4, 0.2, 0.9, 0.3]
    mean, half = interval(values)
    assert mean == pytest.approx(np.mean(values))
    assert half == pytest.approx(2.7764 * np.std(values, ddof=1) / np.sqrt(5), rel=1e-4)
    assert interval([0.5]) == (0.5, None)
    with pytest.raises(Error, match="at least 1 value"):
        interval([])


def test_without_scipy_nothing_is_run(tmp_path, monkeypatch, capsys):
    student_quantile.cache_clear()
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    path = tmp_path / "lines.jsonl"
    assert console.run("bench.py", lambda: bench.main(["quality", "--quick", "--lines", str(path)])) == 2
    assert capsys.readouterr().err.endswith("need: pip install scipy\n") and not path.exists()


def of(scores: dict[int, float]) -> Point:
    return Point(Cell("small", "reverse", "prompt"), {seed: {"score": score} for seed, score in scores.items()})


def test_differences_are_taken_seed_by_seed_over_those_that_both_have():
    a, b = of({0: 0.9, 1: 0.5, 2: 0.7, 7: 1.0}), of({2: 0.6, 1: 0.4, 0: 0.8, 9: 0.0})
    mean, half = a.less(b)
    assert mean == pytest.approx(0.1) and half == pytest.approx(0, abs=1e-12)
    assert beyond_chance(a.less(b)) == 1 and beyond_chance(b.less(a)) == -1
    assert beyond_chance((0.1, 0.2)) == beyond_chance((0.1, None)) == 0


def test_steps_are_those_until_the_task_is_done_or_all():
    curves = {0: [[0, 0.0, 1.0], [37, 0.9, 1.0], [74, 0.8, 1.0]], 1: [[0, 0.0, 1.0], [37, 0.89, 1.0]]}
    point = Point(Cell("small", "reverse", "prefix"), {seed: {"curve": curve} for seed, curve in curves.items()})
    assert point.values("steps") == {0: 37, 1: 300}


def test_half_way_is_half_of_all_steps_those_of_the_prompt_below_included():
    looks = [[step, step / 1000, 0.0] for step in range(0, 300, 37)]
    whole = Point(Cell("small", "reverse", "prefix", start="random"), {0: {"curve": looks}})
    climbed = Point(Cell("small", "reverse", "prefix", start={"rung": "prompt", "lr": 0.1}), {0: {"curve": looks[:5]}})
    assert whole.values("half-way") == {0: 0.148} and climbed.values("half-way") == {0: 0.0}
    assert whole.values("curve") == {0: pytest.approx(0.148)}


def is_sweep(line: dict, method: str) -> bool:
    return (line["cell"]["scored_on"], line["cell"]["method"]) == ("dev", method)


def test_a_study_has_what_is_run_of_it_and_no_more(lines):
    assert not points({}, "methods")
    without = {k: v for k, v in lines.items() if v["cell"]["seed"] != 3}
    assert {len(p.runs) for p in points(without, "methods")} == {4}
    unswept = {k: v for k, v in lines.items() if not is_sweep(v, "lora")}
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


def test_a_sweep_is_a_row_with_the_rate_of_the_lowest_loss_marked_and_none_where_every_rate_diverged(lines):
    shown = tables.sweep_table(lines, "data")
    assert [row[0] for row in shown.rows] == [r for r in studies.MAIN_ROWS for _ in studies.FEW for _ in studies.TEXTS]
    for row in shown.rows:
        losses = {mark: float(mark.split(": ")[1].removesuffix(" ←")) for mark in row[4:] if mark}
        marked = [loss for mark, loss in losses.items() if mark.endswith("←")]
        assert len(losses) == 5 and marked == [min(losses.values())]
    diverged = {k: v | {"loss": None} if is_sweep(v, "lora") else v for k, v in lines.items()}
    others = [row for row in tables.sweep_table(lines, "methods").rows if row[0] != "lora"]
    assert others == tables.sweep_table(diverged, "methods").rows


def test_sweeps_are_counted_with_their_edges_and_their_runs():
    rates = {0.03: 0.8, 0.1: 0.6, 0.3: 0.5, 1.0: 0.4, 3.0: 0.3, 10.0: 0.6}  # goes on once, beyond 3
    lines = {}
    for like, losses in ((studies.cell("prefix", "parity", studies.TOKENS), rates),
                         (studies.cell("prefix", "reverse", studies.TOKENS), dict(list(rates.items())[:5]))):
        for lr, loss in losses.items():
            swept = studies.swept_at(like, lr)
            lines[swept.key] = made_up(swept, random.Random(0)) | {"loss": loss}
    f = Facts(lines, None)
    assert f.edges() == "1 of 2" and f.effort() == "the prefix 5.5"


def test_sweeps_that_hardly_choose_are_named():
    def sentence(losses) -> str:
        like = next(like for _, like in studies.real_data()
                    if (like.task, like.examples, like.method) == ("topics", 1000, "full"))
        swept = {c.key: made_up(c, random.Random(0)) | {"loss": loss}
                 for c, loss in zip(studies.sweep(like), losses, strict=True)}
        return Facts(swept, None).level_sweeps("real_data")

    wanted = "between them: full fine-tuning (`topics`, 1,000 examples: 3 of 4)."
    assert wanted in sentence([0.0, 0.009, 0.02, 0.0, None])
    assert sentence([0.0, 0.009, 0.02, 0.02, 0.02]) == ""


def test_a_task_of_the_real_model_has_a_table_with_its_measure_and_the_rows_that_are_run(lines):
    some = {k: v | {"peak_bytes": 1_500_000_000 + 10**7 * v["cell"]["seed"]} for k, v in lines.items()
            if studies.row(Cell.of(v)) != "full" or v["cell"]["task"] != "topics"}
    of_task = {t.title.split("`")[1]: t for t in tables.real(some)[:-1]}
    assert [*of_task] == ["e2e", "topics", "amounts"]
    assert [t.head[1] for t in of_task.values()] == ["BLEU", "exact match", "exact match"]
    assert [row[0] for row in of_task["amounts"].rows] == [*studies.real_model.ROWS]
    assert [row[0] for row in of_task["topics"].rows] == [r for r in studies.real_model.ROWS if r != "full"]
    peaks = {row[of_task["e2e"].head.index("peak GB")] for row in of_task["e2e"].rows}
    assert peaks == {"1.54"}  # the largest of five seeds
    assert re.fullmatch(r"\d\d\.\d ± \d\.\d", of_task["e2e"].rows[0][1])


def test_what_closes_the_distance_to_lora_is_paired_by_seed_in_table_and_figure(lines):
    pytest.importorskip("matplotlib")
    table, its = tables.real_prefix(lines)[0], points(lines, "real_prefix")
    rows = {row[0]: row[1:] for row in table.rows}
    assert [*rows] == ["prefix", "lora", "prefix from noise", *studies.real_model.CHANGED]
    score = {(p.row, p.cell.task): p.values("score") for p in its}
    d = [score["prefix", "topics"][seed] - score["lora", "topics"][seed] for seed in range(5)]
    less = rows["prefix"][table.head[1:].index("topics") + 1]
    assert less.startswith(f"{np.mean(d):+.2f} ± ") and rows["lora"][1::2] == ["-"] * 3
    middle = figures.real_prefix(lines, None).axes[1]
    drawn = next(line for line in middle.lines if line.get_marker() == "o" and len(line.get_xdata()) == 5
                 and line.get_ydata()[0] == pytest.approx(len(rows) - 2 - 0.3))  # the uppermost row: prefix
    assert list(drawn.get_xdata()) == pytest.approx(d)


def test_lines_of_another_vendors_cpu_are_named(lines):
    def of(line):
        elsewhere = line["cell"]["task"] == "topics" and line["cell"]["examples"] == 1000
        return line | {"card": CARD | {"vendor": "Intel" if elsewhere else "AMD"}}

    f = Facts({k: of(v) for k, v in lines.items()}, None)
    assert f.other_vendors("real_data") == (
        " On CPUs of Intel ran `topics` with 1,000 examples, on those of AMD the others: scores may "
        "differ by rounding.")
    assert [f.other_vendors(study) for study in ("real_prefix", "real", "methods")] == [""] * 3
    assert Facts(lines, None).other_vendors("real_data") == ""


def test_rows_of_another_vendors_cpu_are_named_where_only_some_of_a_task_are(lines):
    def of(line):
        elsewhere = line["cell"]["task"] == "e2e" and "prefix of" in summary.row(Cell(**line["cell"]))
        return line | {"card": CARD | {"vendor": "Intel" if elsewhere else "AMD"}}

    f = Facts({k: of(v) for k, v in lines.items()}, None)
    assert f.other_vendors("real_prefix") == (
        " On CPUs of Intel ran `e2e` with 200 examples (prefix of 8 from noise, prefix of 64 from noise), on those of "
        "AMD the others: scores may differ by rounding.")


def test_points_of_the_real_model_that_are_not_begun_are_not_missed(lines):
    some = {k: v for k, v in lines.items() if v["cell"]["examples"] != 1000}
    f = Facts(some, None)
    assert f.is_complete("real_data") and f.amounts("real_data", "prefix", "topics") == [50, 200]
    assert not Facts({}, None).is_there("real_data")
    begun = {k: v for k, v in lines.items() if v["cell"]["seed"] != 4 or v["cell"]["examples"] != 1000}
    assert not Facts(begun, None).is_complete("real_data")
    first = {c.key for c in (with_learning_rate(lines, *pair) for pair in studies.real())}
    alone = {k: v for k, v in lines.items() if k in first or v["cell"]["scored_on"] == "dev"}
    f = Facts(alone, None)  # shares cells with the two others
    assert f.is_complete("real") and not any(f.is_there(s) or f.is_complete(s) for s in ("real_data", "real_prefix"))


def test_a_run_that_diverged_is_counted_beside_the_mean_of_the_others():
    runs = {0: {"score": 0.5, "loss": 1.0, "curve": [[0, 0.2, 2.0]]}, 1: {"score": 0.0, "loss": None, "failed": "nan"}}
    p = Point(Cell("small", "reverse", "lora", steps=8), runs)
    assert tables.score(p, "loss").endswith(", 1 diverged") and tables.score(p).startswith("0.25")
    assert p.values("curve") == {0: 0.2} and p.values("half-way") == {0: 0.2} and p.values("loss") == {0: 1.0}


@pytest.mark.parametrize("verdicts, word", [
    (["agrees", "agrees"], "agrees"), (["agrees", "inconclusive"], "agrees in 1 of 2"),
    (["agrees", "contradicted"], "agrees in 1 of 2"), (["inconclusive", "contradicted"], "contradicted"),
    (["inconclusive", "inconclusive"], "inconclusive"), ([], "inconclusive")])
def test_a_verdict_of_several_settings_follows_from_their_own(verdicts, word):
    assert trends.together(verdicts) == word


@pytest.mark.parametrize("difference, margin, word", [
    ((0.3, 0.2), 0, "agrees"), ((-0.3, 0.2), 0, "contradicted"), ((0.1, 0.2), 0, "inconclusive"),
    ((0.3, None), 0, "inconclusive"), ((0.0, 0.0), 0, "inconclusive"), ((0.004, 0.001), 0, "inconclusive"),
    ((0.0, 0.01), -0.02, "agrees"), ((-0.01, 0.02), -0.02, "inconclusive"), ((-0.05, 0.02), -0.02, "contradicted")])
def test_a_verdict_is_where_the_interval_lies_beside_the_margin(difference, margin, word):
    assert trends.verdict(difference, margin) == word
    trend = trends.Trend("methods", "paper", "claim", lambda f: {}, "a comment", margin)
    assert f"| **{word}** | a comment |" in trends.row(trend, {"here": difference})


def test_published_trends_are_many_have_a_source_and_peft_is_among_them(lines, costs):
    facts = Facts(lines, costs)
    assert trends.shown(facts) == trends.TRENDS and len(trends.TRENDS) >= 30
    for t in trends.TRENDS:
        assert re.search(r"\]\(https://", t.source) and len(t.comment) > 20 and t.differences(facts), t.says
    says = " ".join(t.says for t in trends.TRENDS if "PEFT's benchmark" in t.source)
    for figures_there in ("0.416 and 0.34", "0.478 and 0.416", "0.198 and 0.050"):
        assert figures_there in says
    table = trends.table(facts)
    assert len(table.splitlines()) == len(trends.TRENDS) + 2
    assert set(re.findall(r"\*\*([a-z]+)", table)) <= {"agrees", "contradicted", "inconclusive"}


@pytest.fixture(scope="module")
def committed() -> Facts:
    return page.facts_of(RESULTS / "quality.jsonl")


def test_the_committed_page_is_what_the_committed_lines_say(committed):
    written = (RESULTS / "comparison.md").read_text(encoding="utf-8")
    command = "python bench.py report --lines docs/results/quality.jsonl --folder docs/results"
    assert page.markdown(committed, RESULTS / "quality.jsonl") == written, f"run: {command}"
    files = {f"quality-{name}.{kind}" for name in page.drawn(committed) for kind in ("png", "svg")}
    assert {file.name for file in (RESULTS / "figures").iterdir()} == files


@pytest.mark.slow
def test_the_page_has_twenty_trends_from_the_committed_lines(committed):
    text = page.markdown(committed, Path("x"))
    rows = re.findall(r"^\| \[.*\*\*([a-z]+)[a-z0-9 ]*\*\* \| (.{20,}) \|$", text, re.MULTILINE)
    assert len(rows) >= 20 and {verdict for verdict, _ in rows} == {"agrees", "contradicted", "inconclusive"}


def test_little_data_has_findings_from_its_lines_and_is_withdrawn_without_them(lines, costs):
    def section(some: dict) -> str:
        text = page.markdown(Facts(some, costs), Path("x"))
        return text[text.index("## 8."):text.index("## 9.")], text

    lines = {k: v for k, v in lines.items() if of_few(v["cell"]) or v["cell"]["scored_on"] == "dev"}  # and sweeps
    its, text = section(lines)
    assert "What was wrong in the first edition" in its and "is withdrawn" not in text
    assert "with 10 examples full fine-tuning (0.9" in its and "![" in its
    f = Facts(lines, costs)
    assert f.first_edition("full", "reverse", 10) in its
    unfit = {k: v | {"loss_on_learnt": 0.2} if v["cell"]["method"] == "full" and v["cell"]["examples"] == 30 else v
             for k, v in lines.items()}
    gaps = Facts(unfit, costs).little("full", "prefix", "gap")
    every = [*f.little("full", "prefix")]
    assert [*f.little("full", "prefix", "gap")] == every and [*gaps] == [p for p in every if not p.endswith(", 30")]
    without, text = section({k: v for k, v in lines.items() if not of_few(v["cell"])})
    assert "Not run yet: `python bench.py quality --study data`." in without and "![" not in without
    assert "its first edition used those of endless data, and is withdrawn" in text
    assert "figure 3 | with little data a prefix is ahead of full fine-tuning; here, exact match" not in text


def test_sentences_on_studies_that_are_run_later_have_their_chinese(lines, costs, monkeypatch):
    for module in (advice, claims):
        monkeypatch.setattr(module, "facts", lambda: Facts(lines, costs))
    monkeypatch.setattr(study_tables, "quality", lambda study: points(lines, study))
    text, claim = advice.what_to_use(), claims.overfitting()
    for words in ("With 10 examples", "On SmolLM2-135M", "What is forgotten"):
        assert words in text
    assert claim.verdict in ("agrees", "contradicted", "inconclusive") or claim.verdict.startswith("agrees in ")
    table = study_tables.results()
    assert "| forgets |" in table and "Forgets: loss on all eight known skills" in " ".join(table.split())
    for block in (text, f"| {claim.measured} | {claim.verdict} |", f"- {claims.little_data()}", table):
        assert not chinese.untranslated(block)


def test_quick_prints_what_is_forgotten(lines):
    text = comparison.tables_of({k: v for k, v in lines.items() if v["cell"]["seed"] in (0, 1, 100)}, ["methods"])
    assert "forgetting: loss on examples of all eight skills, told" in text
    assert all(f"\n{task}  " in text for task in studies.QUICK)


def of_few(cell: dict) -> bool:
    return cell["base"] == "small" and cell["examples"] is not None


@pytest.mark.slow
def test_a_sentence_that_no_longer_follows_stops_the_command(committed, tmp_path, capsys):
    """Full fine-tuning of the smallest base becomes worse than a prompt."""
    changed = {}
    for key, line in committed.lines.items():
        c = line["cell"]
        worse = (c["method"], c["base"], c["task"], c["scored_on"]) == ("full", "tiny", "reverse", "held-out")
        changed[key] = line | {"score": 0.0} if worse else line
    path, out = write(tmp_path, changed, committed.costs), tmp_path / "out"
    assert console.run("bench.py", lambda: bench.main(["report", "--lines", str(path), "--folder", str(out)])) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "this no longer follows from the lines: On the smallest base, `tiny`" in error
    assert error.endswith(" should be above zero beyond chance") and not out.exists()


def test_each_check_marks_a_figure_that_is_false(committed):
    f = committed
    for wrong in (lambda: f.top("scale/prompt/reverse", 0.5), lambda: f.failing("scale/prompt/reverse/nano", 2),
                  lambda: f.ahead("methods/prefix/parity", "methods/lora/parity"),
                  lambda: f.level("methods/lora/parity", "methods/prompt/parity")):
        assert wrong().startswith("⟦")
        assert f.marked.pop()


def test_phrases_follow_from_the_lines_by_a_rule():
    def facts(**scores) -> Facts:
        f = Facts({}, None)
        f.points = {f"methods/{row}/parity": of(dict(enumerate(its))) for row, its in scores.items()}
        return f

    f = facts(lora=(0.95, 0.96, 0.97), prefix=(0.2, 0.9, 0.4), full=(0.99, 1.0, 1.0), prompt=(0, 0.01, 0.02))
    assert f.passing("methods", "parity") == ("full fine-tuning (1.00 ± 0.01) and LoRA (0.96 ± 0.02) score 0.9 or "
                                              "more; the next is the prefix (0.50 ± 0.90)")
    assert f.leader("methods", "parity").startswith("full fine-tuning (1.00 ± 0.01), ahead of LoRA by 0.04")
    assert f.behind("methods", "parity") == "LoRA and the prompt"
    alone = facts(lora=(0.95, 0.96, 0.97), prefix=(0.2, 0.9, 0.4))
    assert alone.passing("methods", "parity").startswith("LoRA (0.96 ± 0.02) alone scores 0.9 or more; the next is")
    assert alone.leader("methods", "parity").startswith("LoRA (0.96 ± 0.02), not beyond chance ahead of the prefix by")
    none = facts(prefix=(0.2, 0.9, 0.4))
    assert none.passing("methods", "parity") == "no method scores 0.9 or more; the best is the prefix (0.50 ± 0.90)"
    differences = {"a": (1, 0.1), "b": (-1, 0.1), "c": (1, 2), "d": (2, 1)}
    assert none.beyond(differences, "more", "less") == "more: a and d; less: b"


def test_a_study_that_is_run_in_part_has_tables_but_no_findings(lines, costs, tmp_path):
    quick = {k: v for k, v in lines.items() if v["cell"]["task"] in studies.QUICK and v["cell"]["seed"] != 4}
    text = page.markdown(Facts(quick, costs), Path("quality.jsonl"))
    assert "Run in part, so without findings" in text and "Two skills in a row" not in text
    assert "| prompt | P 64 | 4,096 |" in text


@pytest.mark.slow
def test_pages_name_what_is_not_run_and_load_nothing(lines, costs, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    pytest.importorskip("markdown2")
    cells = {k: v["cell"] for k, v in lines.items()}
    some = {k: lines[k] for k, c in cells.items()
            if (c["task"], c["method"]) == ("parity", "prefix") and c["seed"] != 4}
    path, out = write(tmp_path, some, costs), tmp_path / "out"
    assert console.run("bench.py", lambda: bench.main(["report", "--lines", str(path), "--folder", str(out)])) == 0
    text, html = ((out / f"comparison.{kind}").read_text(encoding="utf-8") for kind in ("md", "html"))
    questions = re.findall(r"^## \d+\. (.+)$", text, re.MULTILINE)
    assert len(questions) == len(page.SECTIONS) and all(question in html for question in questions)
    assert "Not run yet: `python bench.py quality --study scale`." in text
    for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        assert (out / link).stat().st_size > 1000
    loaded = re.findall(r'(?:src|href)="(?!data:|#|https://(?:arxiv.org|github.com)/)', html)
    assert not loaded and "<script" not in html
    assert read(path) == some


def test_a_method_has_its_colour_in_every_figure(lines, costs):
    pytest.importorskip("matplotlib")
    for draw in (figures.methods, figures.scale):
        for ax in draw(lines, costs).axes:
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
                assert handle[0].get_color() == COLOURS[method_of(label)]
                assert handle[0].get_marker() in (MARKERS[method_of(label)], "None")


@pytest.mark.parametrize("study", ["methods", "budget", "start", "projection", "length", "cost", "data", "real",
                                   "real_data", "forgetting"])
def test_a_figure_says_that_intervals_of_a_share_are_cut(study, lines, costs):
    pytest.importorskip("matplotlib")
    fig = getattr(figures, study)(lines, costs)
    texts = [legend.get_title().get_text() for legend in fig.legends] + [fig.get_supxlabel()]
    assert any(figures.CUT in text for text in texts)


def test_the_lead_picture_has_the_counts_of_the_table_below_it():
    found = hero.passed()
    table = {p.row: (trained(p), seeds_above(p)) for p in quality("methods") if p.cell.task == hero.NEW_SKILL}
    assert found.pop("full") == [table["full"]]
    assert found and all(table[row] in its for row, its in found.items())
    assert f"new `{hero.NEW_SKILL}`" in (summary := study_tables.summary()) and f"{hero.BUDGET:,}" in summary


def test_methods_take_colours_and_markers_in_their_order_until_the_palette_ends():
    assert [*looks(METHODS).values()] == [*PALETTE[: len(METHODS)]] and len(PALETTE) >= 14
    assert all(len(set(values)) == len(PALETTE) for values in zip(*PALETTE, strict=True))
    assert COLOURS["prefix"] == "#D55E00" and MARKERS["prefix"] == "D"
    more = [f"method-{i}" for i in range(len(PALETTE) + 1)]
    with pytest.raises(Error, match=f"^figures have {len(PALETTE)} colours and there are {len(more)} methods: "
                                    f"add one to PALETTE in docs/tools/drawing.py for '{more[-1]}'$"):
        looks(more)


SEEN_AS = {  # linear RGB of a colour as seen without red, and without green, cones (Machado et al. 2009)
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]}


@pytest.mark.parametrize("seen_as", SEEN_AS)
def test_colour_blind_readers_tell_the_methods_apart(seen_as):
    """Distance of any two colours in CIELAB, where 2.3 is just noticeable."""
    srgb = np.array([[int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)] for colour in COLOURS.values()])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(SEEN_AS[seen_as]).T, 0, 1)
    white = np.array([0.9505, 1.0, 1.089])
    xyz = seen @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T / white
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
    apart = np.linalg.norm(lab[:, None] - lab, axis=2)[np.triu_indices(len(lab), 1)]
    assert apart.min() > 10


def test_without_lines_there_is_nothing_to_report(tmp_path, capsys):
    assert console.run("bench.py", lambda: bench.main(["report", "--lines", str(tmp_path / "none.jsonl")])) == 2
    assert "`python bench.py quality` writes them" in capsys.readouterr().err
