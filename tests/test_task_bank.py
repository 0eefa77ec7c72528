"""Rows of one batch with different tasks answer as each task would alone."""

import random
import re
import shutil

import pytest
import torch
from conftest import SHAPES, TYPICAL, attached, in_shape, in_turn, moved, one_shape, quick, tiny

from minipeft import METHODS, Error, TaskBank, adapt, generate, load_adapter
from minipeft.inference.task_bank import vote

KINDS = [
    ("hard-prompt", dict(tokens=torch.tensor([5, 6, 7, 8]))),
    ("hard-prompt", dict(tokens=torch.tensor([9]))),
    ("prompt", dict(num_virtual_tokens=3)),
    ("prompt", dict(num_virtual_tokens=7)),
    ("prefix", dict(num_virtual_tokens=1)),
    ("prefix", dict(num_virtual_tokens=6)),
    ("prefix", dict(num_virtual_tokens=4, space="hidden")),
    ("prefix", dict(num_virtual_tokens=2, prefix_projection=True)),
    ("prefix", dict(num_virtual_tokens=3, key_bias=True, positions=9)),
    ("prefix", dict(num_virtual_tokens=5, positions=0)),
    ("lora", dict(r=2)),
    ("lora", dict(r=5, lora_alpha=3, target_modules=["c_proj", "c_attn"])),
    ("lora", dict(r=3, target_modules=["mlp.c_fc"])),
    (["lora", "prefix"], dict(r=4, num_virtual_tokens=5)),
    (["prompt", "lora"], dict(r=4, num_virtual_tokens=2, lora_dropout=0.5)),
]


def tasks_of(base):
    models = {}
    for i, (name, h) in enumerate(KINDS):
        model = adapt(base, name, **in_shape(base.config, h)).eval()
        models[f"task {i}"] = moved(model, 0.2) if name != "hard-prompt" else model
    return models


@pytest.mark.parametrize("shape, dtype", quick(
    [(shape, dtype) for shape in SHAPES for dtype in (torch.float32, torch.float64)], ("llama", torch.float64)))
@torch.no_grad()
def test_200_random_mixtures_equal_the_single_runs(shape, dtype):
    base = tiny(shape, dtype)
    close = (
        1e-12 if dtype == torch.float64 else 3e-5 if shape == "llama" else 1e-5
    )  # llama's rounds more; float64 says it is rounding
    models = tasks_of(base)
    bank = TaskBank(base, models)
    rng = random.Random(0)
    for _ in range(100):
        B, T = rng.randint(1, 6), rng.randint(1, 12)
        tasks = [rng.choice([None, *models]) for _ in range(B)]
        idx = torch.randint(97, (B, T))
        mixed = bank(idx, tasks)
        for row, x, task in zip(mixed, idx, tasks, strict=True):
            alone = (models[task] if task else base)(x[None])[0]
            torch.testing.assert_close(row, alone, rtol=0, atol=close * float(alone.abs().max()))


@pytest.mark.parametrize("shape", quick(list(SHAPES), "llama"))
def test_mixed_generation_with_unequal_lengths_equals_the_single_runs(base):
    models = tasks_of(base)
    bank = TaskBank(base, models)
    tasks = [None, *models, None]
    idx, lengths = torch.randint(97, (len(tasks), 8)), torch.randint(1, 9, (len(tasks),))
    rows = generate(bank.rows(tasks), idx, 10, lengths=lengths)
    for row, x, n, task in zip(rows, idx, lengths.tolist(), tasks, strict=True):
        assert torch.equal(row[: n + 10], generate(models[task] if task else base, x[None, :n], 10)[0])


@one_shape
@torch.no_grad()
def test_a_model_in_training_is_taken_without_its_dropout_and_stays_in_training(base, idx):
    model = moved(adapt(base, ["prompt", "lora"], num_virtual_tokens=3, lora_dropout=0.5)).train()
    mixed = TaskBank(base, {"task": model})(idx, 3 * ["task"])
    assert model.training
    torch.testing.assert_close(mixed, model.eval()(idx), rtol=0, atol=1e-4)


@torch.no_grad()
def test_folders_are_tasks_and_the_base_is_given_back(base, idx, tmp_path):
    models = tasks_of(base)
    for name, model in models.items():
        model.save(tmp_path / name)
    want = [model(idx[:1]) for model in models.values()]
    for model in models.values():
        model.detach()
    before = {k: t.clone() for k, t in base.state_dict().items()}
    bank = TaskBank(base, {name: tmp_path / name for name in models})
    got = bank(idx[:1].expand(len(models), -1), list(models))
    for a, b in zip(got, torch.cat(want), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * float(b.abs().max()))
    assert all(torch.equal(t, before[k]) for k, t in base.state_dict().items())
    assert all(p.requires_grad for p in base.parameters())


