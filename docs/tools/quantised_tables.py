"""Tables of docs/quantised.md: a step on each base, and SmolLM2 tuned on each."""

from statistics import fmean

from docs.tools.markdown import name, paragraph, points_list, ratio, table
from docs.tools.peers_tables import machine
from docs.tools.quantised import DTYPES, LIKE
from docs.tools.results import read


def steps(result_name: str) -> str:
    """Bytes of a step on each base, and its time against that on bfloat16."""
    result = read(result_name)
    s = result["settings"]
    rows = [[r["base_dtype"], f"{r['bits']:.3f}", f"{r['weight_bytes'] / 1e6:,.1f}", f"{r['saved_bytes'] / 1e6:,.1f}",
             f"{r['peak_bytes'] / 1e6:,.0f}", ratio(r["peak_bytes"] / r["ledger_bytes"]), ratio(r["eager_ratio"]),
             ratio(r["compiled_ratio"])] for r in result["rows"]]
    assert all(r["weight_bytes"] == r["ledger_weight_bytes"] for r in result["rows"])
    note = (f"*{s['preset']}, {name(s['method'])}, P {s['num_virtual_tokens']}; batch {s['batch_size']} × "
            f"{s['seq_len']} tokens, {s['steps']} steps; {machine(result['card'])}.*")
    head = ["base in", "bits a weight", "base MB", "saved MB", "peak MB", "× ledger", "eager × bfloat16",
            "compiled × bfloat16"]
    return f"{paragraph(note)}\n\n{table(head, rows)}"


def logits() -> str:
    """Distance of the untuned bases' logits from float32."""
    rows = [[dtype, f"{r['base_bytes'] / 1e6:,.1f}", f"{r['relative_error']:.4f}", f"{r['kl']:.5f}",
             f"{100 * r['same_token']:.1f} %"] for dtype, r in read("quantised-smollm2")["logits"].items()]
    return table(["base in", "base MB", "error of the logits", "KL, nats", "same most likely token"], rows)


def of(runs: list[dict], method: str, dtype: str) -> list[dict]:
    return [r for r in runs if (r["method"], r["base_dtype"]) == (method, dtype)]


def bleu(r: dict) -> float:
    return r["answers"]["bleu"]


def tuned() -> str:
    """Every method on every base; of several seeds the mean and the range."""
    result = read("quantised-smollm2")
    runs, s, rows = result["runs"], result["settings"], []
    for method in dict.fromkeys(r["method"] for r in runs):
        for dtype in DTYPES:
            its = of(runs, method, dtype)
            scores, mean = [bleu(r) for r in its], lambda key, its=its: fmean(map(key, its))
            losses = [r["loss"][1] for r in its]
            scatter = f" ({min(scores):.1f}–{max(scores):.1f})" if len(scores) > 1 else ""
            of_loss = f" ({min(losses):.3f}–{max(losses):.3f})" if len(losses) > 1 else ""
            rows.append([name(method), dtype, f"{fmean(scores):.1f}{scatter}", f"{fmean(losses):.3f}{of_loss}",
                         f"{mean(lambda r: r['peak_bytes']) / 1e9:.2f}", f"{mean(lambda r: r['seconds']):.0f}"])
    note = (f"*{s['examples']} examples, {s['epochs']} epoch{'s' * (s['epochs'] > 1)}, {s['answers']} inputs answered; "
            f"{LIKE}: the mean and the range of {s['seeds']} seeds; {machine(result['card'])}.*")
    head = ["method", "base in", "BLEU", "loss", "peak GB", "seconds of training"]
    return f"{paragraph(note)}\n\n{table(head, rows, 2)}"


def verdict() -> str:
    """Where the quantised bases' BLEU and loss stand in the range of the seeds on bfloat16."""
    result, lines = read("quantised-smollm2"), []
    methods = list(dict.fromkeys(r["method"] for r in result["runs"]))
    for dtype in DTYPES:
        for method in dict.fromkeys(r["method"] for r in result["runs"]) if dtype != LIKE else ():
            seeds = [bleu(r) for r in of(result["runs"], method, LIKE)]
            (found,) = (bleu(r) for r in of(result["runs"], method, dtype))
            what = f"{dtype}, {name(method)}: BLEU {found:.1f},"
            if found < min(seeds):
                lines.append(f"{what} below the range of the seeds on {LIKE} by {min(seeds) - found:.1f}.")
            elif found > max(seeds):
                lines.append(f"{what} above the range of the seeds on {LIKE} by {found - max(seeds):.1f}.")
            else:
                lines.append(f"{what} within the range of the seeds on {LIKE}.")
        if dtype != LIKE:
            higher = [max(r["loss"][1] for r in of(result["runs"], m, LIKE))
                      < of(result["runs"], m, dtype)[0]["loss"][1] for m in methods]
            lines.append(f"{dtype}: the loss is above that range with {sum(higher)} of {len(methods)} methods.")
    spread = max(max(map(bleu, seeds)) - min(map(bleu, seeds)) for m in methods
                 if (seeds := of(result["runs"], m, LIKE)))
    lines.append(f"BLEU of {result['settings']['answers']} answers differs by up to {spread:.1f} between seeds: a "
                 "small loss of quality does not show in it.")
    return points_list(*lines)


BLOCKS = {
    "quantised-gpt2": lambda: steps("quantised-gpt2"),
    "quantised-llama-3.2-1b": lambda: steps("quantised-llama-3.2-1b"),
    "quantised-qwen3-0.6b": lambda: steps("quantised-qwen3-0.6b"),
    "quantised-logits": logits, "quantised-tuned": tuned, "quantised-verdict": verdict}
