"""The loop: it resumes exactly, and its exact match is greedy decoding's."""

import pytest
import torch
from conftest import tiny

from minipeft import Error, adapt, generate
from minipeft.training import evaluate, learning_rate, train


def batch(step):
    g = torch.Generator().manual_seed(step)
    idx = torch.randint(97, (4, 10), generator=g)
    return idx[:, :-1], idx[:, 1:]


METHODS = [("prompt", {}), ("prefix", {}), ("prefix", dict(prefix_projection=True)), ("full", {})]


def fresh(name, h):
    base = tiny("rotary")
    torch.manual_seed(0)
    return adapt(base, name, **({} if name == "full" else dict(num_virtual_tokens=4)), **h)


def run(model, name, state, stop=None, resume=False, settings=None):
    def stopping(step):
        if step == stop:
            raise KeyboardInterrupt
        return batch(step)

    lr = 1e-3 if name == "full" else 0.02
    train(model, stopping, 20, lr, state=state, settings=settings or {"seed": 0}, resume=resume)


@pytest.mark.parametrize("name, h", METHODS)
def test_a_resumed_run_ends_bit_for_bit_like_an_uninterrupted_one(name, h, tmp_path):
    whole = fresh(name, h)
    run(whole, name, tmp_path / "a.pt")
    assert not (tmp_path / "a.pt").exists()  # finished: nothing is left to resume

    stopped = fresh(name, h)
    with pytest.raises(KeyboardInterrupt):
        run(stopped, name, tmp_path / "b.pt", stop=13)
    again = fresh(name, h)
    with torch.no_grad():
        for p in again.trainable_parameters():
            p.add_(1)  # what it starts from must not matter
    run(again, name, tmp_path / "b.pt", resume=True)
    for (k, p), (_, q) in zip(whole.named_trainable_parameters(), again.named_trainable_parameters(), strict=True):
        assert torch.equal(p, q), k


def test_a_state_that_is_missing_torn_or_of_another_run_is_refused(tmp_path):
    path = tmp_path / "state.pt"
    with pytest.raises(Error, match="nothing to resume"):
        run(fresh("prefix", {}), "prefix", path, resume=True)
    with pytest.raises(KeyboardInterrupt):
        run(fresh("prefix", {}), "prefix", path, stop=13)
    with pytest.raises(Error, match="its seed is 0, here it is 1"):
        run(fresh("prefix", {}), "prefix", path, resume=True, settings={"seed": 1})
    whole = path.read_bytes()
    with pytest.raises(Error, match="does not fit"):
        run(fresh("prompt", {}), "prompt", path, resume=True)
    for torn in (whole[: len(whole) // 2], b"", b"text"):
        path.write_bytes(torn)
        with pytest.raises(Error, match="torn"):
            run(fresh("prefix", {}), "prefix", path, resume=True)


def test_a_loss_that_is_not_finite_stops_the_run_with_a_line():
    model = fresh("full", {})
    with pytest.raises(Error, match=r"loss is (nan|inf) at step \d+: try a learning rate lower than 1e\+30"):
        train(model, batch, 20, 1e30)


def test_the_schedule_warms_up_and_comes_down():
    rates = [learning_rate(step, 100, 2.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.4) and rates[4] == pytest.approx(2.0) == max(rates)
    assert all(a >= b for a, b in zip(rates[5:], rates[6:], strict=False)) and 0.04 <= rates[-1] < 0.05


def test_adamw_takes_the_textbook_step():
    """One step of the loop on one batch, against Adam's first step computed by hand: lr · g / (|g| + ε), after clipping."""
    model = fresh("prompt", {})
    p = next(model.trainable_parameters())
    start, (idx, targets) = p.detach().clone(), batch(0)
    (g,) = torch.autograd.grad(model.loss(idx, targets), p)
    g = g * min(1.0, 1.0 / (g.norm().item() + 1e-6))
    train(model, batch, 1, 0.02)
    torch.testing.assert_close(p.detach(), start - 0.02 * g / (g.abs() + 1e-8), rtol=1e-4, atol=1e-6)


def test_exact_match_is_what_greedy_decoding_answers(idx):
    base = tiny("rotary")
    answers = generate(base, idx, 4)
    assert answers.shape == (3, 15)
    answers[1, 13] = (answers[1, 13] + 1) % 97  # one of three is made wrong
    targets = answers[:, 1:].clone()
    targets[:, :10] = -100
    loss, exact = evaluate(base, answers[:, :-1], targets, batch_size=2)
    assert exact == pytest.approx(2 / 3)
    logp = base(answers[:, :-1])[:, 10:].log_softmax(-1)
    assert loss == pytest.approx(-logp.gather(2, answers[:, 11:, None]).mean().item(), rel=1e-4)


def test_generation_stops_row_by_row(idx):
    base = tiny("rotary")
    free = generate(base, idx, 6)
    stop = free[0, 12].item()
    rows = generate(base, idx, 6, stop_token=stop)
    for row, whole in zip(rows, free, strict=True):
        new = whole[11:].tolist()
        end = new.index(stop) + 1 if stop in new else len(new)
        assert row[11 : 11 + end].tolist() == new[:end] and set(row[11 + end :].tolist()) <= {stop}
