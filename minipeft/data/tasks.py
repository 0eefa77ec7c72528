"""Tasks made in code, as readable text: `reverse: 58213764 -> 46731285`.

A base is pretrained on SKILLS, most examples with an instruction. Without one, eight answers are
equally right and the base cannot know which is meant. Tuning shows no instruction, on three kinds:

    select    one known skill: the adapter only has to say which
    compose   two known skills in a row, never seen together in pretraining
    novel     something that no skill does

Another base is pretrained on `lookup`, tables of facts and questions about them: `a7a k3k z9z ->
k3k a7a`. A key is a letter, a value a digit, and the key ends a fact as it begins it, like a tag.
Every example has a table of its own: only its context says what a key stands for.
"""

from collections.abc import Callable, Iterable
from functools import partial
from random import Random
from string import ascii_letters, digits
from typing import NamedTuple

from ..checks import Error, did_you_mean

DEFAULT = "{input} -> "  # how an input is written, unless a flag says otherwise
DIGITS = 8  # length of every string
INSTRUCTED = 0.8  # share of the pretraining examples that carry an instruction
FACTS = 16  # of a table, at most
ENTRIES = 40  # facts and questions of an example together: all examples are of one length


class Example(NamedTuple):
    input: str | None  # None: a text, which has no prompt
    target: str
    turns: tuple[tuple[str, str], ...] = ()  # (role, content) of earlier messages, oldest first
    ends: bool = True  # False: a piece of a longer text, which goes on

    @property
    def prompt_key(self) -> tuple:
        """Equal for examples with the same prompt, and for texts with the same words."""
        return (None, self.target) if self.input is None else (self.turns, self.input)


class Skill(NamedTuple):
    apply: Callable[[str], str]
    wordings: tuple[str, ...]  # of its instruction in pretraining


class Task(NamedTuple):
    name: str
    kind: str  # select | compose | novel | skills | lookup
    example: Callable[[Random], Example]
    held_out: Callable[[Random], Example] | None = None  # where another form is evaluated than trained on
    template: str = DEFAULT


def _each(change: Callable[[int], int]) -> Callable[[str], str]:
    return lambda s: "".join(str(change(int(c))) for c in s)


SKILLS = {
    "copy": Skill(lambda s: s, ("copy", "repeat", "same")),
    "reverse": Skill(lambda s: s[::-1], ("reverse", "backwards", "mirror")),
    "sort": Skill(lambda s: "".join(sorted(s)), ("sort", "ascending", "smallest first")),
    "descending": Skill(lambda s: "".join(sorted(s, reverse=True)),
                        ("descending", "sort down", "largest first")),
    "increment": Skill(_each(lambda d: (d + 1) % 10), ("increment", "add one", "plus one")),
    "swap": Skill(lambda s: "".join(s[i + 1] + s[i] for i in range(0, len(s), 2)),
                  ("swap pairs", "swap", "exchange pairs")),
    "rotate": Skill(lambda s: s[1:] + s[0], ("rotate", "shift left", "first to last")),
    "complement": Skill(_each(lambda d: 9 - d), ("complement", "nine minus", "invert")),
}

INSTRUCTIONS = [f"{wording}: " for skill in SKILLS.values() for wording in skill.wordings]

NOVEL = {
    "parity": _each(lambda d: d % 2),  # of each digit: odd or not
    "running-max": lambda s: "".join(max(s[: i + 1]) for i in range(len(s))),  # the largest so far
    "differences": lambda s: "".join(str((int(b) - int(a)) % 10)
                                     for a, b in zip("0" + s, s, strict=False)),
}

TASK_KINDS = {
    "select": "a known skill, no instruction given",
    "compose": "two known skills in a row, never seen together",
    "novel": "something the base never learnt",
    "skills": "the pretraining mixture",
    "lookup": "facts of a table, asked for",
}


def skill_example(rng: Random, name: str, instructed: bool) -> Example:
    """One example of a known skill, with one wording of its instruction or without."""
    e = _example(SKILLS[name].apply, rng)
    wording = rng.choice(SKILLS[name].wordings)  # drawn in any case: one seed, one input
    return e._replace(input=f"{wording}: {e.input}") if instructed else e


def find_task(name: str) -> Task:
    """The task "reverse", "reverse+increment", "parity", "skills" …  Raises Error for any other."""
    if name == "skills":
        return Task(name, "skills", lambda rng: skill_example(rng, rng.choice(list(SKILLS)),
                                                              instructed=rng.random() < INSTRUCTED))
    if name == "lookup":
        return Task(name, "lookup", lookup_example, lookup_question, template="{input}")
    if name in SKILLS:
        return Task(name, "select", lambda rng: skill_example(rng, name, instructed=False))
    if name in NOVEL:
        return Task(name, "novel", partial(_example, NOVEL[name]))
    first, plus, second = name.partition("+")
    if plus and first in SKILLS and second in SKILLS and first != second:
        apply_first, apply_second = SKILLS[first].apply, SKILLS[second].apply
        return Task(name, "compose", partial(_example, lambda s: apply_second(apply_first(s))))
    wrong = next((part for part in name.split("+") if part not in SKILLS), name)
    raise Error(f"task must be one of {', '.join(SKILLS)} (select), two of them joined by '+' "
                f"(compose), {', '.join(NOVEL)} (novel), skills or lookup; not {name!r}"
                f"{did_you_mean(wrong, [*SKILLS, *NOVEL, 'skills', 'lookup'])}")


def _example(apply: Callable[[str], str], rng: Random) -> Example:
    """One example of a function of digits, without an instruction."""
    s = "".join(rng.choice("0123456789") for _ in range(DIGITS))
    return Example(s, apply(s))


def draw_facts(rng: Random, n: int) -> dict[str, str]:
    """n facts, a digit for each of n letters."""
    return {key: rng.choice(digits) for key in rng.sample(ascii_letters, n)}


def entries(facts: dict[str, str], keys: Iterable[str]) -> str:
    """Facts as a table has them, and as they are asked for: `a7a k3k`."""
    return " ".join(f"{key}{facts[key]}{key}" for key in keys)


def lookup_example(rng: Random) -> Example:
    """A table, and questions with their answers; the questions are learnt too, so that the base can
    also ask. Sizes are uniform in their logarithm: small tables teach to look up."""
    facts = draw_facts(rng, int(2 * ((FACTS + 1) / 2) ** rng.random()))
    asked = rng.choices(list(facts), k=ENTRIES - len(facts))
    return Example(f"{entries(facts, facts)} -> ", entries(facts, asked), ends=False)


def lookup_question(rng: Random) -> Example:
    """A table of the largest size, and one question."""
    facts = draw_facts(rng, FACTS)
    key = rng.choice(list(facts))
    return Example(f"{entries(facts, facts)} -> {key}", facts[key], ends=False)
