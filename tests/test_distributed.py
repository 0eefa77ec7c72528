"""Several processes train as one does: the same losses, the same weights, and on the wire what the closed form says."""

import os
import socket
import traceback

import pytest
import torch
from conftest import SHAPES, quick, tiny
from forked import context

from minipeft import Error, adapt, generate
from minipeft.accounting import Traffic, base_parameters, bytes_per_step
from minipeft.runtime import processes
from minipeft.runtime.processes import local_batches, local_rows
from minipeft.training import sharding
from minipeft.training.sharding import parallel
from minipeft.training.traffic import CountedBytes

CPU = torch.device("cpu")

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this build of torch has no torch.distributed with gloo", allow_module_level=True)


class Group:
    """N processes that wait for functions of this file to call, all at once."""

    def __init__(self, n: int):
        start = context()
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.ends, self.processes = [], []
        for rank in range(n):
            ours, theirs = start.Pipe()
            self.processes.append(start.Process(target=serve, args=(theirs, rank, n, port), daemon=True))
            self.processes[-1].start()
            theirs.close()
            self.ends.append(ours)

    def __call__(self, function, *args, **kwargs) -> list:
        """What function(*args, **kwargs) returned in every process, in order of rank."""
        for end in self.ends:
            end.send((function.__name__, args, kwargs))
        answers = []
        for end in self.ends:
            assert end.poll(60), f"{function.__name__} hangs"
            answers.append(end.recv())
        for worked, answer in answers:
            assert worked, answer
        return [answer for _, answer in answers]

    def close(self) -> None:
        for end in self.ends:
            end.close()
        for process in self.processes:
            process.join(5)
            process.kill()


