"""bench.py quality: a grid runs what has no line yet, each cell once, and chooses learning rates by its sweeps."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from tiny_cell import TINY

from minipeft import Error
from minipeft.bench.quality import grid, studies
from minipeft.bench.quality.lines import Cell


@pytest.fixture
def ran(monkeypatch):
    """The cells that were run, in order. Nothing is trained: the loss is the learning rate; the lowest fails."""
    called, lowest = [], studies.ROWS["prompt"][2][0]

    def work(c: Cell, folders, device) -> dict:
        called.append(c)
        return {"cell": json.loads(c.key), "score": 0.5, "loss": None if c.lr == lowest else c.lr}

    monkeypatch.setattr(grid, "run_cell", work)
    monkeypatch.setattr(grid, "pool", lambda processes: ThreadPoolExecutor(1))
    return called


def asked_for() -> list[tuple[Cell, Cell]]:
    prompt, prefix = (replace(TINY, method=m, lr=None) for m in ("prompt", "prefix"))
    return studies.seeded([(prompt, prompt), (replace(prefix, start=studies.PROMPT_RUNG), prefix)], range(2))


def test_a_grid_runs_what_is_not_there_and_nothing_twice(tmp_path, ran):
    path = tmp_path / "made" / "lines.jsonl"
    lines = grid.fill(path, asked_for(), 1, {}, "cpu")
    assert len(ran) == len({c.key for c in ran}) == 14 == len(lines)
    assert [c.scored_on for c in ran] == 10 * ["dev"] + 4 * ["held-out"]
    best, started = studies.ROWS["prompt"][2][1], [c.start for c in ran[10:] if c.start]
    assert {c.lr for c in ran[10:]} == {best} and started == 2 * [{"rung": "prompt", "lr": best}]
    whole = path.read_bytes()
    second = whole.index(b"\n") + 1
    for torn, missing in ((whole[:-20], 1), (whole[:-1], 1), (whole[: second + 4], 13), (b"", 14), (whole, 0)):
        ran.clear()
        path.write_bytes(torn)
        assert grid.fill(path, asked_for(), 1, {}, "cpu") == lines and len(ran) == missing
        kept = torn[: torn.rfind(b"\n") + 1]
        assert path.read_bytes()[: len(kept)] == kept and grid.read(path) == lines


def test_a_line_that_is_none_is_named_in_one_line(tmp_path, ran):
    path = tmp_path / "lines.jsonl"
    grid.fill(path, asked_for(), 1, {}, "cpu")
    before = path.read_bytes().split(b"\n")
    unscored = before[0].replace(b'"score"', b'"x"')
    for garbage in (b"{", b"[]", b"\xff", b"{}", b'{"cell": {"base": "tiny"}}', b"[" * 10**5, unscored):
        path.write_bytes(b"\n".join([*before[:2], garbage, *before[2:]]))
        with pytest.raises(Error) as refused:
            grid.fill(path, asked_for(), 1, {}, "cpu")
        assert str(refused.value).startswith(f"{path}, line 3, is no line of `bench.py quality`: ")
        assert "\n" not in str(refused.value)
        assert garbage in path.read_bytes()
    path.write_bytes(b'{"another": "file"}')  # whose end is no line that was torn
    with pytest.raises(Error, match="line 1, is no line"):
        grid.fill(path, asked_for(), 1, {}, "cpu")
    assert path.read_bytes() == b'{"another": "file"}'
    with pytest.raises(Error, match=r"cannot be read \(IsADirectoryError\)"):
        grid.fill(tmp_path, asked_for(), 1, {}, "cpu")


def test_two_grids_do_not_write_to_one_file(tmp_path, ran, monkeypatch):
    path, work = tmp_path / "lines.jsonl", grid.run_cell

    def second(*its):
        before = path.read_bytes()
        with pytest.raises(Error, match="lines.jsonl is in use: another grid writes to it$"):
            grid.fill(path, [], 1, {}, "cpu")
        assert path.read_bytes().startswith(before)  # the first goes on with its own
        return work(*its)

    monkeypatch.setattr(grid, "run_cell", second)
    grid.fill(path, asked_for(), 1, {}, "cpu")
    assert [p.name for p in tmp_path.iterdir()] == ["lines.jsonl"]
    (tmp_path / "file").touch()
    with pytest.raises(Error, match="cannot be written to: "):
        grid.fill(tmp_path / "file" / "lines.jsonl", [], 1, {}, "cpu")


def test_a_study_of_starts_runs_the_sweep_of_the_soft_prompt_that_a_prefix_starts_from(tmp_path, ran):
    prefix = replace(TINY, method="prefix", lr=None)
    wanted = [(replace(prefix, start=studies.PROMPT_RUNG), prefix)]
    grid.fill(tmp_path / "lines.jsonl", wanted, 1, {}, "cpu")
    assert [c.method for c in ran] == ["prompt"] * 5 + ["prefix"] * 6
    assert grid.planned(grid.read(tmp_path / "lines.jsonl"), wanted) == []


def test_a_rate_is_chosen_by_the_loss_on_dev_examples_or_refused():
    like = replace(TINY, method="lora", lr=None)
    swept = studies.sweep(like)
    lines = {c.key: {"loss": loss} for c, loss in zip(swept, (2.0, 1.0, None, 3.0, None), strict=True)}
    assert grid.chosen(lines, like) == swept[1].lr
    lines[swept[1].key] = {"loss": None}
    assert grid.chosen(lines, like) == swept[0].lr
    lines |= {c.key: {"loss": None} for c in swept}
    with pytest.raises(Error, match=r"no learning rate of \[0.002, 0.006, 0.02, 0.06, 0.2\] trains lora on parity"):
        grid.chosen(lines, like)
    with pytest.raises(Error, match="the sweep of lora on parity is not run"):
        grid.chosen({swept[0].key: {"loss": 1.0}}, like)
    assert grid.chosen({}, replace(like, method="hard-prompt")) is None


def test_a_sweep_goes_on_beyond_the_edge_where_its_best_lies_until_it_is_inside(monkeypatch, tmp_path):
    def run(cell, folders, device):
        return {"cell": json.loads(cell.key), "score": 0.0, "loss": loss_at(cell.lr), "card": {}}

    def loss_at(lr):  # lowest at `best`
        return abs(math.log(lr / best))

    like = replace(TINY, method="lora", lr=None, examples=10)
    first = list(studies.ROWS["lora"][2])  # 2e-3 … 0.2
    monkeypatch.setattr(grid, "run_cells", lambda workers, cells, *rest: [run(c, *rest) for c in cells])
    for best, rates in ((2e-2, first), (6e-4, [2e-4, 6e-4, *first]), (0.2, [*first, 0.6]),
                        (1e-9, [2e-5, 6e-5, 2e-4, 6e-4, *first])):
        path = tmp_path / f"{best}.jsonl"
        lines = grid.fill(path, [(replace(like, seed=0), like)], 1, {}, "cpu")
        losses = grid.sweep_losses(lines, like)
        assert list(losses) == pytest.approx(rates) and grid.chosen(lines, like) == min(losses, key=losses.get)
        assert len(lines) == len(rates) + 1 and grid.next_of_sweep(lines, like) == []
        assert [c.examples for c in grid.sweep_cells(lines, like)] == [10] * len(rates)
