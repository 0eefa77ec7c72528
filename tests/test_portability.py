"""Other systems: macOS and Windows in imitation, and devices that this machine does not have."""

import ast
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minipeft import METHODS
from minipeft.attach import Adapted
from minipeft.runtime import devices
from tests.conftest import TYPICAL, quick, sizes_for, tiny

ROOT = Path(__file__).parents[1]

# Everything that minipeft did not bring is imported first, on Linux; then the system changes. On Windows an
# open file is neither deleted nor replaced, which this process's open files and mappings tell.
IMITATION = """
import os, signal, sys
import tests.conftest, filelock, jinja2, multiprocessing.pool, numpy, safetensors.torch, subprocess, tokenizers
import torch, tqdm.contrib.concurrent, torch._dynamo, torch.distributed.fsdp, concurrent.futures.process

system, out = sys.argv[1], sys.argv[2]
for name in [name for name in sys.modules if name.split(".")[0] in ("minipeft", "tests", "train", "bench")]:
    del sys.modules[name]
lacking = {"win32": ["resource", "fcntl", "pwd", "grp", "termios", "posix", "syslog"], "darwin": []}[system]
for name in lacking:
    sys.modules[name] = None  # an import raises ModuleNotFoundError
windows = system == "win32"
for module, kept in ((os, "fork forkpty nice getuid geteuid setsid killpg mkfifo getloadavg uname sysconf "
                          "O_DIRECTORY fchmod chown wait4 posix_fadvise posix_fallocate"), (signal,
                          "SIGHUP SIGKILL SIGQUIT SIGUSR1 SIGUSR2 SIGALRM SIGCHLD SIGPIPE SIGSTOP alarm "
                          "setitimer pthread_kill sigwait pause")):
    for name in kept.split() if windows else []:
        delattr(module, name)
for name in ("sched_getaffinity", "sched_setaffinity", "posix_fadvise", "memfd_create"):  # macOS lacks them too
    if hasattr(os, name):
        delattr(os, name)
imitated = True

def in_use(path):
    global imitated
    imitated = False
    try:
        held = {os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")}
        with open("/proc/self/maps", encoding="utf-8") as maps:
            held |= {line.split(maxsplit=5)[-1].strip() for line in maps}
    finally:
        imitated = True
    return os.path.realpath(path) in held

RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))}

def check_name(path):
    for part in os.path.relpath(path, out).split("/"):
        if part not in (".", "..") and (set(part) & set('<>:"|?*\\\\') or part[-1] in ". "
                                        or part.split(".")[0].lower() in RESERVED):
            raise OSError(22, f"no file name of Windows: {part!r}")

def hook(event, args):
    if not imitated:
        return
    if event == "open" and isinstance(args[0], (str, bytes, os.PathLike)):
        path = os.fsdecode(args[0])
        if path.startswith(("/proc", "/sys", "/dev") if windows else ("/proc", "/sys")):
            raise FileNotFoundError(2, "No such file or directory", path)
        if windows and os.path.isdir(path):
            raise PermissionError(13, "Permission denied", path)
        if windows and out in path:
            check_name(path)
    if windows and event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
        for path in map(os.fspath, args[:1 + (event == "os.rename")]):
            check_name(path)
            if "lock" not in os.path.basename(path) and in_use(path):  # filelock has other code there
                raise PermissionError(13, f"{path} is open, so Windows would refuse {event}")

def only_windows_signals(number, handler, real=signal.signal):
    if number not in (signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGINT, signal.SIGSEGV, signal.SIGTERM):
        raise ValueError("invalid signal value")
    return real(number, handler)

if windows:
    signal.signal, os.devnull = only_windows_signals, os.path.join(out, "null")
    open(os.devnull, "w").close()
sys.addaudithook(hook)
sys.platform = system
"""

