# freezing saves nothing
"""FLOPs of a step with a frozen base: what freezing saves, and what it does not."""


def step(L: int, C: int, V: int, B: int, T: int, P: int, frozen: bool) -> tuple[int, int]:
    """FLOPs of all matmuls of a training step of GPT-2's shape -> (forward, backward).

    P soft prompt vectors stand before the T tokens of each of B rows (0: none), and frozen=True trains them
    alone; frozen=False trains everything. A matmul (m, k) by (k, n) has 2·m·n·k.

        linears     12·C² weights a block, applied at P + T positions of each row; backward: dx, and dW if trained
        attention   scores and outputs, both 2·C for every pair of P + T queries and P + T keys (the masked half
                    included); backward: 5 matmuls of this size, as the kernel computes scores again
        head        V·C weights, at the T real tokens; backward as a linear
    """
    S = P + T
    linears, scores, head = L * 2 * B * S * 12 * C**2, L * 2 * B * S * S * C, 2 * B * T * V * C
    gradients = 1 if frozen else 2
    return linears + 2 * scores + head, gradients * (linears + head) + (2 if frozen else 5) * scores
