"""The tables of docs/peers.md: minipeft beside PEFT, transformers and torch's own products."""

import math

from docs.tools.markdown import name, paragraph, ratio, spread, table
from docs.tools.results import read, version
from minipeft.accounting.shapes import PRESETS

DTYPES = ("float32", "bfloat16")


def steps(result_name: str) -> str:
    result = read(result_name)
    s, card, rows = result["settings"], result["card"], []
    for r in result["rows"]:
        step = [
            spread(r["step_ms"], 0 if r["step_ms"]["median"] > 100 else 1),
            ratio(r["against_peft"]), ratio(r["against_floor"])]
        saved = [f"{r['saved_bytes'] / 1e6:,.1f}", ratio(r["saved_against_peft"])]
        peak = f"{r['peak_bytes'] / 1e6:,.0f}" if r.get("peak_bytes") else "-"
        rows.append([name(r["method"]), r["rival"], *step, *saved, peak])
    versions = ", ".join(
        f"{library} {version(card, library)}" for library in ("torch", "peft", "transformers")
    )
    means = result["means"].items()
    means = "; ".join(
        f"{rival} {m['against_peft']:.2f} (saved {m['saved_against_peft']:.2f})"
        for rival, m in means
    )
    return "\n".join(
        [
            paragraph(
                f"*`{result['command'].split(' --out')[0]}`: batch {s['batch_size']} × "
                f"{s['seq_len']}, P {s['num_virtual_tokens']}, {s['dtype']},",
                f"{100 * s['supervised']:.0f} % of the targets supervised; {card['cores']} CPU "
                f"cores, {versions}.*",
            ),
            "",
            table(
                [
                    "method", "run by", "step ms (p10–p90)", "× peft", "× floor", "saved MB",
                    "× peft", "peak MB"],
                rows,
                left=2,
            ),
            "",
            paragraph(
                losses(result),
                "Geometric means over the methods, step (and saved for backward) against PEFT run "
                f"eagerly: {means}.",
            ),
        ]
    )


def losses(result: dict) -> str:
    """Difference between the losses of the two programs."""
    by: dict[str, list[float]] = {}
    for r in result["rows"]:
        by.setdefault(r["method"], []).append(r["loss"])
    most = max(max(its) - min(its) for its in by.values())
    power = math.floor(math.log10(most)) if most else 0
    return f"The first losses agree to {math.ceil(round(most / 10.0**power, 9)) * 10.0**power:.0e}."  # rounded up


def profile(result_name: str, unit: str) -> str:
    """Where the time of a step or token goes, and how much of PEFT's whole one our matmuls alone are."""
    rows, parts = read(result_name)["rows"], ("products", "attention", "rest")
    cells = [[name(r["method"]), r["rival"], *(f"{r[part]:,.1f}" for part in parts)] for r in rows]
    shares = [f"{ours['products'] / sum(theirs[part] for part in parts):.2f}"
              for ours, theirs in zip(rows[::2], rows[1::2], strict=True)]
    text = paragraph(f"The matmuls of minipeft alone take {', '.join(shares)} of PEFT's whole eager {unit}.")
    return "\n".join([table(["method", "run by", "matmuls ms", "fused attention ms", "the rest ms"], cells, left=2),
                      "", text])


def machine(card: dict) -> str:
    """The CPU of a result, and the versions."""
    known = [library for library in ("torch", "peft", "transformers") if library in card]
    versions = ", ".join(f"{library} {version(card, library)}" for library in known)
    kind = ", ".join(card[x] for x in ("generation", "instructions") if card.get(x))
    return f"{card['cores']} cores of an {card['device']} ({kind}), {versions}"


def generation() -> str:
    """One line for each number type, batch and program."""
    rows = []
    for dtype in DTYPES:
        result = read(f"generation-{dtype}")
        for r in result["rows"]:
            rows.append([dtype, r["rival"], r["B"], spread(r["token_ms"]), ratio(r["against_peft"]),
                         f"{result['floor_ms']:.1f}", f"{r['departures']} / {r['tokens']}"])
    s, new = result["settings"], result["rows"][0]["tokens"] // result["rows"][0]["B"]
    note = (f"*{s['base']}, a prefix of {s['num_virtual_tokens']}, {s['seq_len']} tokens read, {new} new ones;",
            f"{machine(result['card'])}.*")
    head = ["dtype", "run by", "B", "ms a token (p10–p90)", "× peft", "floor ms", "departures"]
    return f"{paragraph(*note)}\n\n{table(head, rows, 2)}"


