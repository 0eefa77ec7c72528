"""Scores of written answers against one or several references each."""

from itertools import zip_longest

from ..config import Error


def text_scores(answers: list[str], references: list[list[str]]) -> dict[str, float]:
    """exact_match: share of answers equal to one of their references, up to white space. bleu, chrf: 0 to 100.

    BLEU (Papineni et al. 2002) and chrF (Popović 2015) are sacrebleu's corpus scores with its defaults,
    comparable with published ones (Post 2018, 1804.08771). references[i]: one or more for answers[i].
    Raises Error when sacrebleu is missing, or the two lists do not match.
    """
    if not answers or len(answers) != len(references) or not all(references):
        empty = sum(not r for r in references)
        raise Error("scores need at least one answer, and one reference or more for each: "
                    f"{len(answers)} answers, {len(references)} lists of references, {empty} of them empty")
    try:
        from sacrebleu import corpus_bleu, corpus_chrf
    except ImportError:
        raise Error("BLEU and chrF need: pip install sacrebleu") from None
    exact = sum(a.strip() in [r.strip() for r in known] for a, known in zip(answers, references, strict=True))
    streams = list(zip_longest(*references))  # sacrebleu takes all first references, all second ones, …, or None
    return {"exact_match": exact / len(answers), "bleu": corpus_bleu(answers, streams).score,
            "chrf": corpus_chrf(answers, streams).score}