TUNING = """
import contextlib, io, train, minipeft
from minipeft import GPT, __main__ as main, adapt, load_adapter
from minipeft.bench import measure
from minipeft.data import NANO
from minipeft.files import tensors
from minipeft.runtime import memory, profiling
from minipeft.runtime.console import run
from minipeft.training import loop
from pathlib import Path
import json

assert memory.available_memory(torch.device("cpu")) is None
assert (memory.resident_peak() is None) == windows
assert profiling.card(torch.device("cpu"))["device"]
for error in (RuntimeError("not enough memory: you tried to allocate 400 bytes"), MemoryError()):
    def fail():
        raise error
    assert run("s.py", fail) == 2

def call(main, *argv):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert run("s.py", lambda: main([str(word) for word in argv])) == 0, argv
    return printed.getvalue()

flags = ["--steps", 4, "--batch-size", 2, "--base", "tiny"]
for safe in (True, False):
    if not safe:
        tensors.have_safetensors = lambda: False
    for method in ("prefix", "lora+prefix", "full"):
        folder = Path(out) / f"{method}-{safe}"
        again = [*flags, "--method", method, "--out", folder]
        first = call(train.main, *again)
        assert "exact match" in first and json.loads((folder / "scores.json").read_text("utf-8"))
        assert call(train.main, *again, "--overwrite").splitlines()[:2] == first.splitlines()[:2]

        stop, real = [2], loop.collect
        def stopping(step, *rest):  # after the second step, as by Ctrl-C
            if step == 2 and stop:
                stop.clear()
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
            return real(step, *rest)
        loop.collect = stopping
        with contextlib.redirect_stdout(io.StringIO()):
            code = run("s.py", lambda: train.main([str(word) for word in [*again, "--overwrite"]]))
        loop.collect = real
        assert code == 130, code
        assert "resuming from" in (printed := call(train.main, *again, "--resume")), printed
        assert not (folder / "training_state").exists() or windows
        if method != "full":
            assert call(main.main, "generate", "--base", "tiny", "--adapter", folder, "--prompt", "12 -> ",
                        "--max-new-tokens", 3)
            base = GPT.from_pretrained("minipeft/data/tiny")
            model = load_adapter(base, folder)
            model.save(folder)  # into the folder that it was read from
            model.detach()
            assert call(main.main, "inspect", folder, "--base", "tiny")
        else:
            GPT.from_pretrained(folder).save_pretrained(folder)
print("tuned, stopped, resumed, saved, loaded")
"""


@pytest.mark.slow
@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_a_run_needs_nothing_that_other_systems_lack(system, tmp_path):
    done = subprocess.run([sys.executable, "-c", IMITATION + TUNING, system, tmp_path], cwd=ROOT, text=True,
                          capture_output=True, encoding="utf-8", env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0 and "tuned, stopped, resumed, saved, loaded" in done.stdout, done.stderr[-3000:]


def test_the_default_device_is_cuda_else_mps_else_cpu(monkeypatch):
    for cuda, mps, expected in ((1, 1, "cuda"), (1, 0, "cuda"), (0, 1, "mps"), (0, 0, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: bool(cuda))
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: bool(mps))
        assert devices.default_device() == expected


def test_text_files_are_opened_as_utf_8():
    """Windows' default is another one."""
    found = []
    for path in [*ROOT.glob("*.py"), *(ROOT / "minipeft").rglob("*.py"), *(ROOT / "docs").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and opens_text(node):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert found == []


def opens_text(call: ast.Call) -> bool:
    """True for a call that opens a file as text, or reads a program's output so, in the system's encoding."""
    name = ast.unparse(call.func)
    given = {k.arg: k.value for k in call.keywords}
    modes = [a.value for a in (*call.args[:2], given.get("mode")) if isinstance(a, ast.Constant)]
    if any(isinstance(mode, str) and "b" in mode and len(mode) < 4 for mode in modes) or "encoding" in given:
        return False
    if name == "open" or name.endswith((".read_text", ".write_text", "NamedTemporaryFile", "os.fdopen")):
        return True
    return name.startswith("subprocess.") and ("text" in given or "universal_newlines" in given)


class Elsewhere(TorchDispatchMode):
    """Operators whose result is not on the device "meta", or is in float64, which Apple's GPUs lack."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            if isinstance(t, torch.Tensor) and (t.device.type != "meta" or t.dtype == torch.float64):
                self.found.append(f"{operator} -> {t.device} {t.dtype}")
        return result


@pytest.mark.parametrize("name, h, shape", quick(
    [(*setting, shape) for setting in TYPICAL for shape in ("llama", "learned")],
    *[(*setting, "llama") for setting in {name: (name, h) for name, h in TYPICAL}.values()]))
def test_every_method_computes_on_the_device_of_the_base_and_in_no_float64(name, h, shape, monkeypatch):
    """On "meta", where tensors have no values: torch without CUDA has no other device for autograd."""
    autocast = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *device: device != ("meta",) and autocast(*device))
    cast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda device, *a, **h: nullcontext() if device == "meta"
                        else cast(device, *a, **h))  # there is none on "meta"
    monkeypatch.setattr(torch.Tensor, "__int__", lambda t: 0)  # the check of a hard prompt's tokens
    base = tiny(shape)
    model = Adapted(base, METHODS[name].example(base, **sizes_for(base.config, name, h))).to("meta")
    with FakeTensorMode(allow_non_fake_inputs=True), Elsewhere() as elsewhere:
        idx = torch.zeros(3, 11, dtype=torch.int64, device="meta")
        loss = model.loss(idx, idx)
        if loss.requires_grad:
            loss.backward()
        assert loss.device.type == "meta" and elsewhere.found == []


@pytest.mark.parametrize("name, h", TYPICAL)
def test_a_method_is_made_on_the_device_of_the_base(name, h, monkeypatch):
    base = tiny("learned").to("meta")
    monkeypatch.setattr(torch.Tensor, "__int__", lambda t: 0)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda t: torch.ones(t.shape))  # random numbers come from the CPU
    method = METHODS[name].example(base, **sizes_for(base.config, name, h))
    assert {t.device.type for t in (*method.parameters(), *method.buffers())} <= {"meta"}
