"""Layers of the package: modules import from earlier layers only, and from declared libraries."""

import ast
import importlib.metadata
import re
import sys
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = [  # modules and folders of minipeft/, each importing only from those before it
    "checks", "config", "runtime", "files", "formulas", "fused", "attention", "slots", "parts", "model", "loss",
    "ladder", "methods", "attach", "accounting", "adapters", "data", "inference",
    "documents", "training", "bench", "__init__", "__main__",
]

REQUIRED = {"torch", "numpy", "tqdm"}  # requirements.txt
FROM_TORCH = {"filelock", "sympy"}  # required by torch itself
LATE = {"sympy"}  # takes a second to import: inside the functions that print formulas
OPTIONAL = {  # requirements-extra.txt; imported inside a function or a try
    "safetensors", "tokenizers", "huggingface_hub", "jinja2", "transformers", "peft", "sacrebleu",
}
OPTIONAL_PARTS = ("torch.distributed.",)  # missing from some builds of torch


@dataclass(frozen=True)
class Import:
    """One imported module, and where: `guarded` inside a try, `local` inside a function."""

    module: str
    place: str
    local: bool
    guarded: bool


class Source:
    """The imports of every module of a package, read from its files without running them."""

    def __init__(self, package: Path):
        self.name = package.name
        self.files = {self._module(path, package): path for path in sorted(package.rglob("*.py"))}
        self.imports = {module: list(self._read(module)) for module in self.files}

    @staticmethod
    def _module(path: Path, package: Path) -> str:
        parts = path.relative_to(package.parent).with_suffix("").parts
        return ".".join(parts).removesuffix(".__init__")

    def _read(self, module: str):
        path = self.files[module]
        tree = ast.parse(path.read_text(encoding="utf-8"))

        def visit(node: ast.AST, local: bool, guarded: bool):
            if isinstance(node, ast.Import | ast.ImportFrom):
                for name in self._names(node, module):
                    yield Import(name, f"{module}:{node.lineno}", local, guarded)
            local = local or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            guarded = guarded or isinstance(node, ast.Try)
            for child in ast.iter_child_nodes(node):
                yield from visit(child, local, guarded)

        yield from visit(tree, False, False)

    def _names(self, node: ast.Import | ast.ImportFrom, module: str) -> list[str]:
        """Full names of the imported modules: of `from a import b` a.b if that is a module of ours, else a."""
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        start = node.module or ""
        if node.level:
            up = node.level - (self.files[module].stem == "__init__")
            parents = module.split(".")[: len(module.split(".")) - up]
            start = ".".join([*parents, *([start] if start else [])])
        return [f"{start}.{a.name}" if f"{start}.{a.name}" in self.files else start for a in node.names]

    def is_ours(self, module: str) -> bool:
        return module.split(".")[0] == self.name

    def layer(self, module: str) -> str:
        """First part of a module's name below the package; for the package itself, __init__."""
        return (module.split(".") + ["__init__"])[1]

    def faults(self) -> list[str]:
        """One line for every import that breaks a rule."""
        found = [f"{name} is in no layer" for name in self.files if self.layer(name) not in LAYERS]
        for module, imports in self.imports.items():
            for i in imports:
                check = self._own_fault if self.is_ours(i.module) else self._library_fault
                if fault := check(module, i):
                    found.append(f"{i.place}: {fault}")
        return found + self._circles()

    def _own_fault(self, module: str, i: Import) -> str | None:
        if i.module not in self.files:
            return f"{i.module} is no module of ours"
        if i.local:
            return f"{i.module} is imported inside a function"
        layers = [self.layer(name) for name in (i.module, module)]
        if set(layers) <= set(LAYERS) and LAYERS.index(layers[0]) > LAYERS.index(layers[1]):
            return f"{layers[1]} imports from {layers[0]}, a later layer"
        return None

    def _library_fault(self, module: str, i: Import) -> str | None:
        library = i.module.split(".")[0]
        if library in LATE:
            return None if i.local else f"{library} is slow: import it where it is used"
        if library in OPTIONAL:
            inner = i.local or i.guarded
            return None if inner else f"{library} is optional: import it where it is used"
        if library not in REQUIRED | FROM_TORCH | sys.stdlib_module_names:
            return f"{library} is not declared"
        if i.local and not i.module.startswith(OPTIONAL_PARTS):
            return f"{i.module} is imported inside a function, and is not optional"
        return None

    def _circles(self) -> list[str]:
        graph = {module: {i.module for i in imports if self.is_ours(i.module)} - {module}
                 for module, imports in self.imports.items()}
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as e:
            return ["circle: " + " <- ".join(e.args[1])]
        return []


