"""Tasks of sentences: the right answer, held-out patterns, short texts."""

import calendar
import re
from collections import Counter
from datetime import datetime
from functools import partial
from random import Random

from minipeft.bench.quality import real
from minipeft.data.batches import draw
from minipeft.data.sentences import SENTENCES, TOPICS, distinct
from minipeft.data.tasks import Example

MONTHS = "|".join(calendar.month_name[1:])
FORMS = ("%d %B", "%B %d", "%d. %b")  # of the standard library, by which a date is read again
SIGNS = {"$": "USD", "dollars": "USD", "€": "EUR", "euros": "EUR", "£": "GBP", "pounds": "GBP"}


def some(task: str, held_out: bool, n: int = 400) -> list:
    return draw(lambda rng: SENTENCES[task](rng, held_out), f"{task} {held_out}", n)


def date_in(text: str) -> tuple[str, str]:
    """The date of a sentence as MM-DD, and the sentence without it."""
    text = re.sub(r"[Tt]he (\d+)(?:st|nd|rd|th) of", r"\1", text)
    for found in re.finditer(rf"\d+\.? [A-Z]\w+|(?:{MONTHS}) \d+", text):
        for form in FORMS:
            try:
                day = datetime.strptime(f"{found[0]} 2000", f"{form} %Y")
            except ValueError:
                continue
            return f"{day:%m-%d}", text.replace(found[0], "")
    raise AssertionError(text)


def test_an_amount_and_a_date_are_those_of_the_sentence():
    for e in some("amounts", False) + some("amounts", True):
        date, rest = date_in(e.input)
        number = re.search(r"\d[\d,]*", rest)[0].replace(",", "")
        currency = next(code for sign, code in [*SIGNS.items(), *((c, c) for c in SIGNS.values())] if sign in rest)
        assert e.target == f"{date} {number.rstrip(',')} {currency}", e


def shape(text: str) -> str:
    """A sentence without its dates, amounts and names."""
    return re.sub(r"[A-Z]\w+|[$€£]?\d[\d,]*(?:st|nd|rd|th)?|dollars|euros|pounds|of|the|The", "", text).strip()


def test_held_out_sentences_have_patterns_of_their_own():
    known, unseen = ({shape(e.input) for e in some("amounts", held_out)} for held_out in (False, True))
    frames = {re.sub(r"[\s,]+", " ", text) for text in known} & {re.sub(r"[\s,]+", " ", text) for text in unseen}
    assert not frames
    known, unseen = ({e.input for e in some("topics", held_out, 3000)} for held_out in (False, True))
    assert not known & unseen
    assert {e.target for e in some("topics", True)} == {e.target for e in some("topics", False)} == set(TOPICS)


NOTATIONS = (  # of a date, and of an amount
    (r"(?:st|nd|rd|th) of", rf"\d (?:{MONTHS})", rf"(?:{MONTHS}) \d", r"\d\. [A-Z]"),
    (r"[$€£]\d", r"\d (?:dollars|euros|pounds)", r"\d (?:USD|EUR|GBP)", r"(?:USD|EUR|GBP) \d"))


def notations(text: str) -> tuple[int, ...]:
    return tuple(next(i for i, form in enumerate(forms) if re.search(form, text)) for forms in NOTATIONS)


def test_held_out_amounts_have_notations_that_are_never_together_elsewhere():
    known, unseen = ({notations(e.input) for e in some("amounts", held_out)} for held_out in (False, True))
    assert len(known) == 12 and len(unseen) == 4 and not known & unseen


def test_examples_of_a_seed_are_distinct_and_apart_from_others_and_the_words_suffice_for_a_thousand():
    for example in SENTENCES.values():
        dev = distinct(partial(example, held_out=False), "development", 100)
        training = distinct(partial(example, held_out=False), "few", 1000, without=dev)
        assert len({e.input for e in dev + training}) == 1100
        assert distinct(partial(example, held_out=False), "few", 50, without=dev) == training[:50]
    labels = Counter(e.target for e in distinct(partial(SENTENCES["topics"], held_out=False), "few", 1000))
    assert labels.keys() == TOPICS.keys() and min(labels.values()) > 80  # of 125, though patterns have few words
    rng = iter([3, 1, 3, 2, 1, 4, 5])
    drawn = distinct(lambda _: Example(str(next(rng)), ""), "any", 3, without=[Example("1", "")])
    assert [e.input for e in drawn] == ["3", "2", "4"]


def test_examples_are_short_drawn_by_their_seed_and_no_label_stands_in_its_sentence():
    for task, example in SENTENCES.items():
        assert [example(Random(3), False) for _ in range(2)] == [example(Random(3), False) for _ in range(2)]
        assert max(len(e.input.split()) + len(e.target.split()) for e in some(task, True) + some(task, False)) <= 20
    for e in some("topics", True) + some("topics", False):
        assert e.target not in re.findall(r"\w+", e.input.lower())


def test_no_sentence_is_in_two_sets():
    for task in SENTENCES:
        training, dev, test = real.sentences(real.cell("lora", 1000, task))
        its = [[e.input for e in part] for part in (training, dev, [e for e, _ in test])]
        assert len({text for part in its for text in part}) == sum(map(len, its)) == 1200
