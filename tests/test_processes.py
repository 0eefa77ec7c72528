"""Shares of a batch and bytes on the wire, for any number of processes, without starting one."""

import math
import random
from pathlib import Path

import pytest
import torch
from test_distributed import CPU, batch

from minipeft import Error, GPTConfig
from minipeft.accounting import Traffic, bytes_per_step
from minipeft.runtime import processes
from minipeft.runtime.processes import local_batches, local_rows


def as_if(monkeypatch, rank: int, world: int) -> None:
    monkeypatch.setattr(processes, "rank", lambda: rank)
    monkeypatch.setattr(processes, "world_size", lambda: world)


def test_shares_and_weights_give_the_mean_over_all_supervised_tokens(monkeypatch):
    """With any number of processes, rows and answers, against losses of our choosing for every token."""
    draw = random.Random(0)
    for _ in range(200):
        N, lengths = draw.randint(1, 5), [draw.choice([0, 1, 4, 9]) for _ in range(draw.randint(1, 7))]
        lengths[draw.randrange(len(lengths))] = 9  # something is supervised
        idx, targets = batch(draw.randrange(1000), lengths)
        value = idx.double() ** 2  # the loss of every token
        parts = []
        for rank in range(N):
            as_if(monkeypatch, rank, N)
            rows, wanted, weight = local_rows(idx, targets)
            assert len(rows) == len(wanted) >= 1 and (wanted != -100).any()
            parts.append(weight * (rows.double() ** 2)[wanted != -100].mean().item())
        assert sum(parts) / N == pytest.approx(value[targets != -100].mean().item(), rel=1e-12)
    as_if(monkeypatch, 1, 2)
    assert math.isnan(
        local_rows(idx, torch.full_like(idx, -100))[2] * math.nan
    )  # nothing supervised: nan, as with one process
    as_if(monkeypatch, 0, 1)
    rows, wanted, weight = local_rows(idx, targets)
    assert weight == 1.0 and torch.equal(rows, idx) and torch.equal(wanted, targets)


def test_batches_are_counted_once_in_as_many_passes_everywhere(monkeypatch):
    for N in range(1, 6):
        for n in range(13):
            shares = []
            for rank in range(N):
                as_if(monkeypatch, rank, N)
                shares.append(list(local_batches(list(range(n)))))
            assert sorted(b for own in shares for b, counted in own if counted) == list(range(n))
            assert {len(own) for own in shares} == {-(-n // N)}


def test_closed_forms_of_known_shapes():
    """GPT-2: 124,439,808 weights in 148 tensors; only 50,257 rows of the embeddings do not divide by 2."""
    gpt2, block = GPTConfig(), 7_087_872
    everything = 4 * (124_439_808 + 768)
    assert bytes_per_step(gpt2, 124_439_808, 2, full=True) == Traffic(everything + 4 * 11 * block, everything, 4 * 148)
    assert bytes_per_step(gpt2, 147_456, 2) == Traffic(all_reduce=4 * 147_456)
    assert bytes_per_step(gpt2, 147_456, 2, shard_base=True, base_bytes=2) == Traffic(
        everything // 2 + 2 * 11 * block, 0, 4 * 147_456
    )
    assert bytes_per_step(gpt2, 147_456, 1, full=True) == Traffic()
    assert Traffic(all_gather=300, reduce_scatter=30, all_reduce=3).sent(3) == pytest.approx(2 / 3 * 336)


def test_the_page_has_the_closed_forms_figures():
    from docs.tools import processes

    page = (Path(__file__).parent.parent / "docs" / "processes.md").read_text(encoding="utf-8")
    for preset in ("gpt2", "llama-3.2-1b"):
        assert processes.table(preset) in page, "run: python docs/tools/refresh.py pages"


def test_joining_refuses_what_cannot_be(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert processes.join_processes(CPU) is CPU and processes.world_size() == 1 and processes.is_main_process()
    monkeypatch.setenv("WORLD_SIZE", "2")
    names = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name in names:
        with pytest.raises(Error, match=f"WORLD_SIZE is 2 but {name} is not set"):
            processes.join_processes(CPU)
        monkeypatch.setenv(name, "7")
    for wrong in ("", "two"):
        monkeypatch.setenv("WORLD_SIZE", wrong)
        with pytest.raises(Error, match=f"WORLD_SIZE is '{wrong}', no number"):
            processes.join_processes(CPU)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(Error, match="not on mps"):
        processes.join_processes(torch.device("mps"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(Error, match="process 7 .* no GPU of its own: with 4 of them"):
        processes.join_processes(torch.device("cuda"))
