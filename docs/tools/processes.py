"""The tables of docs/processes.md: bytes that a step sends, by closed form."""

from minipeft import PRESETS
from minipeft.accounting import bytes_per_step, count

WAYS = {  # name in the table: method, its hyper-parameters, how the base is held
    "`prompt`, P = 20": ("prompt", dict(num_virtual_tokens=20), {}),
    "`prefix`, P = 20": ("prefix", dict(num_virtual_tokens=20), {}),
    "`lora`, r = 8": ("lora", dict(r=8), {}),
    "`prefix`, P = 20, `--shard-base` (bfloat16)": (
        "prefix",
        dict(num_virtual_tokens=20),
        dict(shard_base=True, base_bytes=2),
    ),
    "`full` (FSDP2)": ("full", {}, dict(full=True)),
    "every gradient by DDP, to compare": ("full", {}, {}),  # not offered
}


def size(n: float) -> str:
    if n >= 1e9:
        return f"{n / 1e9:,.2f} GB"
    return f"{n / 1e6:,.2f} MB" if n >= 1e6 else f"{n / 1e3:,.1f} KB"


def table(preset: str) -> str:
    """The bytes that each way of training hands to collectives and sends in a step."""
    config = PRESETS[preset]
    rows = [
        "| method | trained | handed to collectives | sent, N = 2 | sent, N = 8 |",
        "|---|---|---|---|---|",
    ]
    for name, (method, h, how) in WAYS.items():
        trained = count(config, method, **h).trained
        two, eight = (bytes_per_step(config, trained, n, **how) for n in (2, 8))
        sizes = [size(sum(two)), size(two.sent(2)), size(eight.sent(8))]
        rows.append(f"| {name} | {trained:,} | {' | '.join(sizes)} |")
    return "\n".join(rows)
