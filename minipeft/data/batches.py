"""From examples to tensors: `input -> target` as ids, with the target alone supervised."""

import hashlib
from collections.abc import Callable
from random import Random

import torch
from torch import Tensor

from ..config import Error
from .files import read_examples
from .tasks import Example, Task
from .template import ARROW, Template
from .tokenizer import Tokenizer

IGNORED = -100  # the target of a position that is not supervised
WINDOW = 16  # batches that are sorted by length together: enough for little padding, few enough for every epoch to differ


def encode(
    examples: list[Example], tokenizer: Tokenizer, template: Template = ARROW, bucket: int = 1, longest: int = 0
) -> tuple[Tensor, Tensor]:
    """Examples -> idx (B, T), targets (B, T): the next token where it belongs to the answer or its end mark, else -100.

    Question and answer are tokenised apart: where the one ends and the other starts does not depend on what they say.
    Shorter rows are filled up on the right, where causal attention keeps the fill from mattering. T is rounded up to a multiple of
    `bucket`, but not past `longest`: few different shapes, for torch.compile.
    """
    rows = [(question(e, tokenizer, template), tokenizer.encode(e.target) + ([tokenizer.end] if e.ends else [])) for e in examples]
    T = max(len(asked) + len(answer) for asked, answer in rows) - 1
    T = max(T, min(longest, -(-T // bucket) * bucket))
    idx = torch.full((len(rows), T), tokenizer.end)
    targets = torch.full((len(rows), T), IGNORED)
    for i, (asked, answer) in enumerate(rows):
        row = torch.tensor(asked + answer)
        idx[i, : len(row) - 1] = row[:-1]
        targets[i, len(asked) - 1 : len(row) - 1] = row[len(asked) :]
    return idx, targets


def question(example: Example, tokenizer: Tokenizer, template: Template = ARROW) -> list[int]:
    """What the model is given: the template filled in; for a text of its own nothing but the mark that texts begin with."""
    asked = [] if example.input is None else tokenizer.encode(template.fill(example))
    return (tokenizer.begin + asked) or [tokenizer.end]  # the first token of an answer needs one before it


def length(example: Example, tokenizer: Tokenizer, template: Template = ARROW) -> int:
    """T of an example on its own: the last token, its end mark, is not read."""
    return len(question(example, tokenizer, template)) + len(tokenizer.encode(example.target))


def fit(
    examples: list[Example], tokenizer: Tokenizer, block_size: int, virtual: int, template: Template = ARROW
) -> tuple[list[Example], int]:
    """Examples made to fit beside the virtual tokens, and how many had to be cut for it.

    Earlier turns go first, the oldest before the others, then the input from its left; the template and the target stay whole.
    Examples that ask the same are cut alike, to the longest of their answers, and still ask the same. A text of its own becomes
    several, and nothing of it is lost. Raises Error when a target alone is too long.
    """
    room, fitted, cut = block_size - virtual, [], 0
    answers = {}  # what is asked -> the longest answer
    for e in examples:
        answer = len(tokenizer.encode(e.target)), e.target
        answers[_asked(e)] = max(answer, answers.get(_asked(e), answer))
    for e in examples:
        longest, answer = answers[_asked(e)]
        if e.input is None:
            pieces = _split(e, lambda e: length(e, tokenizer, template) <= room)
            longest, answer = len(tokenizer.encode(e.target[0])), e.target[0]  # one character is all that must fit
        else:
            pieces = _cut(e, lambda e, longest=longest: len(question(e, tokenizer, template)) + longest <= room)
        if not pieces:
            least = len(question(e._replace(input=e.input and "", turns=()), tokenizer, template)) + longest
            start = ascii(answer[:30])
            raise Error(f"{virtual} virtual tokens and {least} of the template and {start} do not fit the block size of {block_size}")
        fitted += pieces
        cut += pieces != [e]
    return fitted, cut


def _cut(e: Example, fits: Callable[[Example], bool]) -> list[Example]:
    """The example with as much of what it asks as fits; none when even an empty input does not."""
    if fits(e):
        return [e]
    if not fits(e._replace(input="", turns=())):
        return []
    while e.turns:
        e = e._replace(turns=e.turns[1:])
        if fits(e):
            return [e]
    # by characters, and measured each time: how many tokens a text has depends on what stands around it
    kept = most(len(e.input), lambda n: fits(e._replace(input=e.input[len(e.input) - n :])))
    return [e._replace(input=e.input[len(e.input) - kept :])]


def _split(e: Example, fits: Callable[[Example], bool]) -> list[Example]:
    """A text as consecutive pieces, of which only the last one ends; none when not even one character fits."""
    if fits(e):
        return [e]
    pieces, start = [], 0
    while start < len(e.target):
        n = most(len(e.target) - start, lambda n, start=start: fits(e._replace(target=e.target[start : start + n])))
        if n == 0:
            return []
        pieces.append(e._replace(target=e.target[start : start + n], ends=start + n == len(e.target)))
        start += n
    return pieces


def most(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest n up to `limit` that fits, where 0 does: by doubling, then halving."""
    low, high = 0, 1
    while high <= limit and fits(high):
        low, high = high, 2 * high
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


class TaskData:
    """Endless examples of a task, the same for the same seed; the held-out ones come from a seed of their own.

    Of the 10⁸ strings there are, hardly any is drawn twice. longest: an example that takes the most memory.
    """

    def __init__(self, task: Task, seed: int, batch_size: int, held_out: int = 500):
        self.task, self.seed, self.batch_size = task, seed, batch_size
        self.held_out = draw(task.example, "held-out", held_out)
        self.longest = max(self.batch(0), key=lambda e: len(e.input) + len(e.target))

    def batch(self, step: int) -> list[Example]:
        return draw(self.task.example, f"{self.seed}/{step}", self.batch_size)

    def development(self, n: int) -> list[Example]:
        """Examples to choose by, which are neither held out nor any batch's."""
        return draw(self.task.example, f"{self.seed}/development", n)


def draw(example: Callable[[Random], Example], seed: str, n: int) -> list[Example]:
    rng = Random(seed)
    return [example(rng) for _ in range(n)]


class Epochs:
    """Examples of these lengths, by their numbers, in batches of about one length, every example once an epoch.

    batch(step) depends on the step alone. steps: batches of an epoch; one of them may be smaller than the others.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int):
        self.lengths, self.seed, self.batch_size = lengths, seed, min(batch_size, len(lengths))
        self.steps = -(-len(lengths) // self.batch_size)
        self._epoch = None, []  # which one, and its batches

    def batch(self, step: int) -> list[int]:
        epoch, place = divmod(step, self.steps)
        if self._epoch[0] != epoch:
            self._epoch = epoch, self._batches(epoch)
        return self._epoch[1][place]

    def _batches(self, epoch: int) -> list[list[int]]:
        """One epoch: shuffled, sorted by length a window at a time, cut into batches, and these shuffled."""
        rng, B = Random(f"{self.seed}/{epoch}"), self.batch_size
        order = list(range(len(self.lengths)))
        rng.shuffle(order)
        size = B * max(1, min(WINDOW, self.steps // 4))  # a window over everything would make the same batches every epoch
        windows = [order[i : i + size] for i in range(0, len(order), size)]
        order = [i for window in windows for i in sorted(window, key=self.lengths.__getitem__)]
        batches = [order[i : i + B] for i in range(0, len(order), B)]
        rng.shuffle(batches)
        return batches


class FileData:
    """Examples of a file, in batches of about one length, every example once an epoch.

    dev, test: files to choose by and to report on. What is missing of the two is the last tenth of the examples (500 at most), none
    of which asks what a training example asks: without test it, or dev, is held out to report on; without dev it is chosen by, or,
    with neither file, the training examples are. limit: train on so many only, drawn by the seed.
    Attributes: examples (trained on), longest of them, held_out, chosen_by, cut (how many of all were cut to the block size), digest
    (of all).
    """

    def __init__(
        self,
        path,
        tokenizer: Tokenizer,
        template: Template,
        seed: int,
        batch_size: int,
        block_size: int,
        virtual: int,
        *,
        dev=None,
        test=None,
        columns: tuple[str, str] | None = None,
        limit: int | None = None,
    ):
        if limit is not None and limit < 1:
            raise Error(f"the limit of examples to train on must be at least 1, not {limit}")
        template.check(tokenizer)
        self.cut = 0

        def fitted(examples: list[Example]) -> list[Example]:
            examples, cut = fit(examples, tokenizer, block_size, virtual, template)
            self.cut += cut
            return examples

        examples, apart = read_examples(path, columns), None
        if dev is None:
            examples, apart = split(examples, path)
        if limit is not None:
            examples = Random(f"{seed}/limit").sample(examples, min(limit, len(examples)))
        self.examples = fitted(examples)
        spare = fitted(apart if dev is None else read_examples(dev, columns))
        self.held_out = spare if test is None else fitted(read_examples(test, columns))
        self.chosen_by = self.examples if dev is None and test is None else spare
        self.digest = hashlib.sha256(repr((self.examples, self.held_out, self.chosen_by)).encode()).hexdigest()
        self.lengths = [length(e, tokenizer, template) for e in self.examples]
        self.longest = self.examples[max(range(len(self.lengths)), key=self.lengths.__getitem__)]
        self._epochs = Epochs(self.lengths, batch_size, seed)

    @property
    def steps_per_epoch(self) -> int:
        return self._epochs.steps

    def batch(self, step: int) -> list[Example]:
        return [self.examples[i] for i in self._epochs.batch(step)]

    def development(self, n: int) -> list[Example]:
        """At most n examples to choose by, evenly over the dev file, or over those that are trained on."""
        return thinned(self.chosen_by, n)


def thinned(examples: list[Example], n: int) -> list[Example]:
    """At most n of them, evenly over the whole list."""
    return examples[:: -(-len(examples) // n)]


def split(examples: list[Example], path) -> tuple[list[Example], list[Example]]:
    """The examples to train on, and the last tenth (500 at most) to hold out, both in their order.

    What is asked several times stays on one side. Raises Error when only one thing is asked.
    """
    groups = {}
    for e in examples:
        groups.setdefault(_asked(e), []).append(e)
    if len(groups) < 2:
        raise Error(f"{path} holds one input: at least two are needed, one of them held out")
    room, apart = min(500, max(1, len(examples) // 10)), set()
    for asked in reversed(groups):
        room -= len(groups[asked])
        if room < 0 and apart or len(apart) == len(groups) - 1:
            break
        apart.add(asked)
    return [e for e in examples if _asked(e) not in apart], [e for e in examples if _asked(e) in apart]


def references(examples: list[Example]) -> list[tuple[Example, list[str]]]:
    """What is asked, each once and in order of first appearance, with all its targets: the references of BLEU and chrF."""
    groups = {}
    for e in examples:
        groups.setdefault(_asked(e), (e, []))[1].append(e.target)
    return list(groups.values())


def _asked(e: Example) -> tuple:
    """The same for examples that ask the same; texts of their own ask nothing and are the same when their words are."""
    return (e.turns, e.input) if e.input is not None else (None, e.target)
