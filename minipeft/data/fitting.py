"""Examples that are too long for the block size: prompts are shortened, texts are divided."""

from collections.abc import Callable

from ..checks import Error
from .encoding import Encoded, question, tokenize
from .tasks import Example
from .template import ARROW, Template
from .tokenizer import Tokenizer


def fit(records: list[Encoded], tokenizer: Tokenizer, block_size: int, num_virtual_tokens: int,
        template: Template = ARROW) -> tuple[list[Encoded], int]:
    """Records that fit the block size beside the virtual tokens, and how many had to be cut for it.

    Earlier turns are dropped first, the oldest of them first, then the input is cut from its left.
    Examples with the same prompt are cut to the longest of their completions, so they still share
    it. A text becomes several pieces and loses nothing. Raises Error when a target does not fit.
    """
    room, fitted, cut = block_size - num_virtual_tokens, [], 0
    longest = {}  # prompt -> (tokens of its longest target, that target)
    for r in records:
        target = r.new_tokens, r.example.target
        longest[r.prompt_key] = max(target, longest.get(r.prompt_key, target))
    for r in records:
        e = r.example
        tokens, target = longest[r.prompt_key]
        if len(r.prompt) + tokens <= room:
            fitted.append(r)
            continue
        if e.input is None:
            pieces = _divide(e, tokenizer, template, room)
            tokens, target = len(tokenizer.encode(target[0])), target[0]  # one character has to fit
        else:
            left = room - tokens
            shorter = _shorten(e, lambda e, n=left: _fits(e, tokenizer, template, n))
            pieces = [tokenize(e, tokenizer, template) for e in shorter]
        if not pieces:
            empty = e._replace(input=e.input and "", turns=())
            least = len(question(empty, tokenizer, template)) + tokens
            raise Error(f"{num_virtual_tokens} virtual tokens and {least} of template and target "
                        f"({ascii(target[:30])}) do not fit in {block_size} tokens (--max-length, at most the "
                        "block size)")
        fitted += pieces
        cut += 1
    return fitted, cut


def _fits(e: Example, tokenizer: Tokenizer, template: Template, room: int) -> bool:
    """True if the prompt has at most so many tokens, and the folder's chat template takes it."""
    try:
        return len(question(e, tokenizer, template)) <= room
    except Error:  # turns that begin with an answer, say
        return False


def _shorten(e: Example, fits: Callable[[Example], bool]) -> list[Example]:
    """The example with as much of its prompt as fits; empty if even an empty input does not."""
    if not fits(e._replace(input="", turns=())):
        return []
    while e.turns:
        e = e._replace(turns=e.turns[1:])
        if fits(e):
            return [e]
    # by characters, each time tokenised: the tokens of a text depend on what stands around it
    n = most(len(e.input), lambda n: fits(e._replace(input=e.input[len(e.input) - n :])))
    return [e._replace(input=e.input[len(e.input) - n :])]


def _divide(e: Example, tokenizer: Tokenizer, template: Template, room: int) -> list[Encoded]:
    """Consecutive pieces of a text, of which only the last one ends; empty if no character fits."""
    pieces, start, size = [], 0, len(e.target)

    def piece(n: int) -> Encoded:
        part = e._replace(target=e.target[start : start + n], ends=e.ends and start + n == size)
        return tokenize(part, tokenizer, template, before=pieces[-1].completion if pieces else ())

    while start < size:
        rest = size - start
        n = most(rest - 1, lambda n: piece(n).length <= room)
        # may fit where a part of it, with a mark cut in two, does not; every rest would take quadratic time
        if rest <= 2 * n + 100 and piece(rest).length <= room:
            n = rest
        if n == 0:
            return []
        pieces.append(piece(n))
        start += n
    return pieces


def most(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest n up to `limit` that fits, given that 0 does: doubling, then bisection."""
    low, high = 0, 1
    while high <= limit and fits(high):
        low, high = high, 2 * high
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
