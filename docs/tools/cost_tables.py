"""Tables of README.md and docs/costs.md: what each method costs, counted and measured.

tables.py fills them in.
"""

from docs.tools.comparison.tables import LETTERS
from docs.tools.markdown import fenced, name, paragraph, ratio, spread, table
from docs.tools.results import read, version
from minipeft import METHODS, PRESETS, accounting
from minipeft.bench import params

PRESET_NAMES = {"gpt2": "GPT-2", "nano": "nano"}
TRAINS = {
    "full": "every weight", "prompt": "P vectors before the token embeddings",
    "prefix": "P keys and P values in every attention",
    "lora": "a low-rank change of a matrix in every attention",
    "adapter": "a small network after attention and MLP of every block"}
PARAMETER_MATH = {  # method: formula of its trained parameters, and sizes
    ("soft prompt", "prompt"): ("P·C", dict(num_virtual_tokens=8)),
    ("hidden prefix", "prefix"): ("L·P·C", dict(num_virtual_tokens=8, space="hidden")),
    ("prefix", "prefix"): ("2·L·P·n_kv·hs", dict(num_virtual_tokens=8)),
    ("LLaMA-Adapter", "llama-adapter"): ("n·(P·C + nh)", dict(adapter_len=8)),
    ("LoRA", "lora"): ("r·(in + out)", dict(r=8)),
    ("bottleneck adapter", "adapter"): ("2·L·(2·C·m + m + C)", dict(bottleneck_size=8)),
    ("full fine-tuning", "full"): ("all", {})}


def size(row: dict) -> str:
    """The size of a row of bench.py's table, in the letters of the pages: P 8, r 8, m 8, K 10."""
    return next((f"{letter} {row[key]}" for key, letter in LETTERS.items() if key in row), "-")


def bench_rows(result: dict) -> list[dict]:
    """The rows of a result of bench.py; what is counted, not measured, as the code of today counts it."""
    config, rows = PRESETS[result["settings"]["preset"]], []
    base = accounting.base_parameters(config)
    for r in result["rows"]:
        sizes = {name: r[name] for name in METHODS[r["method"]].sizes() if name in r}
        trained = accounting.count(config, r["method"], **sizes).trained
        together = base + trained * METHODS[r["method"]].freezes_base
        rows.append(r | {"trained": trained, "percent": 100 * trained / together,
                         "adapter_bytes": accounting.adapter_bytes(config, r["method"], **sizes)})
    return rows


def setup(result: dict) -> str:
    """One line: shape, batch, and the machine of a result of bench.py."""
    s, card = result["settings"], result["card"]
    run = "compiled" if s["compile"] else "eager"
    return (
        f"{PRESET_NAMES[s['preset']]}'s shape, batch {s['batch_size']} × {s['seq_len']} tokens, "
        f"{s['dtype']}, {run}, "
        f"{card['cores']} CPU cores ({card['device']}), torch {version(card, 'torch')}"
    )


def costs() -> str:
    """README's cost table: GPT-2's shape, the shortest and the longest of each method that the article names."""
    bench = read("bench-gpt2")
    rows = [
        cost_row(r) for r in bench_rows(bench) if r["method"] in (*TRAINS, "llama-adapter") and size(r) != "P 32"
    ]
    head = [
        "method", "size", "trained", "adapter file", "saved for backward", "peak memory",
        "step × full", "forward × full"]
    return "\n".join(
        [
            table(head, rows),
            "",
            paragraph(
                f"*`{bench['command'].split(' --out')[0]}`, {bench['card']['cores']} CPU cores. "
                "Size: virtual tokens P, rank r,",
                "bottleneck width m, prompts K. Adapter file: safetensors. Saved for backward: "
                "tensors that autograd holds for it.*",
            ),
        ]
    )


def parameter_math() -> str:
    """Formulas of trained parameters and their values on two shapes, in the sizes of PARAMETER_MATH."""
    shapes = {name: PRESETS[name] for name in ("gpt2", "llama-3.2-1b")}
    rows = []
    for (label, method), (formula, sizes) in PARAMETER_MATH.items():
        counts = [accounting.count(c, method, **sizes).trained for c in shapes.values()]
        totals = [accounting.base_parameters(c) for c in shapes.values()]
        cells = [cell for n, total in zip(counts, totals, strict=True) for cell in (f"{n:,}", f"{100 * n / total:.3f}")]
        rows.append([label, formula, *cells])
    head = ["method", "trained parameters", "GPT-2", "%", "Llama-3.2-1B", "%"]
    return table(head, rows, left=2)


def megabytes(n: float | None) -> str:
    return "-" if n is None else f"{n / 1e6:,.0f} MB"


def file_size(n: int) -> str:
    return f"{n / 1e6:,.0f} MB" if n >= 1e7 else f"{n / 1e3:,.0f} KB"


def cost_row(r: dict) -> list[str]:
    sizes = [
        f"{r['trained']:,}", file_size(r["adapter_bytes"]), megabytes(r["saved_bytes"]),
        megabytes(r["peak_bytes"])]
    return [
        name(r["method"]), size(r), *sizes, ratio(r["step_against_full"]),
        ratio(r["forward_against_full"])]


def cost_sizes(result_name: str) -> str:
    rows = []
    for r in bench_rows(read(result_name)):
        sizes = [f"{r['trained']:,}", f"{r['percent']:.3f}", f"{r['adapter_bytes'] / 1e3:,.1f}"]
        memory = [
            f"{r[key] / 1e6:,.{d}f}" if r[key] else "-"
            for key, d in (("optimizer_bytes", 2), ("saved_bytes", 1), ("peak_bytes", 0))
        ]
        rows.append([name(r["method"]), size(r), *sizes, *memory])
    return table(
        [
            "method", "size", "trained", "% of both", "adapter KB", "optimizer MB", "saved MB",
            "peak MB"],
        rows,
    )


def cost_times(result_name: str) -> str:
    rows = []
    for r in read(result_name)["rows"]:
        step = spread(r["step_ms"]) if r["step_ms"] else "-"
        ratios = [ratio(r["step_against_full"]), ratio(r["step_against_floor"])]
        compiled = f"{r['compile_s']:.1f}" if r["compile_s"] else "-"
        forward = [f"{r['forward_ms']['median']:,.1f}", ratio(r["forward_against_full"])]
        rows.append([name(r["method"]), size(r), step, *ratios, *forward, compiled])
    return table(
        [
            "method", "size", "step ms (p10–p90)", "× full", "× floor", "forward ms", "× full",
            "compile s"],
        rows,
    )


def bench_block(result_name: str) -> str:
    result = read(result_name)
    head = paragraph(
        f"*`{result['command'].split(' --out')[0]}`: {setup(result)}, "
        f"{result['settings']['steps']} steps; large matmuls run at",
        f"{result['rate'] / 1e9:.0f} GFLOP/s.*",
    )
    return "\n\n".join([head, cost_sizes(result_name), cost_times(result_name)])


def article() -> str:
    """The output of `python bench.py params --model t5-xxl --method prompt --num-virtual-tokens 5`."""
    settings = params.ParamsSettings("t5-xxl", "prompt", {"num_virtual_tokens": 5}, 1000, 8, 128)
    return fenced(params.table(params.run(settings)))


BLOCKS = {"costs": costs, "parameter-math": parameter_math, "article": article,
          "bench-nano": lambda: bench_block("bench-nano"), "bench-gpt2": lambda: bench_block("bench-gpt2")}
