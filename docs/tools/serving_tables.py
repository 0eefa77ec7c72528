"""The table of docs/serving.md, from docs/results/serving.json.

tables.py fills them in.
"""

from docs.tools.cost_tables import PRESET_NAMES
from docs.tools.markdown import paragraph, ratio, spread, table
from docs.tools.results import read, version

SERVED = {
    "base": "the base", "prefix tasks": "prefixes, mixed", "lora tasks": "LoRA, mixed",
    "full copies": "full copies"}
SERVED |= {"shared": "one prefix, shared", "copied": "one prefix, copied for each row"}


def serving_table() -> str:
    result = read("serving")
    rows = []
    for r in result["rows"]:
        throughput = [f"{r['tokens_per_s']:,.0f}", ratio(r["against_base"])]
        memory = f"{r['extra_bytes'] / 1e6:,.0f}"
        rows.append(
            [
                SERVED[r["kind"]], r["n"] or "-", f"{r['P']:,}" if r["P"] else "-",
                spread(r["step_ms"]), f"{r['floor_ms']:,.1f}", *throughput, memory])
    s = result["settings"]
    left_out = "; ".join(
        f"{SERVED[r['kind']]}, {r['n'] or format(r['P'], ',')}: {r['bytes_needed'] / 1e9:.1f} GB"
        for r in result["left_out"]
    )
    head = [
        "served", "tasks", "P", "ms a token (p10–p90)", "floor ms", "tokens/s", "× base",
        "above base MB"]
    return "\n".join(
        [
            paragraph(
                f"*`{result['command'].split(' --out')[0]}`: {PRESET_NAMES[s['preset']]}'s shape, "
                f"batch {s['batch_size']}, prompts of {s['seq_len']}",
                f"tokens, {s['steps']} tokens timed; {result['card']['cores']} CPU cores, torch "
                f"{version(result['card'], 'torch')}.*",
            ),
            "",
            table(head, rows),
            "",
            paragraph(
                serving_ratios(result),
                f"Not measured, because of the memory it would take: {left_out}.")])


def serving_ratios(result: dict) -> str:
    base, *shared = (r for r in result["rows"] if r["kind"] == "base" or (r["kind"] == "shared" and r["P"] > 1000))
    ms = {(r["P"], key): r[key] for r in shared for key in ("step_ms", "floor_ms")}
    cost = 100 * (1 - base["step_ms"]["median"] / ms[1024, "step_ms"]["median"])
    least = 100 * (1 - base["floor_ms"] / ms[1024, "floor_ms"])
    long = ms[16384, "step_ms"]["median"] / ms[1024, "step_ms"]["median"]
    at = {(r["of"], r["to"], r["what"]): r["value"] for r in result["ratios"]}
    mixed = [at[f"64 {kind} tasks mixed", "one", "throughput"] for kind in ("prefix", "lora")]
    copies = at["8 prefix tasks mixed", "8 full copies", "throughput"]
    speed, memory = (
        at["a shared prefix of 1,024", "copies of it", what]
        for what in ("speed of the attention alone", "extra memory"))
    return (
        f"64 tasks mixed have {mixed[0]:.2f} (prefixes) and {mixed[1]:.2f} (LoRA) of the "
        f"throughput of one; 8 prefixes mixed have {copies:.1f} × "
        f"that of 8 full copies. The attention alone over a shared prefix of 1,024 is {speed:.1f} "
        f"× as fast as over copies, with {memory:.2f} of "
        f"their extra memory. A shared prefix of 1,024 costs {cost:.0f} % of the base's throughput; at the speed of "
        f"large matmuls, the floor, it would be {least:.0f} %. One of 16,384 takes {long:.1f} × the time of one of "
        f"1,024, by the floors {ms[16384, 'floor_ms'] / ms[1024, 'floor_ms']:.1f} ×.")


BLOCKS = {"serving": serving_table}