def job() -> str:
    """One line for each method and program: 200 examples eagerly and compiled, then 2,000 shorter ones."""
    results = [read(f"job-smollm2{kind}") for kind in ("", "-compiled", "-2000")]
    rows = [[name(r["method"]), r["rival"], f"{r['steps']}", f"{r['train_s']:.1f}", ratio(r["against_peft"]),
             f"{r['load_s']:.1f}", f"{r['peak_bytes'] / 1e6:,.0f}", f"{r['start_loss']:.3f}", f"{r['loss']:.3f}"]
            for result in results for r in result["rows"]]
    s, of = results[0]["settings"], ", ".join(f"`{r['settings']['job']}`" for r in (results[0], results[2]))
    note = (f"*{s['base']}, {of} (E2E), {s['epochs']} epochs, steps of {s['batch_size']}, P {s['num_virtual_tokens']},",
            f"{s['dtype']}; {machine(results[0]['card'])}; after the first {len(results[0]['rows'])} rows",
            "a slower CPU of that name. × peft here: compiled rows against PEFT compiled.*")
    head = ["method", "run by", "steps", "train s", "× peft", "load s", "peak MB", "start", "loss"]
    return f"{paragraph(*note)}\n\n{table(head, rows, 2)}"


def rounding() -> str:
    """Errors of the first gradients, and how far rounding carries the soft prompts of two runs."""
    result = read("rounding-smollm2")
    ours, theirs, exact = (f"{error:.0e}" for error in result["first_gradients"].values())
    _, copy, peft = (r["distance"] for r in result["rows"])
    vocabulary = PRESETS[result["settings"]["base"].lower()].vocab_size
    losses = "end at losses of {:.3f} and {:.3f}, PEFT at {:.3f}.".format(*(r["loss"] for r in result["rows"]))
    return paragraph(
        "The soft prompt's final losses part by rounding, which training amplifies (`docs/tools/rounding.py`, a",
        f"job of {len(peft)} steps of {result['settings']['batch_size']}).",
        f"Of the first gradient's norm, minipeft is {ours}",
        f"from float64 and PEFT {theirs}; with the cross-entropy over {vocabulary:,} logits in float64, PEFT is",
        f"{exact} from it too. Relative to their norm, the prompts of minipeft and PEFT are {peft[0]:.0e} apart after",
        f"the first step and {peft[-1]:.0e} after the last; two runs of minipeft that start 1e-7 apart are",
        f"{copy[0]:.0e} and {copy[-1]:.0e} apart. These two {losses}")


def products() -> str:
    """One line for each number type, kind of work and weight."""
    result = read("matmul")
    rows = [[r["dtype"], r["work"], f"{r['rows']:,}", f"{r['K']:,} × {r['N']:,}", f"{r['torch_ms']:.3f}",
             ratio(r["onednn_ratio"]), ratio(r.get("reordered_ratio"))]
            for r in result["rows"] if r["K"] * r["N"] > 500_000]  # the largest kinds of weight
    head = ["dtype", "work", "rows", "weight", "torch ms", "oneDNN ×", "reordered ×"]
    slower = read("matmul-slower")["rows"]
    ratios = [r["onednn_ratio"] for r in slower if (r["dtype"], r["work"]) == ("float32", "training")]
    note = paragraph("On a slower CPU of that name, oneDNN takes",
                     f"{min(ratios):.2f} to {max(ratios):.2f} of torch's time in float32 training.")
    return f"*{machine(result['card'])}.*\n\n{table(head, rows, 2)}\n\n{note}"


BLOCKS = {
    **{f"peers-{name}": lambda name=name: steps(f"peers-{name}") for name in ("gpt2-float32", "gpt2-bfloat16", "nano")},
    "profile-nano": lambda: profile("profile-nano", "step"), "profile-job": lambda: profile("profile-job", "step"),
    "profile-generation": lambda: profile("profile-generation", "token"),
    "generation": generation, "job": job, "rounding": rounding, "products": products}
