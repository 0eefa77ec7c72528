"""Batches for training: endless examples of a task, or those of a file, each tokenised once."""

import hashlib
from collections.abc import Callable
from copy import copy
from functools import cache, lru_cache, partial
from random import Random

from ..checks import Error
from ..runtime.console import note
from .encoding import Encoded, encode, mark_texts, question, tokenize
from .files import read_examples
from .fitting import fit
from .tasks import Example, Task
from .template import Template
from .tokenizer import Tokenizer

__all__ = ["Epochs", "FileData", "TaskData", "draw", "encode", "grouped", "question", "references",
           "split", "thinned"]
SORT_WINDOW = 16  # batches sorted by length together: little padding, yet every epoch differs


class TaskData:
    """Endless examples of a task, determined by the seed; the held-out ones have their own seed.

    There are 10⁸ strings, so hardly any is drawn twice. longest: the longest of the first batch.
    """

    def __init__(self, task: Task, tokenizer: Tokenizer, seed: int, batch_size: int,
                 held_out: int = 500):
        self.task, self.tokenizer, self.seed, self.batch_size = task, tokenizer, seed, batch_size
        self.template = Template(task.template)
        self.held_out = self._evaluated("held-out", held_out)
        self.longest = max(self.batch(0), key=lambda r: r.length)

    def _draw(self, example: Callable[[Random], Example], seed: str, n: int) -> list[Encoded]:
        return [tokenize(e, self.tokenizer, self.template) for e in draw(example, seed, n)]

    def _evaluated(self, seed: str, n: int) -> list[Encoded]:
        return self._draw(self.task.held_out or self.task.example, seed, n)

    def batch(self, step: int) -> list[Encoded]:
        return self._draw(self.task.example, f"{self.seed}/{step}", self.batch_size)

    def validation(self, n: int) -> list[Encoded]:
        """A validation set, apart from the held-out examples and from every batch."""
        return self._evaluated(f"{self.seed}/development", n)


def draw(example: Callable[[Random], Example], seed: str, n: int) -> list[Example]:
    rng = Random(seed)
    return [example(rng) for _ in range(n)]


