"""The loop: it stops and resumes exactly, and its exact match is greedy decoding's."""

import math
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny

import minipeft
from minipeft import GPT, Error, GPTConfig, adapt, generate
from minipeft.runtime.signals import Stopped
from minipeft.training import checkpoints
from minipeft.training import loop as training
from minipeft.training.evaluation import evaluate
from minipeft.training.loop import learning_rate, train
from minipeft.training.run_folder import RunFolder


def batch(step):
    g = torch.Generator().manual_seed(step)
    idx = torch.randint(97, (4, 10), generator=g)
    return idx[:, :-1], idx[:, 1:]


METHODS = [("prompt", {}), ("prefix", {}), ("prefix", dict(prefix_projection=True)), ("full", {})]


def fresh(name, h):
    base = tiny("rotary")
    torch.manual_seed(0)
    return adapt(base, name, **({} if name == "full" else dict(num_virtual_tokens=4)), **h)


def run(model, name, folder, stop=None, resume=False, settings=None, batch=batch, **more):
    def stopping(step):
        if step == stop:
            raise KeyboardInterrupt
        return batch(step)

    lr = 1e-3 if name == "full" else 0.02
    with RunFolder(folder, resume=resume) as states:
        where = states.newest() if resume else None
        return train(model, stopping, 20, lr, run=states, settings=settings or {"seed": 0}, resume=where, **more)


def stopped_at(folder, name="prefix", stop=13, **more):
    with pytest.raises(KeyboardInterrupt):
        run(fresh(name, {}), name, folder, stop=stop, **more)
    return sorted((folder / "training_state").glob("*.pt"))


def same(one, two):
    for (k, p), (_, q) in zip(one.named_trainable_parameters(), two.named_trainable_parameters(), strict=True):
        assert torch.equal(p, q), k


@pytest.mark.parametrize("name, h", METHODS)
def test_a_resumed_run_ends_bit_for_bit_like_an_uninterrupted_one(name, h, tmp_path):
    whole = fresh(name, h)
    run(whole, name, tmp_path / "a")

    stopped = fresh(name, h)
    with pytest.raises(KeyboardInterrupt):
        run(stopped, name, tmp_path / "b", stop=13)
    again = fresh(name, h)
    with torch.no_grad():
        for p in again.trainable_parameters():
            p.add_(1)  # what it starts from must not matter
    run(again, name, tmp_path / "b", resume=True)
    same(whole, again)


def test_the_seconds_of_a_resumed_run_are_those_before_the_stop_too(tmp_path, monkeypatch):
    now = [0.0]

    def second(step):
        now[0] += 1
        return batch(step)

    def seconds(name, **more):
        return run(fresh("prefix", {}), "prefix", tmp_path / name, batch=second, **more)

    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: now[0]))
    assert seconds("a") == 20
    with pytest.raises(KeyboardInterrupt):
        seconds("b", stop=13)
    now[0] += 1000  # until someone resumes it
    assert seconds("b", resume=True) == 20  # from the checkpoint of step 12 on


def test_a_damaged_state_costs_the_steps_since_the_one_before_it(tmp_path, capsys):
    whole = fresh("prefix", {})
    run(whole, "prefix", tmp_path / "a")
    older, newest = stopped_at(tmp_path / "b")
    assert (older.name[:8], newest.name[:8]) == ("00000010", "00000012")
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    again = fresh("prefix", {})
    run(again, "prefix", tmp_path / "b", resume=True)
    assert f"warning: {newest} is damaged, going back to the checkpoint before it" in capsys.readouterr().err
    same(whole, again)


def test_a_state_of_another_run_is_refused(tmp_path):
    stopped_at(tmp_path)
    with pytest.raises(Error, match="its .seed. is 0, here it is 1"):
        run(fresh("prefix", {}), "prefix", tmp_path, resume=True, settings={"seed": 1})
    with pytest.raises(Error, match="does not fit"):
        run(fresh("prompt", {}), "prompt", tmp_path, resume=True)


