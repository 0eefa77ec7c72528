"""The method of docs/add-a-method.md, written into a copy of the package, is one like every other."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "docs" / "add-a-method.md", ROOT / "docs" / "zh-CN" / "add-a-method.md"]
PAGE = PAGES[0].read_text(encoding="utf-8")
CODE, KEEP, *COUNT = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)  # its file; to save and load; to count
LINE = re.search(r"```text\n(from \.(\w+) import \w+)\n```", PAGE)
COMMANDS = re.findall(r"^(python .*?) *#", PAGE, re.MULTILINE)

USE = """
import contextlib, importlib.util, io, sys
from pathlib import Path

import torch
import torch.nn.functional as F
from test_ledger import counter

import bench, minipeft, train
from minipeft import __main__
from docs.tools import drawing, forms
from minipeft import GPT, METHODS, Error, GPTConfig, TaskBank, accounting, adapt, load_adapter
from minipeft.adapters import export_adapter
from minipeft.runtime.profiling import saved_bytes


def refusal(f, *arguments):
    try:
        f(*arguments)
    except Error as e:
        return str(e)
    raise AssertionError("not refused")


assert Path(minipeft.__file__).is_relative_to(Path.cwd())
name = list(METHODS)[-1]
torch.manual_seed(0)
c = GPTConfig(vocab_size=97, block_size=48, n_layer=2, n_head=4, n_embd=32)
base, (idx, targets) = GPT(c), torch.randint(97, (2, 2, 7))
before, plain = {key: x.clone() for key, x in base.state_dict().items()}, base(idx)

for h in ({}, *METHODS[name].typical):
    model = adapt(base, name, **h)
    assert torch.equal(model(idx), plain)
    held = list(model.parameters())
    said = accounting.train_bytes(c, name, 2, 7, **h)
    assert said.weights == sum(p.nbytes for p in held)
    assert said.activations == saved_bytes(lambda: model.loss(idx.clone(), targets.clone()), held)
    assert accounting.count(c, name, **h) == (sum(p.numel() for p in model.trainable_parameters()),
                                              sum(t.numel() for t in model.method.tensors().values()))
    with counter() as counted:
        loss = F.cross_entropy(model(idx).flatten(0, 1), targets.flatten())
        forward = counted.get_total_flops()
        loss.backward()
    assert accounting.flops(c, name, 2, 7, **h) == (forward, counted.get_total_flops() - forward)

    optimizer, losses = torch.optim.AdamW(model.parameter_groups(lr=0.1)), []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model.loss(idx, targets)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[-1] == min(losses) < 0.95 * losses[0], losses

    model.save("adapter")
    logits = model(idx)
    assert refusal(model.merge).startswith(f"{name} cannot be merged")
    assert METHODS[name].mixing in refusal(TaskBank, base, {"a": "adapter"})
    assert METHODS[name].peft in refusal(export_adapter, base, "adapter", "for-peft")
    if importlib.util.find_spec("safetensors"):
        assert accounting.adapter_bytes(c, name, **h) == sum(f.stat().st_size for f in Path("adapter").iterdir())
    model.detach()
    assert all(torch.equal(x, before[key]) for key, x in base.state_dict().items())
    assert torch.equal(load_adapter(base, "adapter").detach()(idx), plain)
    assert torch.equal(load_adapter(base, "adapter")(idx), logits)

assert forms.method(forms.Pool(), name)["terms"]  # the explorer's data
assert len(set(drawing.COLOURS.values())) == len(set(drawing.MARKERS.values())) == len(METHODS)

keep, *count = sys.argv[1:4]
model, said = adapt(base, name), []
for line in keep.splitlines():
    try:
        exec(line)
    except Error as e:
        said.append(str(e))
assert METHODS[name].mixing in said[0] and METHODS[name].peft in said[1] and len(said) == 2

for code in count:  # of saved bytes, of FLOPs
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code)
    counted, declared = out.getvalue().splitlines()[-1].split()
    assert int(counted) == int(declared) > 0

for line in sys.argv[4:]:
    script, *argv = line.removeprefix("-m ").split()
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        try:
            {"train.py": train, "bench.py": bench, "minipeft": __main__}[script].main(argv)
        except Error as e:
            print(e)
    print("==", out.getvalue(), sep="\\n")
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the package and its scripts with the page's method."""
    root = tmp_path_factory.mktemp("copy")
    without = shutil.ignore_patterns("__pycache__", "medium")
    for folder in ("minipeft", "docs/tools"):
        shutil.copytree(ROOT / folder, root / folder, ignore=without)
    for file in ("train.py", "bench.py", "docs/explorer.html"):
        shutil.copy(ROOT / file, root / file)
    methods = root / "minipeft" / "methods"
    (methods / f"{LINE[2]}.py").write_text(CODE, encoding="utf-8")
    imports = (methods / "__init__.py").read_text(encoding="utf-8")
    last = re.findall(r"^from \.\w+ import \w+$", imports, re.MULTILINE)[-1]
    (methods / "__init__.py").write_text(imports.replace(last, f"{last}\n{LINE[1]}"), encoding="utf-8")
    return root


def run(copy: Path, *arguments: str, **env: str) -> str:
    """The output of Python in the copy."""
    env = {**os.environ, "PYTHONPATH": f"{copy}:{ROOT / 'tests'}:{ROOT}", **env}
    found = subprocess.run([sys.executable, *arguments], cwd=copy, env=env, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def code_of(page: Path) -> list[str]:
    """The page's code and commands, without the comments at the end of a line."""
    blocks = re.findall(r"```(?:python|bash|text)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [blocks[0], *(re.sub(r" +# .*", "", block) for block in blocks[1:])]


def test_both_languages_have_the_same_code():
    english, chinese = map(code_of, PAGES)
    assert english == chinese


def test_the_method_is_one_like_every_other(copy):
    """Trained, saved, loaded, detached, refused where it must be, counted, and known to the scripts."""
    help_, train, export, derivation, *_ = COMMANDS
    lines = [line.removeprefix("python ") for line in (help_, f"{train} --batch-size 8", derivation, export)]
    said = re.split(r"^==\n", run(copy, "-c", USE, KEEP, *COUNT, *lines), flags=re.MULTILINE)[1:]
    assert "--shared-size M" in said[0] and "width of the shared network (default: 8)" in said[0]
    assert "--behind {mlp,attn}" in said[0]
    assert "trainable params: 1,040 ||" in said[1]
    assert "trained                   m·(L + 2·C)\n                        = 4·(12 + 2·768)\n" in said[2]
    assert "PEFT has no adapter that the blocks share" in said[3]


@pytest.mark.slow
def test_the_bench_measures_it_and_the_tests_that_every_method_has_pass(copy):
    *_, bench, tests = (shlex.split(command)[1:] for command in COMMANDS)
    assert re.search(r"^shared-adapter +m 8 +2,080 ", run(copy, *bench), re.MULTILINE)
    shutil.copytree(ROOT / "tests", copy / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    out = run(copy, *tests, "-q", "-p", "no:cacheprovider", PYTHONPATH=str(copy))
    assert re.search(r"^\d\d+ passed", out, re.MULTILINE), out
