# keys and values have n_kv·hs channels
"""Parameters of each method, counted on paper."""


def parameters(L: int, C: int, nh: int, n_kv: int, P: int, r: int, m: int) -> dict[str, int]:
    """Trained parameters of each method, all linears with biases, hs = C / nh:

        "prompt"          P vectors before the embeddings
        "hidden prefix"   P vectors at the input of every block
        "prefix"          keys and values of P tokens in every block; there are n_kv key heads and n_kv value heads
        "lora"            rank r beside every block's matrix for queries, keys and values: C to C + 2·n_kv·hs
        "adapter"         after attention and after the MLP of every block: down to m, up to C, both with biases
        "llama-adapter"   in every block P vectors with C channels, and a gate a head
    """
    kv = n_kv * C // nh
    return {
        "prompt": P * C,
        "hidden prefix": L * P * C,
        "prefix": 2 * L * P * C,
        "lora": L * r * (C + C + 2 * kv),
        "adapter": 2 * L * (C * m + m + m * C + C),
        "llama-adapter": L * (P * C + nh),
    }
