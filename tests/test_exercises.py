"""Exercises: every stub fails its tests, every solution passes, every wrong answer is told its mistake."""

import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from two_languages import assert_in_step, links, read

from docs.exercises import harness

ROOT = Path(__file__).parent.parent
TESTS = sorted(harness.EXERCISES.glob("[0-9]/test_*.py"))


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem.removeprefix('test_')}"


def stub_of(tests: Path) -> Path:
    return tests.with_name(tests.name.removeprefix("test_"))


def solution_of(tests: Path) -> Path:
    return harness.EXERCISES / "solutions" / tests.parent.name / stub_of(tests).name


def wrong_of(tests: Path) -> Path:
    return tests.parent / "wrong" / f"{stub_of(tests).stem}.diff"


def wrong_answers(tests: Path) -> dict[str, ModuleType]:
    """{part of the message that it must be given: the solution with these lines changed}."""
    solution, found = read(solution_of(tests)), {}
    for answer in re.split(r"^# ", read(wrong_of(tests)), flags=re.MULTILINE)[1:]:
        (message, _, changes), code = answer.partition("\n"), solution
        for change in changes.strip("\n").split("\n...\n"):
            lines = [(line[:1], line[2:]) for line in change.split("\n")]
            old, new = ("".join(f"{text}\n" for sign, text in lines if sign in signs) for signs in (" -", " +"))
            assert code.count(old) == 1 and old != new, (message, old)
            code = code.replace(old, new)
        found[message] = module = ModuleType("wrong")
        exec(code, vars(module))
    return found


def test_every_exercise_has_a_stub_a_solution_and_five_wrong_answers():
    assert len(TESTS) >= 14
    for tests in TESTS:
        assert stub_of(tests).exists() and len(wrong_answers(tests)) == 5, name(tests)
    solutions = {solution_of(tests) for tests in TESTS}
    assert solutions == set(harness.EXERCISES.glob("solutions/*/*.py"))
    assert {wrong_of(tests) for tests in TESTS} == set(harness.EXERCISES.glob("[0-9]/wrong/*"))


@pytest.mark.parametrize("path", TESTS, ids=name)
def test_the_stub_fails_the_solution_passes_and_each_mistake_is_named(path):
    tests = harness.load(path)
    own = {n for n, _ in inspect.getmembers(tests, inspect.isfunction) if n.startswith("test_")}
    gaps = harness.failures(tests, harness.load(stub_of(path)))
    assert set(gaps) == own
    assert all(message.startswith("NotImplementedError: ") and len(message) > 40 for message in gaps.values())
    assert harness.failures(tests, harness.load(solution_of(path))) == {}
    for wanted, answer in wrong_answers(path).items():
        messages = harness.failures(tests, answer).values()
        assert any(wanted in message for message in messages), (wanted, messages)


@pytest.mark.parametrize("path", TESTS, ids=name)
def test_the_stub_is_the_solution_with_gaps(path):
    """Both have the same signatures and docstrings, so that a solution answers the question that was asked."""
    stub, solution = harness.load(stub_of(path)), harness.load(solution_of(path))
    for asked, answered in ((stub, solution), *(
            (getattr(stub, n), getattr(solution, n)) for n, _ in inspect.getmembers(stub, inspect.isclass)
            if getattr(stub, n).__module__ == stub.__name__)):
        functions = {n: f for n, f in inspect.getmembers(asked, inspect.isfunction) if f.__module__ == stub.__name__}
        for n, function in functions.items():
            other = getattr(answered, n)
            assert inspect.signature(function) == inspect.signature(other)
            assert function.__doc__ == other.__doc__


def test_the_list_names_every_exercise_and_both_languages_are_in_step():
    page = harness.EXERCISES / "README.md"
    listed = {target for _, target in links(read(page), page) if target.startswith("docs/exercises/")}
    assert {str(stub_of(tests).relative_to(ROOT)) for tests in TESTS} <= listed
    assert_in_step(page, harness.EXERCISES / "README.zh-CN.md")


def test_the_course_assigns_every_exercise_and_its_classes_have_90_minutes():
    page = ROOT / "docs" / "course.md"
    assigned = [target for _, target in links(read(page), page) if target.endswith(".py") and "/exercises/" in target]
    assert sorted(assigned) == sorted(str(stub_of(tests).relative_to(ROOT)) for tests in TESTS)
    teaching = read(ROOT / "docs" / "lessons" / "teaching.md")
    minutes = re.findall(r"^\| .*? \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", teaching, re.MULTILINE)
    assert [sum(map(int, one)) for one in zip(*minutes, strict=True)] == 4 * [90]
    each, measured = (int(re.search(f"{what}, (\\d+)", teaching)[1]) for what in ("Exercises", "measurement"))
    assert each * len(TESTS) + measured == 100


def test_what_a_learner_sees():
    """The learner's command, on the stubs: a failure for every test, with the gap in words."""
    command = [sys.executable, "-m", "pytest", "docs/exercises/0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "build the mask: P open columns" in done.stdout and "2 failed" in done.stdout


def test_nothing_is_collected_by_default():
    assert 'testpaths = ["tests"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_a_difference_without_a_name_is_still_located():
    want = harness.random(2, 3)
    with pytest.raises(harness.Mistake, match=r"x has shape \(3,\) and should have \(2, 3\)"):
        harness.expect("x", want[0], want)
    off = want.clone()
    off[1, 2] += 1
    with pytest.raises(harness.Mistake, match=r"element \(1, 2\) is .* and should be"):
        harness.expect("x", off, want)
    with pytest.raises(harness.Mistake, match="x must be a tensor, but it is NoneType"):
        harness.expect("x", None, want)
    with pytest.raises(harness.Mistake, match="dimensions 0 and 1 exchanged"):
        harness.expect("x", want.T, want)
    with pytest.raises(harness.Mistake, match="nan or infinite"):
        harness.expect("x", off / 0, want)
    with pytest.raises(harness.Mistake, match="x: it is doubled"):
        harness.expect("x", 2 * want, want, {"it is doubled": 2 * want})
