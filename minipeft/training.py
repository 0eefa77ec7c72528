"""The loop. It knows a model with .loss(idx, targets) and groups of trained parameters, and nothing about GPTs or methods."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from .checkpoint import check_tensors, read_torch, write_torch
from .config import Error


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first twentieth, then half a cosine down to 2 % of the peak."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


def train(
    model,
    batch: Callable[[int], tuple[Tensor, Tensor]],
    steps: int,
    lr: float | None = None,
    state: Path | None = None,
    settings: dict | None = None,
    resume: bool = False,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Minimise model.loss over `steps` batches with AdamW, gradients clipped to norm 1.

    batch(step) -> (idx, targets) depends on the step alone, so the step is the data position.
    lr         the schedule's peak; None: for every group of parameters its own
    state      file of the training state, written ten times in a run; the caller removes it once the result is safe
    settings   what must be the same for a run to be resumed (JSON values)
    dtype      of the products, by autocast; what is trained keeps its own

    Raises Error when the loss is no longer finite, or when there is nothing that fits to resume from.
    """
    parameters = dict(model.named_trainable_parameters())
    groups = [{**group, "peak": group["lr"]} for group in model.parameter_groups(lr)]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    device = next(iter(parameters.values())).device
    start = _load(state, parameters, optimizer, settings) if resume else 0
    every = max(1, steps // 10)
    model.train()
    with tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True) as bar:
        for step in range(start, steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, group["peak"])
            idx, targets = (t.to(device) for t in batch(step))
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = model.loss(idx, targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            optimizer.step()
            bar.update()
            if (step + 1) % every == 0 or step + 1 == steps:
                peak = min(group["peak"] for group in optimizer.param_groups)
                if not math.isfinite(value := loss.item()) or not all(p.isfinite().all() for p in parameters.values()):
                    raise Error(f"training came apart at step {step + 1} (loss {value:.3g}): try a learning rate below {peak:g}")
                bar.set_postfix(loss=f"{value:.3f}")
                if state is not None:
                    _save(state, parameters, optimizer, step + 1, settings, device)


def _save(path: Path, parameters: dict[str, Tensor], optimizer, step: int, settings: dict | None, device: torch.device) -> None:
    state = {
        "step": step,
        "settings": settings,
        "trained": {name: p.detach() for name, p in parameters.items()},
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "random_on_device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }
    write_torch(path, state)


def _load(path: Path | None, parameters: dict[str, Tensor], optimizer, settings: dict | None) -> int:
    if path is None or not path.exists():
        raise Error(f"nothing to resume: {path} does not exist (a finished run leaves none)")
    state = read_torch(path)
    if state.keys() != {"step", "settings", "trained", "optimizer", "random", "random_on_device"}:
        raise Error(f"{path} is not a training state")
    theirs, ours = state["settings"] or {}, settings or {}
    for name in sorted(theirs.keys() | ours.keys()):
        if theirs.get(name) != ours.get(name):
            raise Error(f"{path} is of another run: its {name} is {theirs.get(name)!r}, here it is {ours.get(name)!r}")
    check_tensors(state["trained"], parameters, path)
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(state["trained"][name])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    if state["random_on_device"] is not None:
        torch.cuda.set_rng_state(state["random_on_device"], next(iter(parameters.values())).device)
    return state["step"]
