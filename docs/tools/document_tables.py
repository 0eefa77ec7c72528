#!/usr/bin/env python3
"""Tables and findings of docs/documents.md, from docs/results/document*.json, and its figures.

python docs/tools/document_tables.py      draw docs/figures/document*.svg (needs matplotlib)

tables.py fills the tables.
"""

import sys
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from docs.tools import drawing
from docs.tools.comparison.summary import interval, plus_minus
from docs.tools.markdown import paragraph, points_list, table
from docs.tools.peers_tables import machine
from docs.tools.results import read, version
from minipeft.bench.document import APART

WAYS = {"first": "first rows", "last": "last rows", "attended": "most attended rows", "summary": "a summary",
        "match": "matched", "distil": "distilled"}
PLAIN = ("first", "last", "attended")  # rows of the text as they are
STYLES = {"first": "C7:", "last": "C7-.", "attended": "C2--", "summary": "C4:", "match": "C0-o", "distil": "C3-s"}
FIGURE = ROOT / "docs" / "figures"


def found() -> dict[tuple[str, str, int], list[dict]]:
    """{(document, way, rows): the rows of the result, one a seed}."""
    rows: dict[tuple[str, str, int], list[dict]] = {}
    for r in read("document")["rows"]:
        rows.setdefault((r["document"], r["way"], r["rows"]), []).append(r)
    return rows


def of(name: str, rows: list[dict]) -> float:
    """The mean over the seeds."""
    return mean(r[name] for r in rows)


def kl(rows: list[dict] | None) -> str:
    """A cell."""
    return f"{of('kl', rows):.3f}" if rows else "-"


def divergences() -> str:
    """One line for each document and number of rows."""
    rows, s = found(), read("document")["settings"]
    lines = []
    for document, _, P in dict.fromkeys((d, "", P) for d, way, P in rows if way == "match"):
        n = rows[document, "text", max(P for d, way, P in rows if d == document and way == "text")][0]["tokens"]
        if P < n:
            lines.append([f"`{document}`", f"{P:,}", f"{n // P}", *(kl(rows.get((document, way, P))) for way in WAYS)])
    whole = max(abs(r["kl"]) for r in read("document")["rows"] if r["way"] == "text")
    equal = max(abs(r["kl"]) for r in read("document")["rows"] if r["way"] == "match" and r["rows"] == r["tokens"])
    none = ", ".join(f"{r['kl']:.3f}" for r in read("document")["rows"] if r["way"] == "none")
    card = read("document")["card"]
    head = ["document", "P", "tokens a row", *WAYS.values()]
    return "\n\n".join([paragraph(
        f"*{s['base']}, the first {s['tokens']} tokens of each document, KL on the {s['held_out']} tokens behind them;",
        f"without the document {none}, all rows {max(whole, equal):.0e}; torch {version(card, 'torch')}.*"),
        table(head, lines, left=1)])


def distillations() -> str:
    """Matched and distilled rows beside each other: KL behind the document, and on self-study texts held out."""
    rows, s = found(), read("document")["settings"]
    lines = [[f"`{d}`", f"{P:,}",
              *(f"{of(key, rows[d, way, P]):.3f}" for key in ("kl", "study_kl") for way in ("match", "distil")),
              f"{of('seconds', its):,.0f}"] for (d, way, P), its in rows.items() if way == "distil"]
    note = paragraph(f"*{s['self_study']} self-study texts, {s['epochs']} passes over them; the others, which are held",
                     f"out, are 1 for every {APART} of these.*")
    head = ["document", "P", "matched", "distilled", "matched, self-study", "distilled, self-study", "seconds"]
    return f"{note}\n\n{table(head, lines, left=1)}"


def costs() -> str:
    """Seconds, bytes and decode time of the text, of matched and of distilled rows."""
    lines = []
    for (document, way, P), rows in found().items():
        if way in ("text", "match", "distil"):
            seconds, decode = (mean(r[key] for r in rows) for key in ("seconds", "decode_ms"))
            lines.append([f"`{document}`", WAYS.get(way, "the text"), f"{P:,}", f"{seconds:,.1f}",
                          f"{rows[0]['bytes'] / 1000:,.0f}", f"{decode:.1f}"])
    result = read("document")
    study = ", ".join(f"{mean(x):.0f}" for x in result["study_seconds"].values() if x)
    beside = f"; self-study took {study} s beside" if study else ""
    note = paragraph(f"*Seconds of building it{beside}. Decode: ms a token, one row. Peak memory of the whole run",
                     f"{result['peak_bytes'] / 1e9:.1f} GB.*")
    return f"{note}\n\n{table(['document', 'way', 'P', 'seconds', 'KB', 'decode ms'], lines, left=2)}"


