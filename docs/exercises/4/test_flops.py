"""Tests of flops.py, against the ledger of minipeft."""

from docs.exercises.harness import check
from minipeft import GPTConfig, accounting

L, C, V, B, T = 3, 16, 50, 2, 12
CONFIG = GPTConfig(vocab_size=V, block_size=64, n_layer=L, n_head=4, n_embd=C)


def counts(P):
    S = P + T
    return L * 2 * B * S * 12 * C**2, L * 2 * B * S * S * C, 2 * B * T * V * C


def test_full_fine_tuning(answer):
    forward, backward = answer.step(L, C, V, B, T, 0, False)
    want = accounting.flops(CONFIG, "full", B, T)
    linears, scores, head = counts(0)
    check(2 * forward != want.forward, "forward is half of what it should be: a multiplication and an addition are 2")
    check(forward != want.forward - head, "forward: the head is missing, V·C weights at every real token")
    check(forward != want.forward - scores, "forward: attention has two matmuls, scores and outputs")
    check(forward == want.forward, f"forward: {forward:,} is not {want.forward:,}")
    check(backward != want.backward - scores, "backward: attention has 5 matmuls: the scores are computed again")
    check(backward == want.backward, f"backward: {backward:,} is not {want.backward:,}: dx and dW of every linear")


def test_a_soft_prompt_on_a_frozen_base(answer):
    P = 5
    forward, backward = answer.step(L, C, V, B, T, P, True)
    want = accounting.flops(CONFIG, "prompt", B, T, num_virtual_tokens=P)
    (linears, scores, head), (fewer, less, _) = counts(P), counts(0)
    check(forward != fewer + 2 * less + head, "forward: the blocks work on P + T positions, not on T")
    check(forward != want.forward + 2 * B * P * V * C, "forward: the head runs at the T real tokens only")
    check(forward == want.forward, f"forward: {forward:,} is not {want.forward:,}")
    check(backward != 0 and backward > scores, "backward: frozen weights have no dW, but the gradient passes through "
          "every block to reach the prompt: dx stays")
    check(backward != 2 * (linears + head) + 5 * scores, "backward: frozen linears have no dW: one matmul, not two")
    check(backward != linears + head + 2 * scores, "backward: attention holds no weights, so freezing saves nothing "
          "there: 5 matmuls, frozen or not")
    check(backward == want.backward, f"backward: {backward:,} is not {want.backward:,}")
