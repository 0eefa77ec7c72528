"""Scores of a run: written answers against references, skills of a base, size of what was saved."""

from itertools import zip_longest
from pathlib import Path

from ..checks import Error
from ..data.batches import draw
from ..data.tasks import SKILLS, skill_example
from ..data.tokenizer import Tokenizer
from ..files.peft import read_combination
from ..methods import METHODS
from .evaluation import batches, evaluate


def text_scores(answers: list[str], references: list[list[str]]) -> dict[str, float]:
    """exact_match: share of answers equal to a reference, up to white space. bleu, chrf: 0 to 100.

    BLEU (Papineni et al. 2002) and chrF (Popović 2015) are sacrebleu's corpus scores with its
    defaults, comparable with published ones (Post 2018, 1804.08771). references[i]: of answers[i].
    """
    if not answers or len(answers) != len(references) or not all(references):
        raise Error("scores need at least one answer, and one reference or more for each: "
                    f"{len(answers)} answers, {sum(map(bool, references))} with references")
    try:
        from sacrebleu import corpus_bleu, corpus_chrf
    except ImportError:
        raise Error("BLEU and chrF need: pip install sacrebleu") from None
    exact = sum(answer.strip() in [r.strip() for r in known]
                for answer, known in zip(answers, references, strict=True))
    streams = list(zip_longest(*references))  # all first references, all second ones, …
    return {"exact_match": exact / len(answers), "bleu": corpus_bleu(answers, streams).score,
            "chrf": corpus_chrf(answers, streams).score}


def skill_scores(model, tokenizer: Tokenizer) -> dict[str, dict[str, float]]:
    """Exact match on 500 held-out examples of every skill, with and without instruction."""

    def score(name: str, instructed: bool) -> float:
        examples = draw(lambda rng: skill_example(rng, name, instructed), f"held-out {name}", 500)
        return evaluate(model, batches(examples, tokenizer))[1]

    return {name: {"told": score(name, True), "not told": score(name, False)} for name in SKILLS}


def size_kb(folder: Path) -> float:
    """Kilobytes of the adapter, the combination or the base in this folder."""
    saved = ("adapter_", "model", "pytorch_model", "config", "combination")
    parts = read_combination(folder, METHODS) or []
    files = [f for part in ("", *parts) for f in (folder / part).iterdir() if f.name.startswith(saved)]
    return sum(f.stat().st_size for f in files) / 1000
