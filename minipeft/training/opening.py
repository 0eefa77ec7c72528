"""The base, the data and the hyper-parameters that the flags of train.py name."""


import torch
from torch import Tensor

from ..accounting.shapes import EMBEDDED
from ..adapters import load_adapter
from ..checks import Error, did_you_mean
from ..data.batches import FileData, TaskData
from ..data.files import read_text
from ..data.tasks import find_task
from ..data.template import Template
from ..data.tokenizer import Tokenizer, tokenizer_for, with_begin
from ..files.huggingface import find_base
from ..model import GPT
from ..parts.quantised import QUANTISED
from ..parts.quantised_base import dtype_named, quantise_base
from ..runtime.console import line_breaks
from .flags import LADDER, arguments_from_flags, trains_base


def open_base(args, on_device: bool = True) -> tuple[GPT, Tokenizer]:
    """The base of --base and its tokenizer."""
    dtype = "float32" if trains_base(args.methods) else args.base_dtype  # None: as in the file
    dtype = dtype_named(dtype)
    name, _, size = args.base.partition(":")
    if name == "scratch":
        if size not in ("", *EMBEDDED):
            raise Error(f"--base scratch: takes one of {', '.join(EMBEDDED)}, not {size!r}"
                        f"{did_you_mean(size, EMBEDDED)}")
        base, folder = GPT(EMBEDDED[size or "nano"]), None
        if dtype in QUANTISED:
            quantise_base(base, dtype)
        else:
            base.to(dtype)
    else:
        folder = find_base(args.base)
        base = GPT.from_pretrained(folder, dtype)
    if args.dtype == "bfloat16" and args.device.type == "cpu" and base.wte.weight.dtype == torch.float16:
        raise Error(f"--dtype bfloat16 does not go with a base in float16 on a CPU, as in {args.base}: "
                    "add --base-dtype bfloat16")
    tokenizer = tokenizer_for(base.config.vocab_size, folder)
    tokenizer.stops = args.template.stops(tokenizer)  # a chat has an end mark of its own
    return base.to(args.device) if on_device else base, tokenizer


def open_data(args, tokenizer: Tokenizer, max_length: int,
              num_virtual_tokens: int, num_soft: int) -> FileData | TaskData:
    """The data of --data or --task; num_soft: virtual tokens that stand in the text."""
    if args.data is None:
        return TaskData(find_task(args.task), tokenizer, args.seed, args.batch_size)
    template = Template(args.template.text, num_soft)
    return FileData(args.data, tokenizer, template, args.seed, args.batch_size, max_length,
                    num_virtual_tokens, dev=args.dev, test=args.test, limit=args.limit,
                    columns=args.columns and tuple(args.columns))


def token_ids(tokenizer: Tokenizer, text: str) -> Tensor:
    """Ids (P,) of a flag's text; like every text, it begins with the tokenizer's mark."""
    return torch.tensor(with_begin(tokenizer, line_breaks(text)), dtype=torch.int64)


def read_document(path, tokenizer: Tokenizer) -> Tensor:
    """Ids (n,) of a text file, behind the begin mark. Raises Error if it is empty or not UTF-8."""
    text = read_text(path)
    if not text.strip():
        raise Error(f"the document {path} is empty: it needs at least one token")
    return torch.tensor(with_begin(tokenizer, text), dtype=torch.int64)


def hyperparameters(args, base: GPT, tokenizer: Tokenizer) -> dict:
    """Arguments of adapt() from the flags, all but the tokens of a hard prompt."""
    if args.start is not None:
        return {"init": args.start}
    h = arguments_from_flags(args, args.methods)
    if args.template.has_soft:
        h["template"] = args.template.text
    if args.init_from_text is not None:
        h["init"] = token_ids(tokenizer, args.init_from_text)
    if args.init_from is not None:
        lower = load_adapter(base, args.init_from)
        method, P = lower.method, lower.method.num_virtual_tokens
        if not hasattr(method, "ladder_value"):
            raise Error(f"--init-from {args.init_from} is {method.name}, not {' or '.join(LADDER)}")
        if method.tokens_in_text:
            raise Error(f"--init-from {args.init_from} has its virtual tokens in the text: the ladder starts from a "
                        "prompt before it")
        with torch.no_grad():
            h["init"] = method.ladder_value()
        lower.detach()
        if args.num_virtual_tokens not in (None, P):
            raise Error(f"--init-from {args.init_from} has {P} virtual tokens, "
                        f"so --num-virtual-tokens cannot be {args.num_virtual_tokens}")
    return h