def test_every_import_obeys_the_layers():
    assert Source(ROOT / "minipeft").faults() == []


def test_every_layer_exists():
    """A name left over in LAYERS would let a later module of that name in unseen."""
    source = Source(ROOT / "minipeft")
    assert {source.layer(module) for module in source.files} == set(LAYERS)


@pytest.mark.parametrize("files, fault", [
    ({"config.py": "from .model import GPT"}, "pack.config:1: config imports from model, a later layer"),
    ({"files/hub.py": "from ..model import GPT"}, "pack.files.hub:1: files imports from model, a later layer"),
    ({"model.py": "from . import GPT"}, "pack.model:1: model imports from __init__, a later layer"),
    ({"model.py": "if True:\n    import pack.data.tasks", "data/tasks.py": ""},
     "pack.model:2: model imports from data, a later layer"),
    ({"data/a.py": "from . import b", "data/b.py": "from .a import x"},
     "circle: pack.data.a <- pack.data.b <- pack.data.a"),
    ({"methods/lora.py": "from . import METHODS", "methods/__init__.py": "from .lora import LoRA"},
     "circle: pack.methods <- pack.methods.lora <- pack.methods"),
    ({"loss.py": "def f():\n    from .config import Error"}, "pack.loss:2: pack.config is imported inside a function"),
    ({"loss.py": "def f():\n    import pack.config"}, "pack.loss:2: pack.config is imported inside a function"),
    ({"loss.py": "def f():\n    import json"}, "pack.loss:2: json is imported inside a function, and is not optional"),
    ({"loss.py": "import sympy"}, "pack.loss:1: sympy is slow: import it where it is used"),
    ({"loss.py": "import peft"}, "pack.loss:1: peft is optional: import it where it is used"),
    ({"loss.py": "def f():\n    import pandas"}, "pack.loss:2: pandas is not declared"),
    ({"loss.py": "import train"}, "pack.loss:1: train is not declared"),
    ({"loss.py": "from .configs import x"}, "pack.loss:1: pack.configs is no module of ours"),
    ({"attic.py": ""}, "pack.attic is in no layer"),
])
def test_a_broken_rule_is_reported(tmp_path, files, fault):
    for name, text in ({"__init__.py": "", "config.py": "", "model.py": ""} | files).items():
        path = tmp_path / "pack" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    faults = Source(tmp_path / "pack").faults()
    if fault.startswith("circle"):  # the search may start at any module of it
        assert len(faults) == 1 and set(faults[0].split()) == set(fault.split())
    else:
        assert faults == [fault]


def distributions(lines) -> set[str]:
    """Names in requirement lines, spelt like a module: `scikit-learn>=1.5  # trees` -> scikit_learn."""
    names = (re.match(r"[A-Za-z][\w.-]*", line.strip()) for line in lines)
    return {name.group().lower().replace("-", "_") for name in names if name}


def test_the_imported_libraries_are_declared():
    required = distributions((ROOT / "requirements.txt").read_text().splitlines())
    project = (ROOT / "pyproject.toml").read_text()
    installed = re.search(r"^dependencies = (\[.*\])$", project, re.MULTILINE).group(1)
    assert distributions(ast.literal_eval(installed)) == REQUIRED == required - {"pytest"}
    assert distributions(importlib.metadata.requires("torch") or []) >= FROM_TORCH
    assert distributions((ROOT / "requirements-extra.txt").read_text().splitlines()) >= OPTIONAL


def test_every_listed_library_is_imported():
    lists = Source(ROOT / "minipeft").imports.values()
    assert {i.module.split(".")[0] for imports in lists for i in imports} >= REQUIRED | OPTIONAL


def test_everything_else_imports_declared_libraries():
    """Scripts, tests and the tools of the docs: libraries of the requirement files, at any place.

    docs/tools/writers.py is none of ours to run: it stands for other programs, in their environments.
    """
    folders = [ROOT / "docs", ROOT / "tests"]
    files = [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    local = {"minipeft", "docs", "tests"} | {path.stem for path in files}
    declared = set(FROM_TORCH)
    for name in ("requirements.txt", "requirements-extra.txt"):
        declared |= distributions((ROOT / name).read_text().splitlines())
    imported = set()
    for path in files:
        if path == ROOT / "docs" / "tools" / "writers.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
    named_otherwise = {"PIL": "pillow"}
    libraries = imported - local - sys.stdlib_module_names
    assert {named_otherwise.get(name, name) for name in libraries} <= declared
