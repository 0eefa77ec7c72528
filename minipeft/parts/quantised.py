"""A frozen base in 8 or 4 bits: only the matrices of the blocks' linears, as in QLoRA (Dettmers et
al. 2023, 2305.14314 §3). Embeddings, head, norms and biases stay in bfloat16, in which the base
computes.

    int8   w = s q / 127            s = max |w| of its row (2208.07339 §3.1)           8 + 32 / K bits a weight
    nf4    w = s NF4[q]             s = max |w| of its block of 64, itself in 8 bits:
           s = t DYNAMIC[c] + m     t = max |s - m| of 256 blocks, m = mean of all s    4 + 8 / 64 + 32 / (64 · 256)

NF4 has 16 quantiles of a normal distribution. Forward and backward (dx = dy W) dequantise some rows
of W at a time and drop them after the matmul, so a quantised linear saves nothing for backward.
Codes are those of bitsandbytes.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import Error
from ..runtime.matmul import matmul_dtype, product
from ..runtime.memory import give_back_freed

QUANTISED = ("int8", "nf4")
BLOCK, SCALES_AT_ONCE = 64, 256  # weights that share a scale; scales that share one of their own
PIECE = 2**19  # weights dequantised at a time: few enough to stay in the CPU's cache
NF4 = torch.tensor([  # QLoRA, appendix E
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], dtype=torch.float32)
PAIRS = torch.cartesian_prod(NF4, NF4).view(torch.int64).flatten()  # by byte: both values, two float32 as one int64
# dynamic 8-bit floats (1511.04561 §2.2): exponent e - 6 has 2**e fractions
EDGES = [torch.linspace(0.1, 1, 2**e + 1, dtype=torch.float32) for e in range(7)]
POSITIVE = torch.cat([10.0 ** (e - 6) * ((x[:-1] + x[1:]) / 2) for e, x in enumerate(EDGES)])
DYNAMIC = torch.cat([POSITIVE, -POSITIVE, torch.tensor([0.0, 1.0], dtype=torch.float32)]).sort().values


def nearest_codes(x: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """x (n, block) -> uint8 indices of `table`'s entries nearest x / scale; scales max |x| (n,)."""
    scale = x.abs().amax(1)
    middles = ((table[1:] + table[:-1]) / 2).to(x.device)
    return torch.bucketize(x * (1 / scale.clamp(min=1e-38))[:, None], middles, out_int32=True).to(torch.uint8), scale


@torch.no_grad()
def quantise(weight: Tensor, kind: str) -> dict[str, Tensor]:
    """weight (N, K) -> integer tensors, int8: codes (N, K), scales (N,); nf4, n blocks: codes (n,
    32), scales (n,), own_scales (⌈n / 256⌉,), mean (1,). float32 scales as their bits, so that
    .to(dtype) leaves them as they are."""
    if kind == "int8":
        scales = weight.abs().amax(1).float()
        steps = (127 / scales.clamp(min=1e-38))[:, None]
        codes = [(w * s).round().to(torch.int8) for w, s in zip(weight.split(1024), steps.split(1024), strict=True)]
        return {"codes": torch.cat(codes), "scales": scales.view(torch.int32)}
    blocks = F.pad(weight.flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
    codes, scales = zip(*(nearest_codes(x.float(), NF4) for x in blocks.split(PIECE // BLOCK)), strict=True)
    codes, scales = torch.cat([x[:, 0::2] << 4 | x[:, 1::2] for x in codes]), torch.cat(scales)
    mean, n = scales.mean().view(1), len(scales)
    of_scales, own = nearest_codes(F.pad(scales - mean, (0, -n % SCALES_AT_ONCE)).view(-1, SCALES_AT_ONCE), DYNAMIC)
    return {"codes": codes, "scales": of_scales.flatten()[:n].clone(), "own_scales": own.view(torch.int32),
            "mean": mean.view(torch.int32)}


def pieces(tensors: list[Tensor], shape: list[int],
           dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
    """Yield (index of the first row, some rows of the dequantised weight in `dtype`)."""
    (codes, scales, *double), (N, K) = tensors, shape
    if double:
        own, mean = (x.view(torch.float32) for x in double)
        scales = DYNAMIC.to(codes.device)[scales.int()] * own.repeat_interleave(SCALES_AT_ONCE)[: len(scales)] + mean
    else:
        scales = scales.view(torch.float32) / 127
    step = max(1, PIECE // K // BLOCK) * BLOCK  # so many rows are whole blocks
    for a in range(0, N, step):
        b = min(a + step, N)
        if double:
            these = slice(a * K // BLOCK, -(-b * K // BLOCK))
            values = PAIRS.to(codes.device).index_select(0, codes[these].flatten().int()).view(torch.float32)
            rows = values.view(-1, BLOCK).mul_(scales[these, None]).flatten()[: (b - a) * K].view(b - a, K)
        else:
            rows = codes[a:b] * scales[a:b, None]
        yield a, rows.to(dtype)


@torch.library.custom_op("minipeft::quantised_product", mutates_args=())
def quantised_product(x: Tensor, tensors: list[Tensor], shape: list[int],
                      transposed: bool) -> Tensor:
    """x (…, K) -> x Wᵀ (…, N); transposed: x (…, N) -> x W (…, K); W (N, K) in x's dtype. Opaque to torch.compile."""
    rows, wide = x.flatten(0, -2), torch.promote_types(x.dtype, torch.float32)
    y = rows.new_zeros(len(rows), shape[int(transposed)], dtype=wide if transposed else x.dtype)
    for first, w in pieces(tensors, shape, x.dtype):
        if transposed:
            y += product(rows[:, first : first + len(w)], w.t())
        else:
            y[:, first : first + len(w)] = product(rows, w)
    return y.to(x.dtype).view(*x.shape[:-1], -1)


@quantised_product.register_fake
def _(x, tensors, shape, transposed):
    return x.new_empty(*x.shape[:-1], shape[int(transposed)])


def _save_for_backward(ctx, inputs, output):
    _, tensors, ctx.shape, ctx.transposed = inputs
    ctx.save_for_backward(*tensors)  # the base's own
    give_back_freed(output)


def _backward(ctx, dy):
    tensors = ctx.saved_tensors
    give_back_freed(dy)
    return quantised_product(dy, tensors, ctx.shape, not ctx.transposed), [None] * len(tensors), None, None


quantised_product.register_autograd(_backward, setup_context=_save_for_backward)


class QuantisedLinear(nn.Module):
    """y = x Wᵀ + b. Its parameters are b and the tensors of `quantise`, which nothing trains."""

    def __init__(self, tensors: dict[str, Tensor], shape: tuple[int, int], bias: Tensor | None):
        super().__init__()
        self.shape, self.names, self.bias = list(shape), list(tensors), bias
        for name, t in tensors.items():
            self.register_parameter(name, nn.Parameter(t, requires_grad=False))

    @property
    def weight(self) -> Tensor:
        raise Error("a quantised weight cannot be changed: load the adapter onto the unquantised base to merge it")

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(matmul_dtype(x))
        y = quantised_product(x, [getattr(self, name) for name in self.names], self.shape, False)
        return y if self.bias is None else y + self.bias.to(y.dtype)
