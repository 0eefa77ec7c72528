"""Bytes of a base's weights, in one dtype or with its blocks' matrices quantised (quantised.py)."""

from ..checks import one_of
from ..config import GPTConfig, linears
from ..formulas.terms import Size, Term, round_up, total
from ..parts.quantised import BLOCK, QUANTISED, SCALES_AT_ONCE
from .parameters import base_parameters, check_gpt

BYTES = {"float32": 4, "bfloat16": 2, "int8": 2, "nf4": 2}  # of a parameter that is in no quantised matrix


def base_weight_bytes(c: GPTConfig, base_dtype: str = "float32") -> int:
    """Bytes of a base's weights in "float32", "bfloat16", "int8" or "nf4".

    Quantised are the matrices of the blocks' linears, everything else is bfloat16 (of a matrix:
    `matrix_bytes`). NF4 takes 33 / 64 + 4 / (64 · 256) bytes a weight, 4.127 bits, and 4 bytes a
    matrix.
    """
    one_of("base_dtype", base_dtype, BYTES)
    check_gpt(c)
    return total(base_terms(c, base_parameters(c), BYTES[base_dtype], base_dtype if base_dtype in QUANTISED else None))


def matrix_bytes(kind: str, n_in: Size, n_out: Size) -> Size:
    """Bytes of a quantised matrix with n = n_in·n_out elements:

        int8   n + 4·n_out                              codes, the scale of each row
        nf4    33·blocks + 4·⌈blocks / 256⌉ + 4         blocks = ⌈n / 64⌉ of 32 bytes of codes and a scale of one;
                                                        the scales' own scales; their mean
    """
    n = n_in * n_out
    if kind == "int8":
        return n + 4 * n_out
    blocks = round_up(n, BLOCK) // BLOCK
    return (BLOCK // 2 + 1) * blocks + 4 * (round_up(blocks, SCALES_AT_ONCE) // SCALES_AT_ONCE) + 4


def base_terms(c: GPTConfig, base: Size, b: int, quantised: str | None = None) -> list[Term]:
    """Bytes of `base` parameters at b each; quantised: "int8" or "nf4", of the blocks' matrices."""
    if quantised is None:
        return [Term("base", b * base)]
    sizes = linears(c)
    matrices = c.n_layer * sum(n_in * n_out for n_in, n_out in sizes.values())
    return [Term("base outside the matrices", b * (base - matrices)),
            *(Term(f"{name} in {quantised}", matrix_bytes(quantised, *sizes[name]), c.n_layer) for name in sizes)]