FORGERIES = {
    "no dictionary": (lambda s: s.update(moments=3), "moments is no dictionary"),
    "another key": (lambda s: s.update(more=3), "is not a training checkpoint"),
    "no step": (lambda s: s.update(step="12"), "is not a training checkpoint"),
    "a step beyond the end": (lambda s: s.update(step=21), "it is of step 21, the run has 20"),
    "a step before the start": (lambda s: s.update(step=-1), "it is of step -1, the run has 20"),
    "trained of another shape": (
        lambda s: s["trained"].update({next(iter(s["trained"])): torch.zeros(3)}),
        "does not fit",
    ),
    "moments missing": (lambda s: s["moments"].clear(), "moments are of other parameters"),
    "moments of another shape": (
        lambda s: next(iter(s["moments"].values())).update(exp_avg=torch.zeros(2)),
        "exp_avg is .2,.",
    ),
    "random numbers of another size": (
        lambda s: s["random"][0].update(cpu=torch.zeros(7, dtype=torch.uint8)),
        "random does not fit: cpu",
    ),
    "random numbers that are none": (lambda s: s["random"][0]["cpu"].fill_(255), "no state of torch's generators"),
    "a setting that is a tensor": (
        lambda s: s["settings"].update(seed=torch.zeros(3)),
        "its .seed. is <Tensor>, here it is 0",
    ),
    "seconds that are none": (lambda s: s.update(seconds=math.nan), "seconds is no number of them"),
    "a best that is none": (lambda s: s.update(best=[1]), "`best` is not a score with its parameters"),
}


@pytest.mark.parametrize("forge, message", FORGERIES.values(), ids=FORGERIES)
def test_a_whole_state_that_holds_something_else_is_refused_and_changes_nothing(forge, message, tmp_path):
    newest = stopped_at(tmp_path)[-1]
    state = torch.load(newest, weights_only=True)
    forge(state)
    with RunFolder(tmp_path, resume=True) as run_folder:
        newest.unlink()
        run_folder.save(12, state)
    model, random = fresh("prefix", {}), torch.get_rng_state()
    before = [p.detach().clone() for p in model.trainable_parameters()]
    with pytest.raises(Error, match=message):
        run(model, "prefix", tmp_path, resume=True)
    assert all(map(torch.equal, before, model.trainable_parameters())) and torch.equal(random, torch.get_rng_state())


def test_a_signal_lets_the_step_end_and_saves_it(tmp_path):
    whole = fresh("prefix", {})
    run(whole, "prefix", tmp_path / "a")
    for number in (signal.SIGINT, signal.SIGTERM):
        calls, before = [], signal.getsignal(number)

        def signalling(step, calls=calls, number=number):
            calls.append(step)
            if step == 13:
                signal.raise_signal(number)
            return batch(step)

        folder = tmp_path / str(number)
        with (
            RunFolder(folder) as states,
            pytest.raises(Stopped, match=f"stopped by {number.name} after step 14 of 20") as e,
        ):
            train(fresh("prefix", {}), signalling, 20, 0.02, run=states, settings={"seed": 0})
        assert calls[-1] == 13 and e.value.exit_code == 128 + number and signal.getsignal(number) is before
        again = fresh("prefix", {})
        run(again, "prefix", folder, resume=True)
        same(whole, again)


def test_a_signal_in_the_last_evaluation_is_not_lost(tmp_path):
    evaluations = []

    def score():
        evaluations.append(len(evaluations))
        if len(evaluations) == 10:  # behind the last step
            signal.raise_signal(signal.SIGTERM)
        return 1.0

    with RunFolder(tmp_path) as states, pytest.raises(Stopped, match="stopped by SIGTERM after step 20 of 20"):
        train(fresh("prefix", {}), batch, 20, 0.02, run=states, settings={"seed": 0}, score=score)
    assert sorted(p.name[:8] for p in (tmp_path / "training_state").glob("*.pt")) == ["00000018", "00000020"]


def test_a_second_signal_does_not_wait(tmp_path):
    def twice(step):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second signal was waited for")

    with pytest.raises(Stopped, match="stopped by SIGINT"):
        train(fresh("prefix", {}), twice, 20, 0.02)