class Epochs:
    """Batches of indices of about one length; an epoch holds every index once.

    batch(step) depends on the step alone. steps: batches of an epoch, of which one may be smaller.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int):
        self.lengths, self.seed, self.batch_size = lengths, seed, min(batch_size, len(lengths))
        self.steps = -(-len(lengths) // self.batch_size)
        self._current = lru_cache(maxsize=1)(self._batches)

    def batch(self, step: int) -> list[int]:
        epoch, place = divmod(step, self.steps)
        return self._current(epoch)[place]

    def _batches(self, epoch: int) -> list[list[int]]:
        """Shuffled, sorted by length in windows, cut into batches, and these shuffled."""
        rng, B = Random(f"{self.seed}/{epoch}"), self.batch_size
        order = list(range(len(self.lengths)))
        rng.shuffle(order)
        size = B * max(1, min(SORT_WINDOW, self.steps // 4))  # one window: all epochs alike
        windows = [order[i : i + size] for i in range(0, len(order), size)]
        order = [i for window in windows for i in sorted(window, key=self.lengths.__getitem__)]
        batches = [order[i : i + B] for i in range(0, len(order), B)]
        rng.shuffle(batches)
        return batches


class FileData:
    """The examples of a file in batches of about one length; an epoch holds each once.

    dev, test: files of the validation set and of the held-out set to report on. Without dev, the
    last tenth of the examples (500 at most) is set apart, with prompts that are not trained on.

                      validation set        held-out set
    dev and test      dev                   test
    dev               dev                   dev
    test              the last tenth        test
    neither           training examples     the last tenth

    limit: train on so many examples only, drawn by the seed.
    Attributes: examples (trained on), longest, held_out, sizes (as text), steps_per_epoch, cut
    (number of examples cut to the block size), digest (of all), validates_on_training (neither dev
    nor test). Each text is tokenised once.
    """

    def __init__(self, path, tokenizer: Tokenizer, template: Template, seed: int, batch_size: int,
                 block_size: int, num_virtual_tokens: int, *, dev=None, test=None,
                 columns: tuple[str, str] | None = None, limit: int | None = None):
        if limit is not None and limit < 1:
            raise Error(f"the limit of examples to train on must be at least 1, not {limit}")
        stops = template.stops(tokenizer)
        examples, spare = read_examples(path, columns), None
        if dev is None:
            examples, spare = split(examples, path)
        if limit is not None:
            examples = Random(f"{seed}/limit").sample(examples, min(limit, len(examples)))
        sets = [examples, spare if dev is None else read_examples(dev, columns)]
        sets += [] if test is None else [read_examples(test, columns)]
        for file, its in zip((dev, test), sets[1:], strict=False):
            kinds = ["texts" if of[0].input is None else "inputs with targets" for of in (examples, its)]
            if file is not None and kinds[0] != kinds[1]:
                raise Error(f"{path} holds {kinds[0]}, but {file} {kinds[1]}: they must be alike")
        once = copy(tokenizer)
        once.encode = cache(tokenizer.encode)  # for texts that several examples share
        self._uncut = [[tokenize(e, once, template) for e in examples] for examples in sets]
        self._note_marks(path, template, *mark_texts(tokenizer, stops))
        self._fit = partial(fit, tokenizer=tokenizer, template=template, block_size=block_size)
        self.validates_on_training = dev is None and test is None
        self._seed, self._batch_size = seed, batch_size
        self.fit(num_virtual_tokens)

    def _note_marks(self, path, template: Template, begin: str, ends: tuple[str, ...]) -> None:
        """Say how many examples hold a begin or an end mark in the middle, where it stays."""
        examples, n = [r.example for records in self._uncut for r in records], 0
        for e in examples:
            prompt = "" if e.input is None else template.fill(e).removeprefix(begin)
            texts = [e.input or "", e.target, *(content for _, content in e.turns)]
            n += (bool(begin) and begin in prompt + e.target
                  or any(end in text for end in ends for text in texts))
        if n:
            marks = " or ".join(dict.fromkeys(filter(None, (begin, *ends))))
            note(f"{path}: {n:,} of {len(examples):,} examples hold {marks}, a mark of begin or end, "
                 "in the middle, where it stays")

    def fit(self, num_virtual_tokens: int) -> None:
        """Cut the examples as they were read to what fits beside so many virtual tokens."""
        fit_set = partial(self._fit, num_virtual_tokens=num_virtual_tokens)
        sets, cut = zip(*map(fit_set, self._uncut), strict=True)
        self.examples, self.held_out, self.cut = sets[0], sets[-1], sum(cut)
        self._validation = self.examples if self.validates_on_training else sets[1]
        self.sizes = f"{len(self.examples)} to train on, {len(self.held_out)} held out"
        sets = self.examples, self.held_out, self._validation
        examples = tuple([r.example for r in records] for records in sets)
        self.digest = hashlib.sha256(repr(examples).encode()).hexdigest()
        self.longest = max(self.examples, key=lambda r: r.length)
        self._epochs = Epochs([r.length for r in self.examples], self._batch_size, self._seed)
        self.steps_per_epoch = self._epochs.steps

    def batch(self, step: int) -> list[Encoded]:
        return [self.examples[i] for i in self._epochs.batch(step)]

    def validation(self, n: int) -> list[Encoded]:
        """At most n examples of the validation set, evenly spaced."""
        return thinned(self._validation, n)


def thinned(items: list, n: int) -> list:
    """At most n of the items, evenly over the whole list."""
    return items[:: -(-len(items) // n)]


def grouped(items: list) -> dict[tuple, list]:
    """Examples, or their records, by prompt, in order of first appearance."""
    groups = {}
    for item in items:
        groups.setdefault(item.prompt_key, []).append(item)
    return groups


def split(examples: list[Example], path) -> tuple[list[Example], list[Example]]:
    """The examples to train on, and the last tenth (500 at most) to hold out, both in their order.

    Examples with the same prompt stay together, to be trained on if they are more than a tenth.
    Raises Error when there is one prompt only.
    """
    groups = grouped(examples)
    if len(groups) < 2:
        raise Error(f"{path} holds one input: at least two are needed, one of them held out")
    most, spare, held = min(500, max(1, len(examples) // 10)), set(), 0
    small = [key for key in reversed(groups) if len(groups[key]) <= most]
    for key in small or [min(reversed(groups), key=lambda key: len(groups[key]))]:
        held += len(groups[key])
        if held > most and spare or len(spare) == len(groups) - 1:
            break
        spare.add(key)
    return ([e for e in examples if e.prompt_key not in spare],
            [e for e in examples if e.prompt_key in spare])


def references(examples: list[Example]) -> list[tuple[Example, list[str]]]:
    """Each prompt once, with the targets of all its examples: the references of BLEU and chrF."""
    return [(group[0], [e.target for e in group]) for group in grouped(examples).values()]
