"""The loop: it resumes exactly, and its exact match is greedy decoding's."""

import pytest
import torch
from conftest import tiny

import minipeft
from minipeft import GPT, Error, GPTConfig, adapt, generate
from minipeft.evaluation import evaluate
from minipeft.training import learning_rate, train


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


def test_the_schedule_warms_up_and_comes_down():
    rates = [learning_rate(step, 100, 2.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.4) and rates[4] == pytest.approx(2.0) == max(rates)
    assert all(a >= b for a, b in zip(rates[5:], rates[6:], strict=False)) and 0.04 <= rates[-1] < 0.05


class Slope(torch.nn.Module):
    """A model of one vector and a gradient of our choosing, with noise from torch's generator when asked for."""

    def __init__(self, noise: float = 0.0):
        super().__init__()
        self.x, self.noise = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0])), noise

    def named_trainable_parameters(self):
        return self.named_parameters()

    def parameter_groups(self, lr):
        return [{"params": [self.x], "lr": lr}]

    def loss(self, idx, targets):
        return (self.x * (idx + self.noise * torch.randn(3))).sum()


def test_a_loss_that_is_not_finite_stops_the_run_with_a_line():
    with pytest.raises(Error, match=r"came apart at step \d+ .loss (nan|inf).: try a learning rate below 1e\+30"):
        train(fresh("full", {}), batch, 20, 1e30)


def test_a_last_step_that_ruins_the_weights_is_noticed_though_its_loss_was_finite():
    class Cliff(Slope):
        def loss(self, idx, targets):
            return (self.x - self.x.detach()).sqrt().sum()  # 0, with an infinite slope

    with pytest.raises(Error, match="came apart at step 1 .loss 0."):
        train(Cliff(), batch, 1, 0.1)


def test_steps_are_adams_on_clipped_gradients():
    """Four steps against Kingma & Ba 2015, algorithm 1, written out; some gradients are above norm 1, some below."""
    gradients = torch.tensor([[3.0, 0.0, -4.0], [0.1, 0.2, 0.3], [-6.0, 8.0, 0.0], [0.5, 0.5, 0.5]])
    model, x = Slope(), torch.tensor([1.0, -2.0, 3.0])
    train(model, lambda step: (gradients[step], gradients[step]), 4, 0.1)
    m, v = torch.zeros(3), torch.zeros(3)
    for t, g in enumerate(gradients, 1):
        g = g / max(1.0, g.norm().item())
        m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g**2
        x = x - learning_rate(t - 1, 4, 0.1) * (m / (1 - 0.9**t)) / ((v / (1 - 0.98**t)).sqrt() + 1e-8)
    torch.testing.assert_close(model.x.detach(), x, rtol=1e-5, atol=1e-6)


def test_every_part_of_a_combination_learns_at_its_own_rate():
    """Adam's first step is the rate itself, up or down, wherever there is a gradient."""
    model = adapt(tiny(), ["lora", "prefix"], r=2, num_virtual_tokens=3)
    idx = torch.randint(97, (2, 9))
    prefix, lora = model.method.parts()
    before = {part.name: [p.detach().clone() for p in part.parameters()] for part in (prefix, lora)}
    train(model, lambda step: (idx, idx.roll(-1, 1)), 1)
    for part in (prefix, lora):
        steps = torch.cat([(p.detach() - x).abs().flatten() for p, x in zip(part.parameters(), before[part.name], strict=True)])
        assert steps.max() == pytest.approx(part.learning_rate, rel=1e-2)
    assert prefix.learning_rate != lora.learning_rate


def test_a_wide_base_is_tuned_at_its_own_default_rate():
    def rate(C: int, name: str, *lr) -> float:
        base = GPT(GPTConfig(vocab_size=11, block_size=16, n_layer=1, n_head=2, n_embd=C))
        return adapt(base, name).parameter_groups(*lr)[0]["lr"]

    for name, method in minipeft.METHODS.items():
        if name != "hard-prompt":
            assert (rate(32, name), rate(512, name)) == (method.learning_rate, method.learning_rate_wide)
            assert method.learning_rate > method.learning_rate_wide > 0 and rate(512, name, 0.5) == 0.5


def test_a_resumed_run_draws_the_same_random_numbers(tmp_path):
    def run(stop=None, resume=False):
        torch.manual_seed(3)
        model = Slope(noise=1.0)

        def one(step):
            if step == stop:
                raise KeyboardInterrupt
            return torch.ones(3), torch.ones(3)

        train(model, one, 20, 0.1, state=tmp_path / "state.pt", settings={}, resume=resume)
        return model.x

    whole = run()
    with pytest.raises(KeyboardInterrupt):
        run(stop=13)
    assert torch.equal(run(resume=True), whole)


def test_exact_match_is_what_greedy_decoding_answers(idx):
    base = tiny("rotary")
    answers = generate(base, idx, 4)
    assert answers.shape == (3, 15)
    answers[1, 13] = (answers[1, 13] + 1) % 97  # one of three is made wrong
    targets = answers[:, 1:].clone()
    targets[:, :10] = -100
    loss, exact = evaluate(base, zip(answers[:, :-1].split(2), targets.split(2), strict=True))
    assert exact == pytest.approx(2 / 3)
    logp = base(answers[:, :-1])[:, 10:].log_softmax(-1)
    assert loss == pytest.approx(-logp.gather(2, answers[:, 11:, None]).mean().item(), rel=1e-4)


def test_generation_stops_row_by_row(idx):
    base = tiny("rotary")
    free = generate(base, idx, 6)
    stop = free[0, 12].item()
    rows = generate(base, idx, 6, stop_token=stop)
    assert generate(base, idx[:1], 6, stop_token=stop).size(1) == 13  # every row has stopped: no more is computed
    for row, whole in zip(rows, free, strict=True):
        new = whole[11:].tolist()
        end = new.index(stop) + 1 if stop in new else len(new)
        assert row[11 : 11 + end].tolist() == new[:end] and set(row[11 + end :].tolist()) <= {stop}