def test_states_are_written_by_the_clock_too(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    assert [p.name[:8] for p in stopped_at(tmp_path)] == ["00000012", "00000013"]


@pytest.mark.parametrize("stop", [None, 13])
def test_the_best_so_far_is_kept_also_over_a_stop(stop, tmp_path):
    """Scores that are lowest after step 6: the run ends with what was trained then."""
    scores, best = iter([9.0, 8.0, 1.0, 7.0, 3.0, math.nan, 2.0, 4.0, 1.0, 5.0]), []

    def attempt(resume, stop):
        model = fresh("prefix", {})

        def score():
            if (value := next(scores)) == 1.0 and not best:
                best.extend(p.detach().clone() for p in model.trainable_parameters())
            return value

        run(model, "prefix", tmp_path, stop=stop, resume=resume, score=score)
        return model

    if stop is not None:
        with pytest.raises(KeyboardInterrupt):
            attempt(False, stop)
    model = attempt(stop is not None, None)
    assert best and all(map(torch.equal, best, model.trainable_parameters()))


def test_the_schedule_warms_up_and_comes_down():
    rates = [learning_rate(step, 100, 2.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.4) and rates[4] == pytest.approx(2.0) == max(rates)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=95, eta_min=0.04)
    for rate in rates[5:]:
        assert rate == pytest.approx(cosine.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        cosine.step()


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_sets_the_mode_and_the_precision_of_the_products(dtype):
    class Watched(Slope):
        def loss(self, idx, targets):
            seen.append((torch.is_autocast_enabled("cpu"), self.training))
            return super().loss(idx, targets)

    seen: list = []
    train(Watched().eval(), lambda step: (torch.ones(3), torch.ones(3)), 2, 0.1, dtype=dtype)
    assert seen == 2 * [(dtype == torch.bfloat16, True)]


def test_a_loss_that_is_not_finite_stops_the_run_with_a_line():
    message = (
        r"diverged at step 2 of 20 .loss nan, gradient norm nan, learning rate 1e\+30.: "
        r"try a peak learning rate below 1e\+30"
    )
    with pytest.raises(Error, match=message):
        train(fresh("full", {}), batch, 20, 1e30)


def test_the_step_that_diverged_is_named_and_the_last_good_state_is_kept(tmp_path):
    class Bump(Slope):
        def loss(self, idx, targets):
            return super().loss(idx, targets) / (0 if idx[0] == 7 else 1)

    with RunFolder(tmp_path) as states, pytest.raises(Error, match="diverged at step 8 of 20"):
        train(Bump(), lambda step: (torch.full((3,), step), torch.ones(3)), 20, 0.1, run=states)
    assert [p.name[:8] for p in sorted((tmp_path / "training_state").glob("*.pt"))] == ["00000004", "00000006"]


def test_a_last_step_that_ruins_the_weights_is_noticed_though_its_loss_was_finite():
    class Cliff(Slope):
        def loss(self, idx, targets):
            return (self.x - self.x.detach()).sqrt().sum()  # 0, with an infinite slope

    with pytest.raises(Error, match="diverged at step 1 of 1 .loss 0, gradient norm inf"):
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
        steps = torch.cat(
            [(p.detach() - x).abs().flatten() for p, x in zip(part.parameters(), before[part.name], strict=True)]
        )
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
    def attempt(stop=None, resume=False):
        torch.manual_seed(3)
        model = Slope(noise=1.0)

        def one(step):
            if step == stop:
                raise KeyboardInterrupt
            return torch.ones(3), torch.ones(3)

        with RunFolder(tmp_path, resume=resume, overwrite=not resume) as states:
            train(model, one, 20, 0.1, run=states, settings={}, resume=states.newest() if resume else None)
        return model.x

    whole = attempt()
    with pytest.raises(KeyboardInterrupt):
        attempt(stop=13)
    assert torch.equal(attempt(resume=True), whole)


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


def test_every_process_gets_its_own_random_numbers_back(monkeypatch):
    parameters, states, noise = {"x": torch.nn.Parameter(torch.zeros(1))}, [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(checkpoints._random_state(parameters))
        noise.append(torch.rand(3))
    for rank in (0, 1):
        monkeypatch.setattr(checkpoints, "rank", lambda rank=rank: rank)
        checkpoints._set_random_state(states, parameters, Path("x"))
        assert torch.equal(torch.rand(3), noise[rank])
