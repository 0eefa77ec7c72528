"""How good written answers are, against one or several references each."""

from itertools import zip_longest

from ..config import Error


def text_scores(answers: list[str], references: list[list[str]]) -> dict[str, float]:
    """exact_match: share of the answers that are one of their references, white space around them aside. bleu, chrf: 0 to 100.

    BLEU (Papineni et al. 2002) and chrF (Popović 2015) are sacrebleu's, of the whole corpus and with its defaults, so that the
    figures compare with published ones (Post 2018, 1804.08771). answers[i] is measured against references[i], of which there may
    be any number from one. Raises Error when sacrebleu is missing, or the two lists do not go together.
    """
    if not answers or len(answers) != len(references) or not all(references):
        raise Error(f"scores need at least one answer, and one reference or more for each: {len(answers)} answers, "
            f"{len(references)} lists of references, {sum(not r for r in references)} of them empty")  # fmt: skip
    try:
        from sacrebleu import corpus_bleu, corpus_chrf
    except ImportError:
        raise Error("BLEU and chrF need: pip install sacrebleu") from None
    exact = sum(a.strip() in [r.strip() for r in known] for a, known in zip(answers, references, strict=True))
    streams = list(zip_longest(*references))  # sacrebleu wants first references, second references, …: None where there is none
    return {
        "exact_match": exact / len(answers),
        "bleu": corpus_bleu(answers, streams).score,
        "chrf": corpus_chrf(answers, streams).score,
    }
