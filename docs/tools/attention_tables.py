"""Tables of docs/attention.md, from docs/results/attention*.json and waiting.json.

tables.py fills them in.
"""

from statistics import geometric_mean

from docs.tools.markdown import paragraph, ratio, table
from docs.tools.results import read

WORKS = {
    "nano": "training step, nano, eager", "step": "training step, SmolLM2-135M, eager",
    "generation": "generation with SmolLM2-135M", "sdpa": "attention, `sdpa`, both passes",
    "fused": "attention, `fused`, both passes"}
WAITING = {(0, "spin"): "alone, spin", (0, "sleep"): "alone, sleep", (1, "spin"): "beside one, spin",
           (1, "sleep"): "beside one, sleep"}


def shape(r: dict) -> str:
    return f"{r['B']} × {r['nh']} × {r['T']}, P {r['P']}, hs {r['hs']}"


def by_shape(result_name: str) -> dict[tuple[str, str], dict[str, dict]]:
    """{(dtype, shape): {backend: its row}}."""
    by: dict[tuple[str, str], dict[str, dict]] = {}
    for r in read(result_name)["rows"]:
        by.setdefault((r["dtype"], shape(r)), {})[r["backend"]] = r
    return by


def best_sdpa(its: dict[str, dict], times: str) -> float:
    """Milliseconds of the fastest SDPA of one shape: eager, or compiled where that was measured."""
    return min(r[times]["median"] for backend, r in its.items() if backend.startswith("sdpa"))


def against_sdpa(its: dict[str, dict], backend: str, times: str = "ms") -> float:
    return its[backend][times]["median"] / best_sdpa(its, times)


def attention_table() -> str:
    """Each shape in one line: textbook and fused kernel against torch's operator."""
    result, rows, ratios = read("attention"), [], {}
    for (dtype, its_shape), its in by_shape("attention").items():
        times = [
            ratio(against_sdpa(its, "reference")), ratio(against_sdpa(its, "fused", "forward_ms")),
            ratio(against_sdpa(its, "fused"))]
        saved = [f"{its[x]['saved_bytes'] / 1e6:.1f}" for x in ("sdpa", "fused")]
        rows.append([dtype, its_shape, f"{best_sdpa(its, 'ms'):.1f}", *times, *saved])
        ratios.setdefault(dtype, []).append(against_sdpa(its, "fused"))
    head = [
        "dtype", "B × nh × T, P, hs", "sdpa ms", "textbook ×", "fused forward ×", "fused ×",
        "sdpa saved MB", "fused saved MB"]
    means = ", ".join(f"{geometric_mean(its):.2f} in {dtype}" for dtype, its in ratios.items())
    errors = {
        dtype: max(r["error"] for r in result["rows"] if r["dtype"] == dtype) for dtype in ratios}
    worst = ", ".join(f"{error:.0e} in {dtype}" for dtype, error in errors.items())
    growth = "; ".join(
        f"{g['time']:.2f} × the time for {g['flops']:.2f} × the operations with P {g['P']} in "
        f"{g['dtype']}"
        for g in result["growth"]
    )
    text = paragraph(
        f"Geometric mean of *fused ×*: {means}. Largest relative error of any backend against "
        f"float64: {worst}. The fused kernel with a",
        f"prefix against without, at 4 × 12 × 512: {growth}.",
    )
    return "\n".join([table(head, rows, left=2), "", text])


def short_attention() -> str:
    """Fused over sdpa at the short shapes, forward and backward."""
    return table(
        ["dtype", "B × nh × T, P, hs", "fused ×"],
        [[*key, ratio(against_sdpa(its, "fused"))] for key, its in by_shape("attention-short").items()], left=2)


def busy_attention() -> str:
    """Ratios of auto to the faster sdpa, alone and beside a busy process."""
    result, rows = read("attention-beside"), []
    parts = {"alone, spin": result, "beside one, sleep": result["beside"],
             "beside one, spin": result["beside_spinning"]}
    for where, part in parts.items():
        for r in part["ratios"]:
            if r["backend"] == "auto":
                cells = [f"{r[mean]:.2f} ({r[worst]:.2f})"
                         for mean, worst in (("forward_mean", "forward_worst"), ("mean", "worst"))]
                rows.append([r["dtype"], where, *cells])
    rows.sort(key=lambda row: row[0], reverse=True)
    return table(["dtype", "measured", "forward ×", "forward and backward ×"], rows, left=2)


def waiting_table() -> str:
    """Threads that spin and that sleep while they wait, alone and beside a busy process; and attention's operators."""
    by = {WAITING[r["beside"], r["waiting"]]: r for r in read("waiting")["rows"]}
    rows = [[name, *(f"{r['ms'][work]:,.0f}" for r in by.values())] for work, name in WORKS.items()]
    for backend in ("sdpa", "fused"):
        longest = next(iter(by.values()))["operators"][backend][0]
        name, calls = longest["name"].removeprefix("aten::").strip("_"), longest["calls"]
        times = [next(o["ms"] for o in r["operators"][backend] if o["name"] == longest["name"]) for r in by.values()]
        rows.append([f"of `{backend}`: {calls:.0f} × `{name}`", *(f"{ms:,.0f}" for ms in times)])
    return table(["milliseconds", *by], rows, left=1)


BLOCKS = {"attention": attention_table, "attention-short": short_attention, "attention-beside": busy_attention,
          "waiting": waiting_table}