def findings() -> str:
    """Counts of the comparisons that the table holds."""
    rows = found()
    value = {key: mean(r["kl"] for r in its) for key, its in rows.items()}
    places = [(d, P) for d, way, P in rows if way == "match" and 4 * P <= rows[d, way, P][0]["tokens"]]
    nearest = sum(value[d, "match", P] < min(value[d, way, P] for way in PLAIN) for d, P in places)
    ratios = [value[d, "match", P] / min(value[d, way, P] for way in PLAIN) for d, P in places]
    distilled = [(d, P) for d, way, P in rows if way == "distil"]
    nearer = sum(value[d, "distil", P] < value[d, "match", P] for d, P in distilled)
    on_study = sum(of("study_kl", rows[d, "distil", P]) < of("study_kl", rows[d, "match", P]) for d, P in distilled)
    hard = sum(value[d, "match", P] < value[d, "summary", P] for d, P in places)
    best = f"their KL is {min(ratios):.2f} to {max(ratios):.2f} of that of the best"
    return points_list(
        "Matched rows are nearer to the whole text than as many rows of it, chosen in the best of three ways, at "
        f"{nearest} of {len(places)} places; {best}.",
        "Distillation from there comes nearer on the tokens behind the document at "
        f"{nearer} of {len(distilled)}, and on self-study texts that it did not read at {on_study}.",
        f"A summary of as many tokens, written by the base itself, is further away at {hard} of {len(places)} places.")


def long_document() -> str:
    """A longer document into few rows: seconds of every way, its KL, and the peak memory."""
    result = read("document-long")
    rows = {r["way"]: r for r in result["rows"]}
    (study,) = (mean(x) for x in result["study_seconds"].values())
    (s, matched, distilled) = (result["settings"], rows["match"], rows["distil"])
    plain = ", ".join(f"{WAYS[way]} {rows[way]['kl']:.3f}" for way in PLAIN)
    return paragraph(
        f"The first {s['tokens']:,} tokens of `{matched['document']}` into {matched['rows']} rows: matched in",
        f"{matched['seconds']:.0f} seconds, KL {matched['kl']:.3f} ({plain}; no document {rows['none']['kl']:.3f});",
        f"distilled from there in {distilled['seconds'] / 60:.1f} minutes with {s['self_study']} self-study texts,",
        f"which took {study / 60:.1f} minutes to write, KL {distilled['kl']:.3f}. Peak memory of the whole run",
        f"{result['peak_bytes'] / 1e9:.2f} GB; {machine(result['card'])}.")


def answered(score: str = "exact_match") -> dict[str, dict[int, list[float]]]:
    """{way: {rows: score of each table}}, on the base that looks things up."""
    found: dict[str, dict[int, list[float]]] = {}
    for r in read("document-lookup")["rows"]:
        found.setdefault(r["way"], {}).setdefault(r["rows"], []).append(r[score])
    return found


def answers() -> str:
    """Exact match on the tables, mean and interval over them: one line for each number of rows."""
    exact, result = answered(), read("document-lookup")
    (n,), tables = exact["text"], result["settings"]["tables"]

    def share(way: str, P: int) -> str:
        return plus_minus(interval(exact[way][P])) if P in exact.get(way, {}) else "-"

    ways = [way for way in WAYS if way in exact]
    lines = [[f"{P:,}", f"{n // P}", *(share(way, P) for way in ways)] for P in exact["match"] if P < n]
    note = paragraph(
        f"*`lookup`, {tables} tables of {n} tokens, exact match on questions for all facts of each, mean and 95 %",
        f"interval over the tables. With the whole table {share('text', n)}, matched to as many rows",
        f"{share('match', n)}, without it {share('none', 0)}; torch {version(result['card'], 'torch')}.*")
    return f"{note}\n\n{table(['P', 'tokens a row', *(WAYS[way] for way in ways)], lines, left=0)}"


