"""Forgetting: loss on what a base was pretrained on: before, after, and with the adapter off.

    embedded bases    TOLD held-out examples of all their skills, with instruction
    SmolLM2           PARAGRAPHS paragraphs of the Python Language Reference (PSF licence), which comes with
                      Python: the module pydoc_data.topics

As PEFT's benchmark has it (huggingface/peft, method_comparison/MetaMathQA): loss after less loss
before, where "before" is of the bare base, without a method. The English is another with every
version of Python.
"""

import re
from collections.abc import Iterable
from pydoc_data.topics import topics
from random import Random

from ...attach import Adapted
from ...data.batches import draw
from ...data.encoding import Batch
from ...data.tasks import SKILLS, Example, skill_example
from ...data.tokenizer import Tokenizer
from ...training.evaluation import batches, evaluate

TOLD, PARAGRAPHS = 200, 24
SHORTEST, LONGEST = 150, 300  # characters of a paragraph


def skills(tokenizer: Tokenizer) -> list[Batch]:
    """Held-out examples of an embedded base's skills, each with its instruction."""
    names = list(SKILLS)
    told = draw(lambda rng: skill_example(rng, rng.choice(names), instructed=True), "held-out told", TOLD)
    return batches(told, tokenizer)


def english(tokenizer: Tokenizer) -> list[Batch]:
    """Paragraphs of the Python Language Reference: whole sentences, without code or grammar."""
    found = [" ".join(text.split()) for _, page in sorted(topics.items()) for text in page.split("\n\n")
             if re.match(r"[A-Z]", text) and not re.search(r"::=|::$|\n {4}|[{}=>|*]", text)]
    found = [text for text in dict.fromkeys(found) if SHORTEST <= len(text) <= LONGEST and text.endswith(".")]
    chosen = Random("held-out English").sample(found, PARAGRAPHS)
    return batches([Example(None, text, ends=False) for text in chosen], tokenizer)


def measured(before: tuple[float, float], model: Adapted, known: Iterable[Batch]) -> dict:
    """{"before", "after", "off"}: [loss, exact match] on `known`; "off": with it detached."""
    after = evaluate(model, known)
    off = evaluate(model.detach(), known)
    return {"before": list(before), "after": list(after), "off": list(off)}
