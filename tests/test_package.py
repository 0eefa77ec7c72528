"""The package as others get it: public names, import paths, and the wheel, installed alone."""

import ast
import importlib
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import torch

import minipeft
from minipeft.accounting.shapes import EMBEDDED
from tests import typed_usage

ROOT = Path(__file__).parents[1]

PUBLIC = [
    "GPT", "GPTConfig", "METHODS", "PRESETS", "Error", "Prefix", "TaskBank", "accounting", "adapt", "fingerprint",
    "generate", "hidden_from_prompt", "load_adapter", "prefix_attention", "prefix_from_hidden", "prefix_from_prompt",
    "prompt_from_tokens", "vote",
]

PATHS = {  # names inside the package that scripts of users import
    "minipeft.bench.measure": ["saved_bytes"],
    "minipeft.bench.peers": [
        "build", "gradient_norm", "same_start", "same_work", "saved_bytes", "train_step",
    ],
    "minipeft.bench.quality.cell": ["draw", "run"],
    "minipeft.bench.quality.studies": ["BUDGET", "cell", "largest"],
    "minipeft.config": ["GPT2", "GPTConfig"],
    "minipeft.data": ["NANO"],
    "minipeft.data.batches": ["encode", "question"],
    "minipeft.data.files": ["read_examples"],
    "minipeft.data.tasks": ["Example"],
    "minipeft.data.template": ["Template"],
    "minipeft.data.tokenizer": ["tokenizer_for"],
    "minipeft.loss": ["linear_cross_entropy"],
}


def test_public_names():
    assert minipeft.__all__ == PUBLIC
    assert all(hasattr(minipeft, name) for name in PUBLIC)


def test_the_version_is_the_one_to_cite():
    """pyproject.toml reads it from the package; the wheel's is compared below."""
    assert f"\nversion: {minipeft.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


@pytest.mark.parametrize("module", PATHS)
def test_import_paths(module):
    missing = [name for name in PATHS[module] if not hasattr(importlib.import_module(module), name)]
    assert missing == []


def test_every_public_name_runs_as_documented(tmp_path):
    typed_usage.use(tmp_path)
    nodes = ast.walk(ast.parse(Path(typed_usage.__file__).read_text()))
    assert {node.id for node in nodes if isinstance(node, ast.Name)} >= set(PUBLIC)


TUNE_AND_GENERATE = """
import sys, torch, minipeft
from importlib.metadata import version
from pathlib import Path

package = Path(minipeft.__file__).parent
assert package.is_relative_to(sys.prefix) and (package / "py.typed").exists(), package
assert version("minipeft") == minipeft.__version__
base = minipeft.GPT.from_pretrained("nano")
model = minipeft.adapt(base, "prefix", num_virtual_tokens=8)
optimizer = torch.optim.AdamW(model.parameter_groups(), lr=0.03)
text = torch.tensor([list(b"abcd -> dcba")])
losses = []
for _ in range(8):
    loss = model.loss(text[:, :-1], text[:, 1:])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[-1] < 0.7 * losses[0], losses
expected = model(text)
model.save("adapter")
model = minipeft.load_adapter(model.detach(), "adapter")
torch.testing.assert_close(model(text), expected, rtol=0, atol=0)
answer = minipeft.generate(model, text[:, :8], max_new_tokens=4)
assert answer.shape == (1, 12) and answer[0, :8].equal(text[0, :8])
print("tuned, saved, loaded, generated")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the tree without any build folder that an earlier build left."""
    folder = tmp_path_factory.mktemp("wheel")
    unwanted = shutil.ignore_patterns(".*", "build", "runs", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, folder / "tree", ignore=unwanted)
    pip_wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*pip_wheel, "--wheel-dir", folder, folder / "tree"], check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_contents_of_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as z:
        names = {name for name in z.namelist() if ".dist-info/" not in name}
    package = ROOT / "minipeft"
    assert names == {str(path.relative_to(ROOT)) for path in package.rglob("*") if path.is_file()
                     and path.suffix != ".pyc"}
    data = {name for name in names if not name.endswith(".py")} - {"minipeft/py.typed"}
    bases = [f"minipeft/data/{base}" for base in EMBEDDED]
    files = ["config.json", "pytorch_model.bin", "scores.json"]
    seeds = {"minipeft/documents/seeds.txt"}
    assert data == seeds | {f"{base}/{file}" for base in bases for file in files}, "results and pages belong to docs/"
    unwanted = {"tests", "docs", "faults", "tools", "report", "comparison", "results"}
    assert [name for name in names if unwanted & set(Path(name).with_suffix("").parts)] == []


@pytest.mark.slow
def test_wheel_installed_alone(wheel, tmp_path):
    """In a new environment that has torch, outside the checkout."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True)
    site = next((tmp_path / "env").rglob("site-packages"))
    (site / "torch.pth").write_text(str(Path(torch.__file__).parents[1]))
    outside = tmp_path / "outside"
    outside.mkdir()
    for arguments, printed in ((["-c", TUNE_AND_GENERATE], "generated"), (["-m", "minipeft", "--help"], "usage: ")):
        run = subprocess.run([python, *arguments], cwd=outside, capture_output=True, text=True)
        assert run.returncode == 0 and printed in run.stdout, run.stderr
