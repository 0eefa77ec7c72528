"""What a run is made of at a step, and how it is put back: with it a run goes on bit for bit as if it had never stopped.

step       steps done; batches depend on the step alone, and so does the learning rate
settings   what must be the same on both sides
trained    name -> tensor: what is trained, with the MLP of a prefix and all else that is folded away when an adapter is saved
moments    name -> AdamW's exp_avg, exp_avg_sq and step
random     for every process the state of torch's generators, the only ones that a step draws from
best       the lowest score so far, and `trained` as it was then; None where nothing is scored
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import Error, shown
from ..files.tensors import check_tensors
from ..runtime.processes import all_gather, rank
from .run_folder import read_state
from .sharding import collected, placed


class Best(NamedTuple):
    score: float
    trained: dict[str, Tensor]


def collect(step: int, settings: dict | None, parameters: dict[str, Tensor], optimizer, best: Best | None) -> dict:
    """A training state, ready for RunFolder.save. Several processes put theirs together, and the leader's is whole."""
    return {
        "step": step,
        "settings": settings or {},
        "trained": collected({name: p.detach() for name, p in parameters.items()}),
        "moments": {name: collected(optimizer.state[p]) for name, p in parameters.items()},
        "random": all_gather(_random(parameters)),
        "best": best and best._replace(trained=collected(best.trained))._asdict(),
    }


def restore(path: Path, steps: int, parameters: dict[str, Tensor], optimizer, settings: dict | None) -> tuple[int, Best | None]:
    """Put a state of a run of so many steps back into parameters, optimizer and generators; returns its step and its best.

    Raises Error for a state that is damaged, of another run, or forged.
    """
    state = read_state(path)
    if state.keys() != {"step", "settings", "trained", "moments", "random", "best"} or type(state["step"]) is not int:
        raise Error(f"{path} is not a training state")
    theirs, ours = _dict(state, "settings", path), settings or {}
    for name in sorted(theirs.keys() | ours.keys(), key=str):
        if not _same(theirs.get(name), ours.get(name)):
            raise Error(f"{path} is of another run: its {shown(name)} is {shown(theirs.get(name))}, here it is {shown(ours.get(name))}")
    if not 0 <= state["step"] <= steps:
        raise Error(f"{path} does not fit: step {state['step']} is none of the {steps}")
    trained, moments, best = _dict(state, "trained", path), _dict(state, "moments", path), state["best"]
    check_tensors(trained, parameters, path)
    if moments.keys() != parameters.keys():
        raise Error(f"{path} does not fit: its moments are of other parameters")
    for name, p in parameters.items():
        check_tensors(_dict(moments, name, path), {"exp_avg": p, "exp_avg_sq": p, "step": torch.zeros(())}, f"{path}, moments of {name}")
    if best is not None:
        if not isinstance(best, dict) or best.keys() != set(Best._fields) or not isinstance(best["score"], float):
            raise Error(f"{path} does not fit: its best is none")
        check_tensors(_dict(best, "trained", path), parameters, f"{path}, best")
        best = Best(best["score"], {name: _own(best["trained"][name], p) for name, p in parameters.items()})
    _set_random(state["random"], parameters, path)
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(_own(trained[name], p))
            optimizer.state[p] = {key: _own(t, p if t.dim() else t).to(p.device) for key, t in moments[name].items()}
    return state["step"], best


def _same(a, b) -> bool:
    try:
        return bool(a == b)
    except RuntimeError:  # a tensor, which no setting is
        return False


def _dict(within: dict, name: str, path: Path) -> dict:
    if not isinstance(value := within[name], dict):
        raise Error(f"{path} does not fit: {name} is no dictionary")
    return value


def _device(parameters: dict[str, Tensor]) -> torch.device:
    return next(iter(parameters.values())).device


def _random(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    device = _device(parameters)
    return {"cpu": torch.get_rng_state()} | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _own(stored: Tensor, like: Tensor) -> Tensor:
    """A copy of what is stored, or this process's part of it where `like` is sharded."""
    return placed(stored.to(like.device, like.dtype, copy=True), like)


def _set_random(states: list, parameters: dict[str, Tensor], path: Path) -> None:
    """On another kind of device than the state's, its generator starts where it is; and so do processes that there were not then."""
    if not isinstance(states, list) or not states or not all(isinstance(s, dict) for s in states):
        raise Error(f"{path} does not fit: random is no list of dictionaries")
    for state in states:
        check_tensors({"cpu": state.get("cpu")}, {"cpu": torch.get_rng_state()}, f"{path}, random")
    if rank() >= len(states):
        return
    mine = states[rank()]
    try:
        torch.set_rng_state(mine["cpu"])
        if _device(parameters).type == "cuda" and "cuda" in mine:
            torch.cuda.set_rng_state(mine["cuda"], _device(parameters))
    except (RuntimeError, TypeError) as e:
        raise Error(f"{path} does not fit: random is no state of torch's generators ({str(e).splitlines()[0]})") from None
