"""Data that several tests make: JSONL files, fitted examples, a tokenizer, and a base beside one."""

import json
from pathlib import Path

import pytest
import torch

from minipeft import GPT, GPTConfig
from minipeft.config import LLAMA
from minipeft.data.encoding import tokenize
from minipeft.data.fitting import fit
from minipeft.data.tasks import Example
from minipeft.data.template import Template

MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = ["the cat sat on the mat", "a cat and a hat", "über the naïve hat, 提示 £30",
         "name[Blue Spice], eatType[coffee shop]"]
PLAIN = Template()


def lines(path: Path, *rows) -> Path:
    """A JSONL file of these rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def fitted_examples(examples, tokenizer, block_size, num_virtual_tokens, template=PLAIN) -> tuple[list[Example], int]:
    """fit() on examples, checked: the records it returns are those of tokenising its examples."""
    records = [tokenize(e, tokenizer, template) for e in examples]
    fitted, cut = fit(records, tokenizer, block_size, num_virtual_tokens, template)
    assert fitted == [tokenize(r.example, tokenizer, template) for r in fitted]
    return [r.example for r in fitted], cut


def small_tokenizer(texts: list[str], marks: list[str] = MARKS):
    """A byte-level BPE of 300 ids that knows the marks. Skips the test without tokenizers."""
    tokenizers = pytest.importorskip("tokenizers")
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    bpe.train_from_iterator(texts * 3, tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=marks, show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    return bpe


def tokenizer_folder(folder: Path) -> Path:
    """A base's folder with the tokenizer of WORDS."""
    bpe = small_tokenizer(WORDS)
    bpe.enable_truncation(4)  # what somebody's batches needed once, and must not cut our text
    bpe.enable_padding(length=20)
    bpe.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"eos_token_id": 2}')
    return folder


def with_bos(folder: Path, after: bool = False) -> None:
    """Make the tokenizer put <|endoftext|> before every text, and perhaps <|im_end|> after it."""
    from tokenizers import Tokenizer, processors

    bpe = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bpe.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A <|im_end|>" if after else "<|endoftext|> $A",
        special_tokens=[("<|endoftext|>", 0), ("<|im_end|>", 2)])
    bpe.save(str(folder / "tokenizer.json"))


def real_base(folder: Path, marks: list[str] = MARKS, vocab_size: int = 300) -> Path:
    """A tiny Llama with a tokenizer of 300 ids beside it, as such folders come from the hub."""
    tokenizer = small_tokenizer(
        ["name[Zizzi], food[Thai]", "Zizzi serves Thai food, at a price of £20.", "naïve 提示"], marks)
    torch.manual_seed(0)
    sizes = dict(block_size=128, n_layer=2, n_head=4, n_embd=32, n_kv_head=2, n_inner=48)
    base = GPT(GPTConfig(vocab_size=vocab_size, **sizes, **LLAMA))
    with torch.no_grad():
        base.wte.weight.mul_(10)  # so that it says something
    base.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": marks[-1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
