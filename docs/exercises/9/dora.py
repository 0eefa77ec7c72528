"""DoRA: a weight's rows as length and direction (2402.09353, eq. 5)."""

from torch import Tensor


def merged(W: Tensor, A: Tensor, B: Tensor, alpha: float, m: Tensor) -> Tensor:
    """The weight W' (out, in) that DoRA amounts to:

        V = W + (α/r) · B A,     row i of W' = m_i · V_i / ‖V_i‖

    W (out, in), A (r, in), B (out, r), m (out,): the lengths of the rows of W'.
    """
    raise NotImplementedError("LoRA's V, the norm of each of its rows, then the lengths m")


def forward(x: Tensor, W: Tensor, A: Tensor, B: Tensor, alpha: float, m: Tensor) -> Tensor:
    """x (…, in) -> x W'ᵀ (…, out). In backward ‖V‖ counts as a constant (§4.3): detach it."""
    raise NotImplementedError("the same as a change of outputs: x Vᵀ, scaled by m and the norms, channel by channel")
