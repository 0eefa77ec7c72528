"""Tables of generation, of whole jobs and of products with a weight: minipeft beside what others take."""

import textwrap
from collections.abc import Callable

from docs.tools.results import read, version

DTYPES = ("float32", "bfloat16")


def machine(card: dict) -> str:
    """The CPU of a result, and the versions."""
    known = [library for library in ("torch", "peft", "transformers") if library in card]
    versions = ", ".join(f"{library} {version(card, library)}" for library in known)
    return f"{card['cores']} cores of an {card['device']} ({card['instructions']}), {versions}"


def markdown(head: list[str], rows: list[list[str]], left: int) -> str:
    lines = [head, ["---"] * left + ["---:"] * (len(head) - left), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def generation() -> str:
    """One line for each number type, batch and program."""
    rows = []
    for dtype in DTYPES:
        result = read(f"generation-{dtype}")
        for r in result["rows"]:
            ms = r["token_ms"]
            rows.append([dtype, r["rival"], str(r["B"]), f"{ms['median']:.1f} ({ms['p10']:.1f}–{ms['p90']:.1f})",
                         f"{r['against_peft']:.2f}", f"{result['floor_ms']:.1f}", f"{r['departures']} / {r['tokens']}"])
    s = result["settings"]
    note = (f"*SmolLM2-135M, a prefix of {s['num_virtual_tokens']}, {s['seq_len']} tokens read, 48 new ones; "
            f"{machine(result['card'])}.*")
    head = ["dtype", "run by", "B", "ms a token (p10–p90)", "× peft", "floor ms", "departures"]
    return f"{textwrap.fill(note, 116)}\n\n{markdown(head, rows, 2)}"


def job(name: Callable[[str], str]) -> str:
    """One line for each method, by its name in tables, and program."""
    result = read("job-smollm2")
    rows = [[name(r["method"]), r["rival"], f"{r['train_s']:.1f}", f"{r['against_peft']:.2f}", f"{r['load_s']:.1f}",
             f"{r['peak_bytes'] / 1e6:,.0f}", f"{r['start_loss']:.3f}", f"{r['loss']:.3f}"] for r in result["rows"]]
    s = result["settings"]
    note = (f"*SmolLM2-135M, 200 of E2E's texts, {s['epochs']} epochs, {result['rows'][0]['steps']} steps of "
            f"{s['batch_size']}, P {s['num_virtual_tokens']}, {s['dtype']}; {machine(result['card'])}.*")
    head = ["method", "run by", "train s", "× peft", "load s", "peak MB", "start", "loss"]
    return f"{textwrap.fill(note, 116)}\n\n{markdown(head, rows, 2)}"


def products() -> str:
    """One line for each number type, kind of work and weight."""
    result = read("matmul")
    rows = [[r["dtype"], r["work"], f"{r['rows']:,}", f"{r['K']:,} × {r['N']:,}", f"{r['torch_ms']:.3f}",
             f"{r['onednn_ratio']:.2f}", f"{r['reordered_ratio']:.2f}" if "reordered_ratio" in r else "-"]
            for r in result["rows"] if r["K"] * r["N"] > 500_000]  # the largest kinds of weight
    head = ["dtype", "work", "rows", "weight", "torch ms", "oneDNN ×", "reordered ×"]
    return f"*{machine(result['card'])}.*\n\n{markdown(head, rows, 2)}"


BLOCKS = {"generation": generation, "products": products}
