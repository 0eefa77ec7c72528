"""None, nothing, zero, NaN, infinities and the largest numbers, at each argument of the public functions."""

import math
import sys

import pytest
import torch
from conftest import tiny

from minipeft import (
    Error,
    TaskBank,
    adapt,
    documents,
    fingerprint,
    generate,
    hidden_from_prompt,
    load_adapter,
    prefix_attention,
    prefix_from_hidden,
    prefix_from_prompt,
    prompt_from_tokens,
    vote,
)  # fmt: skip

IDS = torch.zeros(3, 11, dtype=torch.int64)
EXTREMES = [
    None, "", "x", [], [None], (), {}, object(), 0, -1, 0.5, 1.0, True, math.nan, math.inf, -math.inf, 2**31, 2**63,
    sys.float_info.max, torch.zeros(0), torch.tensor(math.nan), torch.full((3, 11), math.nan), IDS[:, :0],
    torch.full((3, 11), -1), torch.full((3, 11), 2**62),
]  # fmt: skip
NUMBERS = ["0", "0.5", "1.0", "True", "2147483648", "9223372036854775808", "1.7976931348623157e+308"]
base = tiny("learned")
prefixed = adapt(base, "prefix", num_virtual_tokens=2)
bank = TaskBank(base, {"a": prefixed})
q = torch.randn(3, 4, 5, 8)
LADDER = (prompt_from_tokens, hidden_from_prompt, prefix_from_hidden, prefix_from_prompt)


def attention(**given):
    return prefix_attention(**{"q": q, "k": q, "v": q, "prefix_k": q, "prefix_v": q} | given)


def on_copy(name, **given):
    return adapt(tiny("learned"), name, **given)(IDS)


CALLS = {  # a function of one argument: the values of EXTREMES that it takes
    "model": (lambda x: generate(x, IDS, 2), []),
    "idx": (lambda x: generate(base, x, 2), []),
    **{key: (lambda x, key=key: generate(base, IDS, **{"max_new_tokens": 2, "temperature": 1.0} | {key: x}), takes)
       for key, takes in {"max_new_tokens": ["0"], "temperature": ["None", *NUMBERS], "lengths": ["None"],
                          "top_k": ["None", "2147483648", "9223372036854775808"], "stop_token": ["None", "0"],
                          "top_p": ["None", "0.5", "1.0", "True"]}.items()},
    "base(idx)": (base, []),
    **{f"base({key})": (lambda x, key=key: base(IDS, **{key: x}), takes)
       for key, takes in {"prompt": ["None"], "prefix": ["None"], "hooks": ["None"]}.items()},
    "loss(idx)": (lambda x: prefixed.loss(x, IDS), []),
    "loss(targets)": (lambda x: prefixed.loss(IDS, x), []),
    "adapt(base)": (lambda x: adapt(x, "lora"), []),
    "adapt(name)": (lambda x: adapt(base, x), []),
    "tokens": (lambda x: on_copy("hard-prompt", tokens=x), []),
    "num_virtual_tokens": (lambda x: on_copy("prompt", num_virtual_tokens=x), ["None"]),
    "init": (lambda x: on_copy("prompt", init=x), []),
    "r": (lambda x: on_copy("lora", r=x), []),
    "lora_alpha": (lambda x: on_copy("lora", lora_alpha=x), ["0.5", "1.0", "2147483648", "9223372036854775808"]),
    "lora_dropout": (lambda x: on_copy("lora", lora_dropout=x), ["0", "0.5"]),
    "bottleneck_size": (lambda x: on_copy("adapter", bottleneck_size=x), []),
    "adapter_len": (lambda x: on_copy("llama-adapter", adapter_len=x), []),
    "adapter_layers": (lambda x: on_copy("llama-adapter", adapter_layers=x), ["None"]),
    "fingerprint": (fingerprint, []),
    "load_adapter(base)": (lambda x: load_adapter(x, "."), []),
    "bank(base)": (lambda x: TaskBank(x, {}), []),
    "bank(tasks)": (lambda x: TaskBank(base, x), ["{}"]),
    "bank.rows": (bank.rows, ["[None]"]),
    "bank(idx)": (lambda x: bank(x, ["a"] * 3), []),
    "vote(idx)": (lambda x: vote(bank, x, ["a"], 2), []),
    "vote(tasks)": (lambda x: vote(bank, IDS[:1], x, 2), ["[None]"]),
    **{f"{f.__name__}(base)": (lambda x, f=f: f(x, torch.tensor([1])), []) for f in LADDER},
    **{f"{f.__name__}(value)": (lambda x, f=f: f(base, x), []) for f in LADDER},
    **{f"attention({key})": (lambda x, key=key: attention(**{key: x}), takes)
       for key, takes in {"q": [], "k": [], "v": [], "prefix_k": [], "prefix_v": [], "gate": ["None"], "backend": [],
                          "prefix_length": ["None"], "length": ["None"], "prefix_bias": ["None"]}.items()},
    "document": (lambda x: documents.match(base, x, 3), []),
    "rows of a document": (lambda x: documents.match(base, torch.arange(9), x), []),
    **{f"prefix({key})": (lambda x, key=key: on_copy("prefix", num_virtual_tokens=2, **{key: x}), takes)
       for key, takes in {"key_bias": ["True"], "positions": ["None", "0"]}.items()},
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_extremes_are_taken_or_refused_in_one_line(name):
    call, takes = CALLS[name]
    taken = []
    for value in EXTREMES:
        try:
            call(value)
        except Error as e:
            assert "\n" not in str(e) and len(str(e)) < 300, e
        else:
            taken.append(repr(value))
    assert taken == takes