@torch.no_grad()
def test_one_task_in_all_rows_shares_its_prefix(base, idx):
    models = tasks_of(base)
    bank = TaskBank(base, models)
    assert bank.rows(["task 5"] * 3).slots().prefix.k.shape == (3, 1, base.config.n_kv, 6, base.config.head_size)
    assert bank.rows([None] * 3).slots().prefix is None
    for task in models:
        alone = models[task](idx)
        torch.testing.assert_close(bank(idx, [task] * 3), alone, rtol=0, atol=1e-5 * float(alone.abs().max()))


@pytest.mark.parametrize("name, h, shape", in_turn(TYPICAL))
def test_every_method_is_mixed_or_refused_with_the_reason_it_declares(name, h, base, idx):
    model = attached(base, name, h).eval()
    if (reason := METHODS[name].mixing) is not None:
        with pytest.raises(Error, match=f"^task 'it': {name} cannot be mixed in one batch: {re.escape(reason)}$"):
            TaskBank(base, {"it": model})
        return
    again, prefix = moved(attached(base, name, h)).eval(), moved(adapt(base, "prefix", num_virtual_tokens=2)).eval()
    bank = TaskBank(base, {"it": moved(model, 0.2), "again": again, "prefix": prefix})
    idx = torch.cat([idx, idx[:1]])
    mixed = bank(idx, ["it", None, "prefix", "again"])
    for row, x, alone in zip(mixed, idx, (model, base, prefix, again), strict=True):
        want = alone(x[None])[0]
        torch.testing.assert_close(row, want, rtol=0, atol=3e-5 * float(want.detach().abs().max()))
    assert (mixed[0] - base(idx[:1])).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_one_compilation_as_tasks_change():
    base = tiny()
    models = tasks_of(base)
    bank = TaskBank(base, models)
    idx = torch.randint(97, (4, 9))
    names = list(models)
    eager = [
        bank(idx, tasks) for tasks in ([names[5], None, names[8], names[2]], [names[0]] * 4, [None] * 4, names[8:12])
    ]
    base.compile_blocks()
    counters = torch._dynamo.utils.counters["stats"]
    bank(idx, [names[1]] * 4)
    compiled_once = counters["unique_graphs"]
    for want, tasks in zip(
        eager, ([names[5], None, names[8], names[2]], [names[0]] * 4, [None] * 4, names[8:12]), strict=True
    ):
        torch.testing.assert_close(bank(idx, tasks), want, rtol=0, atol=1e-4)
    assert counters["unique_graphs"] == compiled_once


@one_shape
def test_five_prompts_for_one_task_vote(base):
    """Three tasks that say the same outvote two that do not."""
    torch.manual_seed(0)
    same = moved(adapt(base, "prompt", num_virtual_tokens=3))
    others = [moved(adapt(base, "lora", r=2), 1.0) for _ in range(2)]
    bank = TaskBank(base, {"a": others[0], "b": same, "c": others[1], "d": same, "e": same})
    x = torch.randint(97, (1, 5))
    answers = [generate(m, x, 6) for m in (same, *others)]
    assert not torch.equal(answers[0], answers[1])
    assert torch.equal(vote(bank, x, ["a", "b", "c", "d", "e"], 6), answers[0])
    assert torch.equal(vote(bank, x, ["a"], 6), answers[1])
    for tasks in (["a", "b"], ["b", "a"]):  # one vote each: the first wins
        assert torch.equal(vote(bank, x, tasks, 6), answers[tasks == ["a", "b"]])


@pytest.mark.parametrize(
    "name, h, reason",
    [
        ("full", {}, "full cannot be mixed in one batch: every task is a base of its own"),
        ("adapter", {}, "adapter cannot be mixed in one batch: its networks are layers"),
        ("llama-adapter", {}, "llama-adapter cannot be mixed in one batch: its prefix has a softmax of its own"),
        (["adapter", "prefix"], {}, "adapter cannot be mixed"),
        (
            ["prompt", "prefix"],
            {},
            "prompt.prefix cannot be mixed in one batch: its prompt was learnt behind its prefix",
        ),
    ],
)
@one_shape
def test_what_cannot_be_mixed_is_refused_by_name_and_reason(name, h, reason, base, tmp_path):
    model = adapt(base, name, **h)
    model.save(tmp_path / "a")
    with pytest.raises(Error, match=f"task 'x': {reason}"):
        TaskBank(base, {"x": model})
    model.detach()
    with pytest.raises(Error, match=f"task 'x': {reason}"):
        TaskBank(base, {"x": tmp_path / "a"})
    assert all(p.requires_grad for p in base.parameters())


@one_shape
def test_a_method_that_declares_too_much_is_refused_as_well(base, monkeypatch):
    monkeypatch.setattr(METHODS["llama-adapter"], "mixing", None)
    with pytest.raises(Error, match="task 'x': a prefix with a gate, or in some layers only, cannot be mixed"):
        TaskBank(base, {"x": adapt(base, "llama-adapter")})