def serve(pipe, rank: int, n: int, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    assert processes.join_processes(CPU) == CPU and (processes.world_size(), processes.rank()) == (n, rank)
    while True:
        try:
            name, args, kwargs = pipe.recv()
        except EOFError:
            return processes.leave_processes()
        try:
            pipe.send((True, globals()[name](*args, **kwargs)))
        except Exception:
            pipe.send((False, traceback.format_exc()))


def group_of(n: int):
    group = Group(n)
    yield group
    group.close()


@pytest.fixture(scope="module")
def two():
    yield from group_of(2)


@pytest.fixture(scope="module")
def three():
    yield from group_of(3)


def batch(step: int, lengths=(9, 9, 9, 9)) -> tuple[torch.Tensor, torch.Tensor]:
    """idx, targets (B, 9); the last `length` positions of each row are supervised."""
    g = torch.Generator().manual_seed(step)
    tokens = torch.randint(97, (len(lengths), 10), generator=g)
    targets = tokens[:, 1:].clone()
    for row, length in zip(targets, lengths, strict=True):
        row[: 9 - length] = -100
    return tokens[:, :-1], targets


def adapted(name: str, h: dict, shape: str = "learned", dtype=torch.float32):
    base = tiny(shape, dtype)
    torch.manual_seed(1)
    return adapt(base, name, **h)


def train(
    name, h=None, shape="learned", steps=50, lengths=(9, 9, 9, 9), shard_base=False, dtype=torch.float32, **how
) -> dict:
    """The training loop, over all processes of this group or here alone, from a checkpoint if given."""
    model = adapted(name, h or {}, shape, dtype)
    before = [p.clone() for p in model.base.parameters()]
    if how.get("start_apart") and processes.rank():
        with torch.no_grad():
            for p in model.trainable_parameters():
                p.add_(1)
    loss_of = parallel(model, CPU, shard_base)
    model.gradient_checkpointing(how.get("checkpointing", False))
    parameters = dict(model.named_trainable_parameters())
    optimizer = torch.optim.AdamW(
        model.parameter_groups(1e-3 if name == "full" else 1e-2), betas=(0.9, 0.98), weight_decay=0.0, fused=True
    )
    first, losses, traffic = load(how["state"], parameters, optimizer) if "state" in how else 0, [], []
    model.train()
    for step in range(first, steps):
        idx, targets, weight = local_rows(*batch(step, lengths))
        with CountedBytes() as counted, torch.autocast("cpu", torch.bfloat16, enabled=how.get("low", False)):
            loss = weight * loss_of(idx, targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        losses.append(processes.all_reduce_mean(loss.detach()).item())
        traffic.append(counted.traffic)
    base = [sharding.full_tensor(p).detach() for p in model.base.parameters()]
    return {
        "losses": losses,
        "trained": {k: sharding.full_tensor(p).detach() for k, p in parameters.items()},
        "traffic": traffic,
        "state": save(steps, parameters, optimizer),
        "base_changed": any(not torch.equal(a, b) for a, b in zip(base, before, strict=True)),
        "held": sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in model.base.parameters()),
        "numbers": sum(p.numel() for p in parameters.values()),
    }


def save(step: int, parameters: dict, optimizer) -> dict:
    found = optimizer.state_dict()
    moments = {i: sharding.gather_to_rank0(tensors) for i, tensors in found["state"].items()}
    return {"step": step, "trained": sharding.gather_to_rank0(parameters), "optimizer": found | {"state": moments}}


@torch.no_grad()
def load(state: dict, parameters: dict, optimizer) -> int:
    for name, p in parameters.items():
        p.copy_(sharding.shard_like(state["trained"][name], p))
    ordered = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {  # cloned, since what comes through a pipe lies in memory that all receivers share
        i: {k: (sharding.shard_like(t, ordered[i]) if t.dim() else t).clone() for k, t in tensors.items()}
        for i, tensors in state["optimizer"]["state"].items()
    }
    optimizer.load_state_dict(state["optimizer"] | {"state": moments})
    return state["step"]


PREFIX = ("prefix", dict(num_virtual_tokens=4))
RUNS = {
    "prefix": (*PREFIX, {}),
    "prefix of an MLP": ("prefix", dict(num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=7), {}),
    "lora": ("lora", dict(r=3), {"shape": "llama"}),
    "sharded prefix": (*PREFIX, {"shape": "llama", "shard_base": True}),
    "sharded lora": ("lora", dict(r=3), {"shard_base": True}),
    **{f"full {shape}": ("full", {}, {"shape": shape}) for shape in SHAPES},
}


def assert_alike(alone: dict, each: list[dict], tolerance: float = 1e-5) -> None:
    for one in each:
        assert one["losses"] == pytest.approx(alone["losses"], rel=tolerance, abs=tolerance)
    for k, p in each[0]["trained"].items():
        assert torch.equal(p, each[1]["trained"][k]), k  # bit for bit: they take the same steps


@pytest.mark.parametrize("run", quick(RUNS, "prefix"))
def test_two_processes_train_as_one_does_and_send_what_the_closed_form_says(run, two):
    name, h, how = RUNS[run]
    each, alone = two(train, name, h, **how), train(name, h, **how)
    assert_alike(alone, each)
    full, sharded = name == "full", name == "full" or "shard_base" in how
    shape = tiny(how.get("shape", "learned")).config
    wanted = bytes_per_step(shape, each[0]["numbers"], 2, full, sharded)
    for one in each:
        assert [one["traffic"][0], *one["traffic"][2:]] == [wanted] * 49
        assert one["traffic"][1]._replace(broadcast=0) == wanted and one["traffic"][1].broadcast <= 64
        assert one["base_changed"] == full
        assert abs(one["held"] / base_parameters(shape) - (0.5 if sharded else 1)) < 0.01
    assert alone["traffic"] == [Traffic()] * 50


LENGTHS = [[9, 1, 3, 7, 2], [0, 0, 9, 0], [9, 9, 9], [4], [5, 0]]


@pytest.mark.parametrize("lengths", quick(LENGTHS, *LENGTHS[:2]), ids=str)
@pytest.mark.parametrize("run", ["prefix", "full llama"])
def test_rows_that_do_not_divide_and_answers_of_any_length_keep_the_mean_over_tokens(run, lengths, two):
    name, h, how = RUNS[run]
    how = how | dict(steps=6, lengths=lengths, dtype=torch.float64)
    each, alone = two(train, name, h, **how), train(name, h, **how)
    assert_alike(alone, each, 1e-9)
    for k, p in alone["trained"].items():
        torch.testing.assert_close(each[0]["trained"][k], p, rtol=1e-7, atol=1e-9)


def test_every_process_starts_from_what_the_leader_has(two):
    name, h, _ = RUNS["prefix"]
    assert_alike(train(name, h, steps=3), two(train, name, h, steps=3, start_apart=True))


@pytest.mark.parametrize("run", quick(["full llama", "sharded prefix"], "sharded prefix"))
def test_checkpointed_blocks_gather_no_more_and_autocast_runs(run, two):
    name, h, how = RUNS[run]
    plain = two(train, name, h, steps=3, **how)
    each = two(train, name, h, steps=3, checkpointing=True, **how)
    assert_alike(plain[0], each, 1e-6)
    assert each[0]["traffic"] == plain[0]["traffic"]
    low = two(train, name, h, steps=3, low=True, **how)
    assert_alike(train(name, h, steps=3, low=True, **how), low, 0.05)
    assert low[0]["losses"] != plain[0]["losses"]


@pytest.mark.parametrize("run", quick(["full learned", "full llama", "sharded prefix", "prefix"], "prefix"))
def test_a_state_saved_by_two_processes_is_resumed_by_three_by_one_and_by_two_again(run, two, three):
    name, h, how = RUNS[run]
    how = how | dict(dtype=torch.float64)
    through = train(name, h, steps=8, **how)
    state = two(train, name, h, steps=2, **how)[0]["state"]
    by_three = three(train, name, h, steps=4, state=state, **how)
    assert by_three[1]["state"]["trained"] == {} == by_three[2]["state"]["trained"]  # only the leader holds it whole
    state = train(name, h, steps=6, state=by_three[0]["state"], **how)["state"]
    last = two(train, name, h, steps=8, state=state, **how)[0]
    assert last["losses"] == pytest.approx(through["losses"][6:], abs=1e-9)
    for k, p in through["trained"].items():
        torch.testing.assert_close(last["trained"][k], p, rtol=1e-7, atol=1e-9)
    full = name == "full"
    config = tiny(how.get("shape", "learned")).config
    wanted = bytes_per_step(config, last["numbers"], 3, full, full or "shard_base" in how, 8)
    if not full:
        wanted = wanted._replace(all_reduce=8 * last["numbers"])  # what is trained beside a float64 base is float64 too
    assert by_three[0]["traffic"][0] == wanted


def sharded_base() -> dict:
    """A sharded base in every process: copied, evaluated, and changed afterwards."""
    model = adapted("full", {}, "llama")
    parallel(model, CPU)
    random = torch.get_rng_state()
    copy = sharding.full_base(model.base)
    same_noise = torch.equal(random, torch.get_rng_state())
    loss, tokens = 0.0, 0
    with torch.no_grad():
        for (idx, targets), counted in local_batches([batch(i, (9, i + 1)) for i in range(5)]):
            n = (targets != -100).sum().item() * counted
            loss, tokens = loss + n * model.loss(idx, targets).item(), tokens + n
        unsharded = sum(not hasattr(p, "full_tensor") for p in model.base.parameters())
        sharding.reshard(model.base)
        completed = generate(model, batch(0)[0][:2], 5)  # starts from shards
        sharding.reshard(model.base)
        for p in model.base.parameters():
            p.copy_(sharding.shard_like(torch.zeros(p.shape), p))
        zeroed = model.base(batch(0)[0])  # its forward pass goes through `hidden`
    return {
        "copy": copy and copy.state_dict(),
        "same_noise": same_noise,
        "loss": (processes.all_reduce_sum(torch.tensor(loss)) / processes.all_reduce_sum(torch.tensor(tokens))).item(),
        "unsharded": unsharded,
        "tokens": completed,
        "sharded": all(hasattr(p, "full_tensor") for p in adapted_parameters(model)),
        "zeroed": zeroed.abs().max().item(),
    }


def adapted_parameters(model):
    sharding.reshard(model.base)
    return model.base.parameters()


def test_a_sharded_base_is_copied_whole_evaluated_in_step_and_sharded_again(two):
    leader, other = two(sharded_base)
    model = adapted("full", {}, "llama")
    assert other["copy"] is None and leader["same_noise"] and other["same_noise"]
    assert leader["copy"].keys() == model.base.state_dict().keys()
    assert all(torch.equal(leader["copy"][k], t) for k, t in model.base.state_dict().items())
    with torch.no_grad():
        pairs = [batch(i, (9, i + 1)) for i in range(5)]
        tokens = [(targets != -100).sum().item() for _, targets in pairs]
        wanted = sum(n * model.loss(*pair).item() for n, pair in zip(tokens, pairs, strict=True)) / sum(tokens)
    for one in (leader, other):
        assert one["loss"] == pytest.approx(wanted, rel=1e-5)
        assert torch.equal(one["tokens"], generate(model, batch(0)[0][:2], 5))
        assert one["unsharded"] > 0 and one["sharded"]
        assert one["zeroed"] == 0  # weights loaded after an evaluation are those that the next forward pass sees
    assert sharding.full_base(model.base) is model.base


def refusal(name: str, h: dict, compiled: bool = False) -> str:
    model = adapted(name, h)
    model.base.through_compile = compiled
    try:
        parallel(model, CPU, shard_base=True)
    except Error as e:
        return str(e)
    return "none"


def test_what_does_not_go_with_a_sharded_base_is_refused(two):
    hidden = "prefix", dict(num_virtual_tokens=4, space="hidden")
    for name, h in (hidden, ("llama-adapter", dict(adapter_len=3))):
        start = f"{name} in this form reads weights of blocks before their turn"
        assert all(said.startswith(start) for said in two(refusal, name, h))
    assert "cannot be compiled" in two(refusal, *PREFIX, compiled=True)[1]


def talk() -> dict:
    """What the small functions say in this process."""

    def fails(error):
        def work():
            raise error

        try:
            processes.run_on_rank0(work)
        except Exception as e:
            return type(e).__name__, str(e)

    def differs():
        try:
            processes.check_same_settings({"seed": 0, "data": f"{processes.rank()}.csv"})
        except Error as e:
            return str(e)

    processes.check_same_settings({"seed": 0})
    torch.manual_seed(5)
    processes.seed_this_rank(5)
    return {
        "leader": processes.is_main_process(),
        "total": processes.all_reduce_sum(torch.tensor([1.0, processes.rank()])).tolist(),
        "mean": processes.all_reduce_mean(torch.tensor(float(processes.rank()))).item(),
        "agree": [processes.all_reduce_max(processes.rank()), processes.all_reduce_max(0)],
        "gathered": processes.all_gather(str(processes.rank())),
        "together": processes.run_on_rank0(lambda: {"by": processes.rank()}),
        "refused": fails(Error("no such file")),
        "failed": fails(OSError("disk full")),
        "differs": differs(),
        "noise": torch.rand(3).tolist(),
    }


def test_processes_agree_and_the_leaders_refusal_is_everyones(two):
    answers = two(talk)
    for answer in answers:
        assert answer["total"] == [2, 1] and answer["mean"] == 0.5 and answer["agree"] == [1, 0]
        assert answer["gathered"] == ["0", "1"] and answer["together"] == {"by": 0}
        assert answer["refused"] == ("Error", "no such file")
    assert [a["leader"] for a in answers] == [True, False]
    assert [a["failed"] for a in answers] == [("OSError", "disk full"), ("Error", "disk full")]
    assert answers[1]["differs"] == "processes 1 and 0 differ in data: '1.csv' and '0.csv'"
    alone = talk()
    assert answers[0]["noise"] == alone["noise"] != answers[1]["noise"]
    assert alone["agree"] == [0, 0] and alone["gathered"] == ["0"] and alone["differs"] is None


def die() -> None:
    os._exit(1)


def outlive() -> tuple[bool, str]:
    if processes.rank():
        die()
    try:
        for _ in range(3):
            processes.all_reduce_mean(torch.ones(1000))
    except Exception as e:
        return processes.is_lost_peer(e), repr(e)
    return False, "nothing was raised"


def test_a_peer_that_died_is_recognised_and_other_errors_are_not():
    group = Group(2)
    for end in group.ends:
        end.send(("outlive", (), {}))
    assert group.ends[0].poll(30)
    worked, (recognised, error) = group.ends[0].recv()
    assert worked and recognised, error
    group.close()
    assert not processes.is_lost_peer(RuntimeError("shapes do not match")) and not processes.is_lost_peer(Error("no"))
