"""The loop. It knows a model with .loss(idx, targets) and groups of trained parameters, and nothing about GPTs or methods."""

import math
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..config import Error
from ..runtime.console import progress
from ..runtime.processes import all_reduce_max, all_reduce_mean, share
from ..runtime.signals import Asked, Stopped
from .checkpoints import Best, collect, restore
from .run_folder import RunFolder
from .sharding import full_tensor

LOOK = 20  # steps between two looks at the losses: each makes a GPU wait
SECONDS = 600  # a state is written at least so often


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
    run: RunFolder | None = None,
    settings: dict | None = None,
    resume: Path | None = None,
    dtype: torch.dtype = torch.float32,
    score: Callable[[], float] | None = None,
    loss_of: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> None:
    """Minimise model.loss over `steps` batches with AdamW, gradients clipped to norm 1.

    batch(step) -> (idx, targets) depends on the step alone, so the step is the data position.
    lr         the schedule's peak; None: for every group of parameters its own
    run        where training states are written: ten times in a run, every ten minutes, and when it is stopped
    settings   what must be the same for a run to be resumed (JSON values)
    resume     the state to go on from; on the same CPU the run then ends bit for bit as if it had not been stopped
    dtype      of the products, by autocast; what is trained keeps its own
    score      asked ten times in a run; what is trained ends as it was when this was lowest, instead of as it is at the end
    loss_of    distributed.parallel(model) where several processes train together, each on its rows of every batch

    SIGINT and SIGTERM let the step end and write a state, and then raise Stopped (a KeyboardInterrupt). Raises Error when a loss or
    gradient is no longer finite (the last state is from before), and for a state that does not fit.
    """
    loss_of = loss_of or model.loss
    parameters = dict(model.named_trainable_parameters())
    groups = [{**group, "peak": group["lr"]} for group in model.parameter_groups(lr)]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    device = next(iter(parameters.values())).device
    start, best = restore(resume, steps, parameters, optimizer, settings) if resume else (0, None)
    tenth = max(1, steps // 10)
    seen: list[Tensor] = []  # loss and gradient norm of the steps since the last look
    saved = time.monotonic()
    model.train()
    with Asked() as asked, progress(total=steps, initial=start, unit="step") as bar:
        for done in range(start + 1, steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(done - 1, steps, group["peak"])
            idx, targets, weight = share(*batch(done - 1))
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = loss_of(idx.to(device), targets.to(device)) * weight
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            optimizer.step()
            seen.append(torch.stack([loss.detach(), full_tensor(norm)]))
            bar.update()

            wanted = all_reduce_max(asked.number or time.monotonic() - saved > SECONDS)  # 0, 1 for a state by the clock, or a signal's number
            at_tenth = done % tenth == 0 or done == steps
            if at_tenth or wanted or done % LOOK == 0:
                bar.set_postfix(loss=f"{_look(seen, done, steps, optimizer):.3f}")
            if at_tenth and score is not None and (value := score()) < (math.inf if best is None else best.score):
                best = Best(value, {name: p.detach().clone() for name, p in parameters.items()})
            if (at_tenth or wanted) and run is not None:
                run.save(done, collect(done, settings, parameters, optimizer, best))
                saved = time.monotonic()
            if wanted > 1:
                raise Stopped(wanted, f"stopped by {signal.Signals(wanted).name} after step {done} of {steps}", agreed=True)
    if best is not None:
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(best.trained[name])


def _look(seen: list[Tensor], done: int, steps: int, optimizer) -> float:
    """The last of the losses seen, which are forgotten. Raises Error, naming the step, when one or its gradient is not finite."""
    values = all_reduce_mean(torch.stack(seen)).tolist()
    seen.clear()
    for step, (loss, norm) in enumerate(values, done - len(values) + 1):
        if not math.isfinite(loss) or not math.isfinite(norm):
            peak = min(group["peak"] for group in optimizer.param_groups)
            raise Error(
                f"training came apart at step {step} of {steps} (loss {loss:.3g}, gradient norm {norm:.3g}, learning rate "
                f"{learning_rate(step - 1, steps, peak):.3g}): try a peak learning rate below {peak:g}, or other data"
            )
    return values[-1][0]
