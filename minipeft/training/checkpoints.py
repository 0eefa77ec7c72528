"""Training checkpoints. On one CPU, a resumed run ends bit for bit like one that never stopped.

step       steps done; it determines the batches and the learning rate
settings   what must be equal on both sides
trained    name -> trainable parameter, also those that are folded away when an adapter is saved
moments    name -> AdamW's exp_avg, exp_avg_sq and step; {} of a search, which has no optimizer
random     for every process, the states of torch's generators: a step draws from no others
best       the lowest score so far, and `trained` at that step; None without scores
seconds    of training so far, those before earlier stops included
"""

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import Error, shown
from ..files.tensors import check_tensors
from ..runtime.processes import all_gather, rank
from .run_folder import read_checkpoint
from .sharding import gather_to_rank0, shard_like


class Best(NamedTuple):
    score: float
    trained: dict[str, Tensor]


def collect(step: int, settings: dict | None, parameters: dict[str, Tensor], optimizer,
            best: Best | None, seconds: float = 0.0) -> dict:
    """A checkpoint, complete on the main process; all processes must call this."""
    return {
        "step": step,
        "settings": settings or {},
        "trained": gather_to_rank0({name: p.detach() for name, p in parameters.items()}),
        "moments": {name: gather_to_rank0(optimizer.state[p]) for name, p in parameters.items() if optimizer},
        "random": all_gather(_random_state(parameters)),
        "best": best and best._replace(trained=gather_to_rank0(best.trained))._asdict(),
        "seconds": seconds,
    }


def restore(path: Path, steps: int, parameters: dict[str, Tensor], optimizer,
            settings: dict | None) -> tuple[int, Best | None, float]:
    """Restore parameters, optimizer and generators; return the checkpoint's step, best and seconds.

    Raises Error, and changes nothing, for a checkpoint that is damaged, of another run, or forged.
    """
    state = {"seconds": 0.0} | read_checkpoint(path)  # one of an older version has no seconds
    names = {"step", "settings", "trained", "moments", "random", "best", "seconds"}
    if state.keys() != names or type(state["step"]) is not int:
        raise Error(f"{path} is not a training checkpoint")
    theirs, ours = _dict(state, "settings", path), settings or {}
    check_same(path, theirs, ours)
    if not 0 <= state["step"] <= steps:
        raise Error(f"{path} does not fit: it is of step {state['step']}, the run has {steps}")
    trained, moments = _dict(state, "trained", path), _dict(state, "moments", path)
    check_tensors(trained, parameters, path)
    if moments.keys() != (parameters.keys() if optimizer else set()):
        raise Error(f"{path} does not fit: its moments are of other parameters")
    for name in moments:
        p = parameters[name]
        like = {"exp_avg": p, "exp_avg_sq": p, "step": torch.zeros(())}
        check_tensors(_dict(moments, name, path), like, f"{path}, moments of {name}")
    if (best := state["best"]) is not None:
        if not (isinstance(best, dict) and best.keys() == set(Best._fields)
                and isinstance(best["score"], float)):
            raise Error(f"{path} does not fit: `best` is not a score with its parameters")
        check_tensors(_dict(best, "trained", path), parameters, f"{path}, best")
        its_trained = {name: _local(best["trained"][name], p) for name, p in parameters.items()}
        best = Best(best["score"], its_trained)
    if not (isinstance(seconds := state["seconds"], float) and 0 <= seconds < math.inf):
        raise Error(f"{path} does not fit: seconds is no number of them")
    _set_random_state(state["random"], parameters, path)
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(_local(trained[name], p))
            if optimizer:
                optimizer.state[p] = {key: _local(t, p if t.dim() else t).to(p.device)
                                      for key, t in moments[name].items()}
    return state["step"], best, seconds


def check_same(path: Path, theirs: dict, ours: dict) -> None:
    """Raise Error, naming the first difference, unless the run at this path has our settings."""
    for name in sorted(theirs.keys() | ours.keys(), key=str):
        if not _equal(theirs.get(name), ours.get(name)):
            a, b = shown(theirs.get(name)), shown(ours.get(name))
            raise Error(f"{path} is of another run: its {shown(name)} is {a}, here it is {b} "
                        "(--overwrite starts anew)")


def setting_of(path: Path, name: str):
    """A setting in a checkpoint, None if there is none; `restore` checks the rest of it."""
    settings = read_checkpoint(path).get("settings")
    return settings.get(name) if isinstance(settings, dict) else None


def _equal(a, b) -> bool:
    try:
        return bool(a == b)
    except RuntimeError:  # a tensor, and no setting is one
        return False


def _dict(state: dict, name: str, path: Path) -> dict:
    if not isinstance(value := state[name], dict):
        raise Error(f"{path} does not fit: {name} is no dictionary")
    return value


def _local(stored: Tensor, like: Tensor) -> Tensor:
    """A copy of the stored tensor, or this process's shard of it where `like` is sharded."""
    return shard_like(stored.to(like.device, like.dtype, copy=True), like)


def _random_state(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    device, state = next(iter(parameters.values())).device, {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _set_random_state(states: list, parameters: dict[str, Tensor], path: Path) -> None:
    """Set this process's generators. Those of a new process or kind of device stay as they are."""
    if not isinstance(states, list) or not states or not all(isinstance(s, dict) for s in states):
        raise Error(f"{path} does not fit: random is no list of dictionaries")
    for state in states:
        check_tensors({"cpu": state.get("cpu")}, {"cpu": torch.get_rng_state()}, f"{path}, random")
    if rank() >= len(states):
        return
    state, device = states[rank()], next(iter(parameters.values())).device
    try:
        torch.set_rng_state(state["cpu"])
        if device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], device)
    except (RuntimeError, TypeError):
        raise Error(f"{path} does not fit: random is no state of torch's generators") from None
