"""Tests of parameters.py, against the ledger of minipeft."""

from docs.exercises.harness import check
from minipeft import GPTConfig, accounting


def compare(answer, L, C, nh, n_kv, P, r, m):
    c = GPTConfig(n_layer=L, n_embd=C, n_head=nh, n_kv_head=n_kv)
    methods = {
        "prompt": ("prompt", dict(num_virtual_tokens=P)),
        "hidden prefix": ("prefix", dict(num_virtual_tokens=P, space="hidden")),
        "prefix": ("prefix", dict(num_virtual_tokens=P)),
        "lora": ("lora", dict(r=r)),
        "adapter": ("adapter", dict(bottleneck_size=m)),
        "llama-adapter": ("llama-adapter", dict(adapter_len=P, adapter_layers=L)),
    }
    kv, width = n_kv * C // nh, C + 2 * n_kv * C // nh
    mistakes = {
        "prompt": {L * P * C: "a prompt enters at the input only, so L is not in it"},
        "hidden prefix": {P * C: "it has vectors at the input of every block, so L is in it",
                          2 * L * P * C: "one vector a token and block, not a key and a value"},
        "prefix": {L * P * kv: "a key and a value: there is a 2 in it",
                   P * 2 * kv: "every block has its own: times L",
                   2 * L * P * C: "with grouped heads keys and values have n_kv·hs channels, not C"},
        "lora": {L * C * width: "that is the whole matrix: a pair of rank r has r·in + r·out",
                 L * r * C: "that is A alone; B has r·out more",
                 L * r * 2 * C: "out is C + 2·n_kv·hs, not C: queries, keys and values"},
        "adapter": {L * (2 * C * m + m + C): "every block has two, after attention and after the MLP",
                    2 * L * 2 * C * m: "the biases are missing: m below and C above"},
        "llama-adapter": {L * P * C: "the gates are missing: one for each of nh heads in every block",
                          L * (P * C + 1): "one gate a head, not one a block",
                          2 * L * P * C: "its vectors have C channels: the blocks' projections make keys and values"},
    }
    got = answer.parameters(L, C, nh, n_kv, P, r, m)
    for name, (method, h) in methods.items():
        check(name in got, f"there is no count for {name!r}")
        want = accounting.count(c, method, **h).trained
        hint = mistakes[name].get(got[name], "read its line in the docstring again")
        check(got[name] == want, f"{name}: {got[name]:,} is not {want:,}: {hint}")


def test_gpt2(answer):
    compare(answer, 12, 768, 12, 12, 8, 8, 8)


def test_grouped_heads(answer):
    compare(answer, 5, 48, 6, 2, 7, 3, 5)
