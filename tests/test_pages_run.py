"""Blocks of the pages that a reader may paste: each runs, or another test runs it; their flags exist."""

import importlib.util
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from folders import real_base
from test_readme import DOCS, PAGES, ROOT, name

import bench
import train
from docs.tools import lessons, tables
from minipeft import __main__ as minipeft_main
from minipeft.data.batches import TaskData
from minipeft.training import job
from minipeft.training.flags import ALL_FLAGS, as_flag


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page that a reader may paste: those outside generated places."""
    text = tables.PLACE.sub("", page.read_text(encoding="utf-8"))
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text: str) -> list[str]:
    """The commands of bash blocks, without comments, and with VERSION for a version of torch."""
    return [re.sub(r"torch==\S+", "torch==VERSION", re.sub(r" +# .*", "", line)) for line in text.splitlines()]


NOT_PASTED = {  # pages whose blocks other tests run, or that need more than this machine
    "docs/add-a-method.md": "test_add_a_method.py: a method's file, then its commands",
    "docs/processes.md": "test_distributed.py: several processes and machines",
    "docs/compatibility.md": "test_compatibility.py: downloads other versions of other libraries",
    "docs/versions.md": "test_versions.py: it would run all tests",
    "docs/documents.md": "test_document_run.py: each of its commands, on a document of its own",
}
NOT_RUN = {  # commands of the other pages
    "pip install torch==VERSION --index-url https://download.pytorch.org/whl/cpu": "downloads",
    "pip install -r requirements.txt && python bench.py": "minutes: test_bench.py",
    "pip install -r requirements.txt && python -m pytest": "minutes: it would run itself",
    "python docs/ladder_from_scratch.py": "two minutes: test_ladder_from_scratch.py",
    "python -m pytest docs/exercises/0": "test_exercises.py",
    "python bench.py": "minutes: test_bench.py",
    "pip install .": "test_package.py: the wheel, installed alone",
    "python train.py --base scratch --method full --task skills --steps 3500 --lr 2e-3 --seed 1 "
    "--out minipeft/data/nano": "ten minutes: test_embedded_base.py",
    "python bench.py quality --quick": "ten minutes: test_quality_grid.py",
    "python bench.py quality": "hours: test_quality_grid.py",
}
OF_SMOLLM2 = ("tokenizers", "safetensors", "sacrebleu")  # extras that docs/own-data.md needs
PASTED = [page for page in tables.pages() if not tables.is_chinese(page)
          and name(page) not in NOT_PASTED and (blocks(page, "bash") or blocks(page, "python"))]


def bring_along(folder: Path, monkeypatch) -> None:
    """A reader's place to work, with what the pages expect of a reader: a base, data, finished studies."""
    monkeypatch.chdir(folder)
    if has_extras(*OF_SMOLLM2):
        real_base(Path("SmolLM2-135M-Instruct"))  # one as small, with a chat's marks
    for file in ("train.csv", "test.csv"):
        rows = [f"a {food} restaurant,It serves {food} food.\n" for food in ("Thai", "French", "Indian", "Greek")]
        Path(file).write_text("input,target\n" + "".join(rows), encoding="utf-8")
    Path("runs").mkdir()
    shutil.copy(DOCS / "results" / "quality.jsonl", "runs")  # made by the commands of docs/comparison.md


def paste(page: Path, command: Callable[[str], object], needs: Callable[[str], bool]) -> None:
    """Run a page's blocks in their order, Python in one session; `needs` names what is left out here."""
    session = {"__name__": "page"}
    for block in lessons.blocks(tables.PLACE.sub("", page.read_text(encoding="utf-8"))):
        if block.language == "python" and not needs(block.text):
            exec(compile(block.text, name(page), "exec"), session)
        for line in commands(block.text) if block.language == "bash" else ():
            if line not in NOT_RUN and not needs(line):
                command(line)


def has_extras(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) for package in packages)


def run_small(command: str) -> None:
    """A command of a page in this process; training on a task is two small steps."""
    python, *words = shlex.split(command)
    assert python == "python", command
    if words[0] == "train.py":
        trains_on_a_task = not {"--data", "hard-prompt"} & set(words) or "--search" in words
        train.main(words[1:] + trains_on_a_task * ["--steps", "2", "--batch-size", "4"])
    elif words[:2] == ["-m", "minipeft"]:
        minipeft_main.main(words[2:])
    else:
        bench.main(words[1:])


OF_EXTRAS = ("from peft", "from-peft", "bench.py report")  # import PEFT, or draw: half a minute


def run_page(page: Path, folder: Path, monkeypatch, capsys, *left_out: str) -> None:
    """Run the page in this folder, with few examples and steps, but for blocks and commands with these words."""
    monkeypatch.setattr(TaskData.__init__, "__defaults__", (8,))
    monkeypatch.setattr(job, "VALIDATION", 8)
    bring_along(folder, monkeypatch)
    words = [*left_out, *["SmolLM2"] * (not has_extras(*OF_SMOLLM2))]
    paste(page, run_small, lambda text: any(word in text for word in words))
    assert "False" not in capsys.readouterr().out


@pytest.mark.parametrize("page", PASTED, ids=name)
def test_blocks_run_as_they_are_pasted(page, tmp_path, monkeypatch, capsys):
    run_page(page, tmp_path, monkeypatch, capsys, *OF_EXTRAS)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PASTED if any(
    word in page.read_text(encoding="utf-8") for word in OF_EXTRAS)], ids=name)
def test_blocks_that_import_peft_or_draw_run_too(page, tmp_path, monkeypatch, capsys):
    if not has_extras("peft", "matplotlib", "scipy"):
        pytest.skip("needs the extras")
    run_page(page, tmp_path, monkeypatch, capsys)


def every_bash_block() -> str:
    return "".join(text for page in PASTED for text in blocks(page, "bash"))


def test_a_shell_divides_the_commands_into_the_words_that_are_run_here():
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    for line in set(commands(every_bash_block())) - set(NOT_RUN):
        printed = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True)
        assert printed.stdout.split("\0")[:-1] == shlex.split(line)


def test_commands_that_are_not_run_are_on_a_page():
    """So that the list above has nothing that no reader sees."""
    assert set(NOT_RUN) <= set(commands(every_bash_block())) and all((ROOT / page).exists() for page in NOT_PASTED)


@pytest.mark.parametrize("page", [page for page in PAGES if "zh-CN" not in name(page)], ids=name)
def test_commands_name_scripts_and_flags_that_exist(page):
    code = "".join(
        p.read_text(encoding="utf-8")
        for p in [*ROOT.glob("*.py"), *ROOT.glob("minipeft/**/*.py"), *DOCS.glob("tools/*.py")])
    declared = re.findall(r'"(\w+)": Hyperparameter\(', page.read_text(encoding="utf-8"))  # by a method on the page
    of_methods = {as_flag(flag) for flag in [*ALL_FLAGS, *declared]}
    for command in re.findall(
        r"^(?:.*&& )?(?:\w+=\S+ )*(?:python|torchrun) .*", "".join(blocks(page, "bash")),
        re.MULTILINE):
        command = re.sub(r" # .*", "", command).rpartition("&& ")[2]
        for script in re.findall(r"\S+\.py\b", command):
            assert (ROOT / script).exists(), command
        flags = command.partition("train.py")[2] if command.startswith("torchrun") else command
        for flag in re.findall(r"(?<=\s)--[a-z][\w-]+", flags):
            assert flag in of_methods or f'"{flag}"' in code, f"{flag} of {command}"
