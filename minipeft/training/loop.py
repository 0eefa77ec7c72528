"""The training loop, for any model with .loss(idx, targets) and groups of parameters."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..checks import Error
from ..runtime.console import TimeEstimate, progress
from ..runtime.processes import all_reduce_max, all_reduce_mean, local_rows
from ..runtime.signals import Stopped, StopRequest
from .checkpoints import Best, collect, restore
from .run_folder import CHECKPOINT_SECONDS, RunFolder
from .sharding import full_tensor

LOG_EVERY = 20  # steps between two reads of the losses: each makes a GPU wait


class Diverged(Error):
    """The loss or its gradient is no longer finite."""


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first twentieth, then half a cosine down to 2 % of the peak."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def train(model, batch: Callable[[int], tuple[Tensor, Tensor]], steps: int, lr: float | None = None,
          run: RunFolder | None = None, settings: dict | None = None, resume: Path | None = None,
          dtype: torch.dtype = torch.float32, score: Callable[[], float] | None = None,
          loss_of: Callable[[Tensor, Tensor], Tensor] | None = None,
          timed: Callable[[float, int], None] = lambda seconds, done: None) -> float:
    """Minimise model.loss in `steps` batches: AdamW, gradients clipped to norm 1. Returns seconds.

    batch(step) -> (idx, targets) depends on the step alone: it is the position in the data.
    lr         peak of the schedule; None: each parameter group's own
    run        folder for checkpoints: one at every tenth of the steps, every ten minutes, and when stopped
    settings   JSON values that must be equal for a run to be resumed
    resume     checkpoint to start from; on one CPU the run ends bit for bit as without the stop, and
               the seconds before the checkpoint count
    dtype      of the matmuls, by autocast; parameters keep their own
    score      called at every tenth of the steps; the parameters with the lowest score are restored
    loss_of    sharding.parallel(model) where several processes train together
    timed      called once, some steps after the start: the seconds that the rest takes, and the steps done

    SIGINT and SIGTERM end the run after the current step and a checkpoint, by raising Stopped, a
    KeyboardInterrupt. Raises Diverged when a loss or gradient is not finite (the last checkpoint is
    from before), and Error for a checkpoint that does not fit.
    """
    loss_of = loss_of or model.loss
    parameters = dict(model.named_trainable_parameters())
    groups = [{**group, "peak": group["lr"]} for group in model.parameter_groups(lr)]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    device = next(iter(parameters.values())).device
    start, best, before = restore(resume, steps, parameters, optimizer, settings) if resume else (0, None, 0.0)
    tenth = max(1, steps // 10)
    recent: list[Tensor] = []  # loss and gradient norm of the steps since they were last read
    began = saved = time.monotonic()
    model.train()
    with StopRequest() as stop_request, progress(total=steps, initial=start, unit="step") as bar:
        expected = TimeEstimate(bar)
        for done in range(start + 1, steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(done - 1, steps, group["peak"])
            idx, targets, weight = local_rows(*batch(done - 1))
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = loss_of(idx.to(device), targets.to(device)) * weight
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            optimizer.step()
            recent.append(torch.stack([loss.detach(), full_tensor(norm)]))
            bar.update()
            if (seconds := expected()) is not None:
                timed(seconds, done)

            # 0; 1: a checkpoint is due; otherwise the number of a signal
            stop = all_reduce_max(stop_request.number or time.monotonic() - saved > CHECKPOINT_SECONDS)
            at_tenth = done % tenth == 0 or done == steps
            if at_tenth or stop or done % LOG_EVERY == 0:
                bar.set_postfix(loss=f"{_last_loss(recent, done, steps, optimizer):.3f}")
            lowest = math.inf if best is None else best.score
            if at_tenth and score is not None and (value := score()) < lowest:
                best = Best(value, {name: p.detach().clone() for name, p in parameters.items()})
            if (at_tenth or stop) and run is not None:
                spent = before + time.monotonic() - began
                run.save(done, collect(done, settings, parameters, optimizer, best, spent))
                saved = time.monotonic()
            if stop > 1:
                raise Stopped.after(stop, done, steps)
        if stop := all_reduce_max(stop_request.number):  # of the last evaluation or checkpoint
            raise Stopped.after(stop, steps, steps)
    if best is not None:
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(best.trained[name])
    return before + time.monotonic() - began


def _last_loss(recent: list[Tensor], done: int, steps: int, optimizer) -> float:
    """Empty `recent`; returns its last loss. Raises Diverged unless all of it is finite."""
    values = all_reduce_mean(torch.stack(recent)).tolist()
    recent.clear()
    for step, (loss, norm) in enumerate(values, done - len(values) + 1):
        if not math.isfinite(loss) or not math.isfinite(norm):
            peak = min(group["peak"] for group in optimizer.param_groups)
            rate = learning_rate(step - 1, steps, peak)
            raise Diverged(f"training diverged at step {step} of {steps} (loss {loss:.3g}, "
                           f"gradient norm {norm:.3g}, learning rate {rate:.3g}): "
                           f"try a peak learning rate below {peak:g}, or other data")
    return values[-1][0]
