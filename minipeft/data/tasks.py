"""Tasks made in code, as readable text: `reverse: 58213764 -> 46731285`.

A base is pretrained on SKILLS, with the instruction there most of the time and absent the rest: without one, eight answers are
equally right and the base cannot know which is meant. What is tuned afterwards never shows an instruction, and is one of three kinds:

    select    one known skill: the tuned part only has to say which
    compose   two known skills in a row, never seen together in pretraining
    novel     something that no skill does
"""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from ..config import Error

DIGITS = 8  # length of every string
TOLD = 0.8  # share of the pretraining examples that carry their instruction


class Example(NamedTuple):
    input: str | None  # None: a text of its own, which answers nothing
    target: str
    turns: tuple[tuple[str, str], ...] = ()  # (role, content) of what was said before, oldest first
    ends: bool = True  # False: a piece of a longer text, which goes on


class Skill(NamedTuple):
    apply: Callable[[str], str]
    wordings: tuple[str, ...]  # how pretraining asks for it


class Task(NamedTuple):
    name: str
    kind: str  # select | compose | novel | skills
    example: Callable[[Random], Example]


def _each(change: Callable[[int], int]) -> Callable[[str], str]:
    return lambda s: "".join(str(change(int(c))) for c in s)


SKILLS = {
    "copy": Skill(lambda s: s, ("copy", "repeat", "same")),
    "reverse": Skill(lambda s: s[::-1], ("reverse", "backwards", "mirror")),
    "sort": Skill(lambda s: "".join(sorted(s)), ("sort", "ascending", "smallest first")),
    "descending": Skill(lambda s: "".join(sorted(s, reverse=True)), ("descending", "sort down", "largest first")),
    "increment": Skill(_each(lambda d: (d + 1) % 10), ("increment", "add one", "plus one")),
    "swap": Skill(lambda s: "".join(s[i + 1] + s[i] for i in range(0, len(s), 2)), ("swap pairs", "swap", "exchange pairs")),
    "rotate": Skill(lambda s: s[1:] + s[0], ("rotate", "shift left", "first to last")),
    "complement": Skill(_each(lambda d: 9 - d), ("complement", "nine minus", "invert")),
}

INSTRUCTIONS = [f"{wording}: " for skill in SKILLS.values() for wording in skill.wordings]  # as they stand before an input

NOVEL = {
    "parity": _each(lambda d: d % 2),  # each digit: odd or not
    "running-max": lambda s: "".join(max(s[: i + 1]) for i in range(len(s))),  # the largest digit so far
    "differences": lambda s: "".join(str((int(b) - int(a)) % 10) for a, b in zip("0" + s, s, strict=False)),
}

KINDS = {
    "select": "a known skill, no instruction given",
    "compose": "two known skills in a row, never seen together",
    "novel": "something the base never learnt",
    "skills": "the pretraining mixture",
}


def digits(rng: Random) -> str:
    return "".join(rng.choice("0123456789") for _ in range(DIGITS))


def skill_example(rng: Random, name: str, told: bool) -> Example:
    """One example of a known skill, with its instruction in one of its wordings or without."""
    s = digits(rng)
    wording = rng.choice(SKILLS[name].wordings)
    return Example(f"{wording}: {s}" if told else s, SKILLS[name].apply(s))


def find_task(name: str) -> Task:
    """The task of this name: a skill ("reverse"), two joined ("reverse+increment"), a novel one ("parity"), or "skills".

    Raises Error with the list for any other.
    """
    if name == "skills":
        return Task(name, "skills", lambda rng: skill_example(rng, rng.choice(list(SKILLS)), told=rng.random() < TOLD))
    if name in SKILLS:
        return Task(name, "select", lambda rng: skill_example(rng, name, told=False))
    if name in NOVEL:
        return Task(name, "novel", _untold(NOVEL[name]))
    first, plus, second = name.partition("+")
    if plus and first in SKILLS and second in SKILLS and first != second:
        return Task(name, "compose", _untold(lambda s: SKILLS[second].apply(SKILLS[first].apply(s))))
    raise Error(
        f"task must be one of {', '.join(SKILLS)} (select), two of them joined by '+' (compose), "
        f"{', '.join(NOVEL)} (novel), or skills; not {name!r}"
    )


def _untold(apply: Callable[[str], str]) -> Callable[[Random], Example]:
    def example(rng: Random) -> Example:
        s = digits(rng)
        return Example(s, apply(s))

    return example