def answer_findings() -> str:
    """Counts of the comparisons that the tables hold, and one of their lines in words."""

    def means(score: str) -> tuple[dict, dict[int, float]]:
        value = {way: {P: mean(its) for P, its in by_rows.items()} for way, by_rows in answered(score).items()}
        choose = max if score == "exact_match" else min
        return value, {P: choose(value[way][P] for way in PLAIN) for P in value["first"]}

    (value, best), (kl, nearest) = means("exact_match"), means("kl")
    (n,), most = value["text"], max(best)
    more, nearer = sum(value["match"][P] > best[P] for P in best), sum(kl["match"][P] < nearest[P] for P in best)
    further = sum(value["distil"][P] > value["match"][P] for P in value["distil"])
    return points_list(
        f"Distilled rows answer more questions than matched ones at {further} of {len(value['distil'])} places. With "
        f"{n // most} tokens a row they answer {value['distil'][most]:.2f}, matched ones {value['match'][most]:.2f}, "
        f"the best rows of the table {best[most]:.2f}.",
        f"Matched rows answer more than the best rows of the table at {more} of {len(best)} places, though by KL they "
        f"are nearer at {nearer}: {kl['match'][most]:.2f} against {nearest[most]:.2f} with {n // most} tokens a row. "
        "KL is taken on whole lines of questions and answers, of which one token in four is an answer.")


def draw_answers() -> None:
    """docs/figures/document-lookup.svg: exact match against tokens a row, one line a way, intervals over tables."""
    exact = answered()
    (n,) = exact["text"]
    fig, axis = drawing.figure(height=3.8)
    for i, (way, label) in enumerate(WAYS.items()):
        points = sorted((n / P * 1.04 ** (i - 3), *interval(values))  # side by side
                        for P, values in exact.get(way, {}).items() if P < n)
        if points:
            tokens, mean_, half = zip(*points, strict=True)
            axis.errorbar(tokens, mean_, half, fmt=STYLES[way], capsize=3, label=label)
    for way, label in (("text", "the whole table"), ("none", "no table")):
        (values,) = exact[way].values()
        axis.axhline(mean(values), color=drawing.BASE, linestyle="-" if way == "text" else ":", label=label)
    axis.set(xscale="log", xlabel="tokens a row", ylabel="exact match", ylim=(0, 1.05))
    ticks = sorted(n // P for P in exact["match"] if P < n)
    axis.set_xticks(ticks, list(map(str, ticks)))
    axis.minorticks_off()
    fig.legend(loc="outside right center", fontsize=9)
    (FIGURE / "document-lookup.svg").write_bytes(drawing.picture(fig, "svg"))


def draw() -> None:
    """docs/figures/document.svg: KL against tokens a row, one line a way, one panel a document."""
    rows = found()
    documents = list(dict.fromkeys(d for d, _, _ in rows))
    fig, axes = drawing.figure(1, len(documents), height=3.8, sharey=True, squeeze=False)
    for axis, document in zip(axes[0], documents, strict=True):
        for way, label in WAYS.items():
            points = sorted((r[0]["tokens"] / P, mean(x["kl"] for x in r)) for (d, w, P), r in rows.items()
                            if (d, w) == (document, way) and P < r[0]["tokens"])
            if points:
                axis.plot(*zip(*points, strict=True), STYLES[way], label=label)
        axis.axhline(rows[document, "none", 0][0]["kl"], color=drawing.BASE, label="no document")
        axis.set(xscale="log", xlabel="tokens a row", title=document)
        axis.set_xticks([4, 8, 16, 32, 64], ["4", "8", "16", "32", "64"])
        axis.minorticks_off()
    axes[0][0].set(ylabel="KL to the whole text")
    lines, labels = axes[0][0].get_legend_handles_labels()
    fig.legend(lines, labels, loc="outside lower center", ncols=4, fontsize=9)
    (FIGURE / "document.svg").write_bytes(drawing.picture(fig, "svg"))


BLOCKS = {"document": divergences, "document-costs": costs, "document-findings": findings,
          "document-distil": distillations, "document-long": long_document, "document-lookup": answers,
          "document-lookup-findings": answer_findings}

if __name__ == "__main__":
    draw()
    draw_answers()