@one_shape
def test_bad_batches_and_other_bases_are_refused(base, idx, tmp_path):
    other = tiny(seed=5)
    adapt(other, "prompt").save(tmp_path / "other")
    mine = adapt(base, "prompt")
    mine.save(tmp_path / "mine")
    with pytest.raises(Error, match="tuned for another base"):
        TaskBank(base, {"a": tmp_path / "mine", "b": tmp_path / "other"})
    with pytest.raises(Error, match="'b' was tuned on another base"):
        TaskBank(base, {"b": adapt(other, "prompt")})
    bank = TaskBank(base, {"a": mine})
    with pytest.raises(Error, match="no task 'sort' in this bank: it has a"):
        bank(idx, ["a", None, "sort"])
    with pytest.raises(Error, match="2 tasks for 3 rows"):
        bank(idx, ["a", None])
    with pytest.raises(Error, match="8 virtual . 41 real tokens do not fit"):
        bank(torch.zeros(1, 41, dtype=torch.int64), ["a"])
    with pytest.raises(Error, match="one input and at least one task, not 3"):
        vote(bank, idx, ["a", "a", "a"], 2)


def test_a_long_prefix_takes_no_room_from_rows_without_it(base):
    long, short = (adapt(base, "prefix", num_virtual_tokens=P) for P in (40, 2))
    bank = TaskBank(base, {"long": long, "short": short})
    idx = torch.randint(97, (3, 11))
    mixed = bank(idx, ["short", None, "short"])
    torch.testing.assert_close(mixed[0], short(idx)[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(mixed[1], base(idx)[1], rtol=0, atol=1e-4)
    assert bank.rows(["short", None]).slots().prefix.k.shape == (3, 2, base.config.n_kv, 2, base.config.head_size)


@one_shape
def test_a_merged_task_is_refused(base):
    detached = adapt(base, "prompt", num_virtual_tokens=2)  # a bank converts it through the base's weights
    detached.detach()
    model = moved(adapt(base, "lora"))
    model.merge()
    for task, message in ((model, "task 'a': it is merged into the base"), (detached, "an adapter is merged into")):
        with pytest.raises(Error, match=message):
            TaskBank(base, {"a": task})


@one_shape
def test_a_task_that_is_merged_later_is_refused_until_it_is_unmerged(base, idx):
    model = moved(adapt(base, "lora"))
    bank = TaskBank(base, {"a": model})
    rows = bank.rows(["a", None])
    want = rows(idx[:2])
    model.merge()
    for call in (lambda: bank(idx[:2], ["a", None]), lambda: rows(idx[:2]), lambda: generate(rows, idx[:2], 2)):
        with pytest.raises(Error, match="an adapter is merged into this base: unmerge it first"):
            call()
    model.unmerge()
    assert torch.equal(rows(idx[:2]), want)


@one_shape
def test_folders_leave_the_base_as_compiled_checkpointed_and_frozen_as_it_was(base, tmp_path):
    moved(adapt(base, "lora")).save(tmp_path)
    base.through_compile = base.checkpointed = True
    base.h[0].attn.backend = "split"
    for use in (lambda: TaskBank(base, {"a": tmp_path}), lambda: load_adapter(base, tmp_path).detach()):
        use()
        assert base.through_compile and base.checkpointed and base.h[0].attn.backend == "split"
        assert all(p.requires_grad for p in base.parameters())
    merged = load_adapter(base, tmp_path)
    merged.merge()
    with pytest.raises(Error, match="an adapter is merged into this base"):
        load_adapter(base, tmp_path)


@one_shape
def test_a_bank_is_asked_by_its_rows_and_a_vote_needs_a_bank(base, idx):
    bank = TaskBank(base, {"a": adapt(base, "prefix")})
    with pytest.raises(Error, match="give bank.rows.tasks."):
        generate(bank, idx, 3)
    with pytest.raises(Error, match="a vote is among the tasks of a TaskBank"):
        vote(base, idx[:1], ["a"], 3)
    with pytest.raises(Error, match="the base must be a GPT"):
        generate(adapt(base, "prefix").method, idx, 3)


@pytest.mark.parametrize("rows", [1, 2, 4])
@one_shape
def test_another_number_of_rows_than_tasks_is_refused_alike_by_every_way_in(base, rows):
    bank = TaskBank(base, {"a": adapt(base, "prefix"), "b": adapt(base, "lora")})
    idx = torch.randint(97, (rows, 5))
    for tasks in (["a", "b", None], ["a"] * 3, [None] * 3):
        message = f"^3 tasks for {rows} rows: every row needs one, or None$"
        for call in (lambda t=tasks: bank(idx, t), lambda t=tasks: bank.rows(t)(idx),
                     lambda t=tasks: generate(bank.rows(t), idx, 2)):
            with pytest.raises(Error, match=message):
                call()
    assert generate(bank.rows(["a"] * rows), idx, 2).shape == (rows, 7)
