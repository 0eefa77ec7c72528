"""Use adapters, and take them to PEFT and back.

python -m minipeft generate --adapter runs/nano-prefix-reverse --prompt "58213764 -> "
python -m minipeft generate --adapter runs/reverse --adapter runs/sort --prompt "58213764 -> "
python -m minipeft generate --base SmolLM2-135M --adapter runs/lora --template chat --prompt "Hi!"
python -m minipeft inspect runs/nano-prompt-sort
python -m minipeft export runs/prefix for-peft --base SmolLM2-135M     for peft.PeftModel
python -m minipeft import from-peft runs/theirs --base SmolLM2-135M    an adapter that PEFT saved
"""

import argparse
import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .adapters import export_adapter, fingerprint, load_adapter, parts_in
from .checks import Error
from .config import GPTConfig
from .data import BASES
from .data.encoding import prompt_ids
from .data.tasks import Example
from .data.template import Template
from .data.tokenizer import Tokenizer, in_letters, tokenizer_for
from .files.atomic import FOLDER_MARKERS, check_destination, read_json
from .files.huggingface import find_base
from .files.peft import read_adapter, read_combination
from .files.tensors import tensor_files
from .inference.generation import generate, stream
from .inference.task_bank import TaskBank
from .methods import METHODS, WHOLE
from .methods.base import Method
from .model import GPT
from .parts.quantised_base import BASE_DTYPES, dtype_named
from .runtime.console import Parser, line_breaks, local_path, printable, run, seed, utf8_text
from .runtime.devices import HELP, default_device, device
from .slots import Prefix
from .training.run_folder import check_no_run


def arguments(argv) -> argparse.Namespace:
    p = Parser(__doc__, prog="python -m minipeft")
    commands = p.add_subparsers(dest="command", metavar="generate|inspect|export|import",
                                required=True, parser_class=argparse.ArgumentParser)
    g = commands.add_parser("generate", help="complete a prompt, several adapters side by side")
    i = commands.add_parser("inspect", help="show an adapter, and the tokens nearest to a prompt's")
    e = commands.add_parser("export", help="write an adapter for PEFT, hard prompts as soft ones")
    m = commands.add_parser("import", help="check an adapter PEFT saved, and add its checksum")
    for command in (g, i, e, m):
        command.error = p.error
        command.add_argument("--base", default="nano", metavar="FOLDER", type=local_path,
                             help="folder or hub id (docs/architectures.md), "
                                  f"or an embedded base: {', '.join(BASES)} (default: nano)")
        command.add_argument("--device", default=default_device(), help=HELP)
    add = g.add_argument
    add("--adapter", action="append", default=[], metavar="FOLDER", type=local_path,
        help="may be given several times; none: the base alone")
    add("--base-dtype", choices=BASE_DTYPES, metavar="TYPE",
        help=f"{', '.join(BASE_DTYPES)} (default: its own; the last two: quantised)")
    add("--prompt", required=True, metavar="TEXT", type=utf8_text, help="the text to complete")
    add("--template", metavar="TEXT", type=utf8_text,
        help='a text with {input}, the place of the prompt, or "chat" (default: {input} alone; of an adapter with '
             "virtual tokens in the text its own)")
    add("--max-new-tokens", type=int, default=64, metavar="N",
        help="at most, up to the end of the block size (default: 64)")
    add("--temperature", type=float,
        help="0: the most likely token; 1: sample from the model's probabilities (default: 1 with --top-k or --top-p, "
             "else 0)")
    add("--top-k", type=int, metavar="K", help="sample from the K most likely tokens")
    add("--top-p", type=float, metavar="P",
        help="sample from the fewest tokens whose probabilities add up to P")
    add("--seed", type=seed, default=0, help="of sampling")
    for command in (i, e, m):
        command.add_argument("folder", metavar="ADAPTER", type=local_path, help="its folder")
    for command in (e, m):
        command.add_argument("out", metavar="OUT", type=local_path, help="the folder to write")
    return p.parse_args(argv)


def open_base(args) -> tuple[GPT, Path]:
    folder = find_base(args.base)
    dtype = dtype_named(vars(args).get("base_dtype"))
    return GPT.from_pretrained(folder, dtype).to(device(args.device)), folder


def template_for(args, methods: list[Method]) -> Template:
    """--template, or that of an adapter with virtual tokens in it. Raises Error without {soft}."""
    parts = [part for method in methods for part in method.parts()]
    own = [part for part in parts if part.tokens_in_text]
    given = None if args.template is None else line_breaks(args.template)
    if own and len(methods) > 1:
        raise Error("an adapter with virtual tokens in the text has a prompt of its own: give it as the only --adapter")
    default = own[0].template if own else "{input}"
    template = Template(default if given is None else given, own[0].num_virtual_tokens if own else 0)
    if template.has_soft != bool(own):
        raise Error("{soft} in --template is the place of an adapter's virtual tokens in the text: " + (
            "it must be there for this one" if own else "none is given that has some"))
    return template


def complete(args) -> None:
    """Stream one completion, or print those of several adapters side by side."""
    base, folder = open_base(args)
    tokenizer = tokenizer_for(base.config.vocab_size, folder)
    models = [load_adapter(base, folder) for folder in args.adapter] or [base]
    for adapter, model in zip(args.adapter, models, strict=False):
        if args.base_dtype is not None and not model.method.freezes_base:
            raise Error(f"{adapter} is a whole model: --base {adapter} opens it in {args.base_dtype}")
    template = template_for(args, [model.method for model in models if model is not base])
    stops = template.stops(tokenizer)
    ids = prompt_ids(Example(args.prompt, ""), tokenizer, template)
    if not ids:
        raise Error("--prompt is empty: it needs at least one token to go on from")
    idx = torch.tensor([ids], dtype=torch.int64, device=base.wte.weight.device)
    taken = max((model.method.positions_taken for model in models if model is not base), default=0)
    room = base.config.block_size - taken - len(ids) + 1  # the last token is output only
    settings = (min(args.max_new_tokens, max(1, room)), args.temperature, args.top_k, args.top_p,
                stops)
    torch.manual_seed(args.seed)  # loading may draw random numbers
    if len(models) == 1:
        new, printed = [], ""
        for token in stream(models[0], idx, *settings):
            new += [i for i in token.tolist() if i not in stops]
            text = tokenizer.decode(new)
            if not text.endswith("\ufffd"):  # else a character of several tokens is incomplete
                print(text[len(printed) :], end="", flush=True)
                printed = text
        print(tokenizer.decode(new)[len(printed) :])
        return
    names = [Path(os.path.abspath(folder)).name for folder in args.adapter]
    if len(set(names)) < len(names):
        names = args.adapter
    try:
        bank = TaskBank(base, {str(i): model for i, model in enumerate(models)})
    except Error:  # no batch can mix them
        rows = [generate(model, idx, *settings)[0] for model in models]
    else:
        rows = generate(bank.rows(bank.names), idx.expand(len(models), -1), *settings)
    for name, row in zip(names, rows, strict=True):
        text = tokenizer.decode([i for i in row[idx.size(1) :].tolist() if i not in stops])
        print(f"{name:<{max(map(len, names))}}  {printable(text)}")


def inspect(args) -> None:
    """Print the content of an adapter folder; on its own base also the text near to a prompt."""
    folder = Path(args.folder)
    base, base_folder = open_base(args)
    if not folder.is_dir():
        raise Error(f"no adapter at {folder}: there is no such folder")
    if (folder / "config.json").exists() and not (folder / "adapter_config.json").exists():
        tuned = GPT.from_pretrained(folder)
        size = sum(p.numel() for p in tuned.parameters())
        print(f"{folder}\n  {'method':<20}{WHOLE}, or a base: {size:,} parameters, {tuned.config}")
        return
    for part in parts_in(folder) or [""]:
        inspect_one(args, folder / part, base, base_folder)


def inspect_one(args, folder: Path, base: GPT, base_folder: Path) -> None:
    config, stored = read_adapter(folder)
    tensors, kind = dict(stored), config.get("peft_type")
    theirs, ours = stored.notes.get("base"), fingerprint(base)
    method = next((method for method in METHODS.values() if kind in method.peft_types), None)
    is_ours = theirs in (None, ours)
    which = f"{str(theirs)[:12]}, {'which is' if is_ours else 'not'} {args.base}"
    lines = {"method": method.name if method else f"unknown here ({kind})"}
    lines |= settings_in(method, config) if method else {}
    lines["parameters"] = f"{sum(t.numel() for t in tensors.values()):,}"
    lines["size"] = f"{stored.path.stat().st_size / 1000:,.1f} KB ({stored.path.name})"
    lines |= {"base": "not recorded" if theirs is None else which, "tensors": ""}
    print(folder)
    for name, value in lines.items():  # printable: the file may hold control characters
        print(f"  {name:<20}{printable(str(value))[:200]}".rstrip())
    for name, t in list(tensors.items())[:4]:
        dtype = str(t.dtype).removeprefix("torch.")
        print(f"    {printable(str(name))[:200]} {tuple(t.shape)} {dtype}")
    if len(tensors) > 4:
        print(f"    … and {len(tensors) - 4} more")
    if not is_ours or method is None:
        return
    try:
        found = load_adapter(base, folder, ours).method
    except Error as e:
        if theirs is not None:
            raise
        print(f"  {'fits':<20}not {args.base}: {printable(str(e))}")
        return
    if hasattr(method, "ladder_value"):
        print("".join(f"{line}\n" for line in stands_for(folder, found)), end="")
    if is_prompt(method, base.config):
        print("\n".join(in_words(found, base, tokenizer_for(base.config.vocab_size, base_folder))))


def settings_in(method: type[Method], config: dict) -> dict:
    """{hyper-parameter: value} that an adapter_config.json tells, under our names."""
    try:
        found = method.from_config(config)
    except Error:  # a damaged one: as it stands there
        found = config
    return {name: value for name in method.hyperparameters if name in method.config_fields()
            and (value := found.get(name, config.get(name))) is not None and not isinstance(value, Tensor)}


def stands_for(folder: Path, method: Method) -> list[str]:
    """Lines on a prefix: its document, positions, mass of its keys; [] for other adapters."""
    lines, note = [], folder / "document.json"
    if note.exists():
        found = read_json(note)
        name, tokens, how = (printable(str(found.get(key)))[:80] for key in ("document", "tokens", "how"))
        lines.append(f"  {'document':<20}{name}, {tokens} tokens, by {how}")
    prefix = method.ladder_value()
    if isinstance(prefix, Prefix):
        lines.append(f"  {'stands for':<20}{prefix.most_taken} positions, in {prefix.k.size(3)} rows")
        if prefix.bias is not None:
            mass = " ".join(f"{x:.0f}" for x in prefix.bias.detach().exp().sum(-1).mean((1, 2)).tolist())
            lines.append(f"  mass of the keys in each layer (1: a key without bias): {mass}")
    return lines


def is_prompt(method: type[Method], c: GPTConfig) -> bool:
    """True for a method with virtual tokens in slot 1 that can be named: a level of the ladder."""
    return hasattr(method, "ladder_value") and bool(method.cost(c, 1, **method.with_defaults(c, {})).prompt)


def in_words(method: Method, base: GPT, tokenizer: Tokenizer) -> list[str]:
    """The text of a hard prompt; for a soft prompt, the tokens nearest to its vectors."""
    prompt = method.ladder_value().detach()
    if prompt.dim() == 1:  # tokens
        return [f"  {'text':<20}{in_letters(tokenizer, prompt.tolist())!r}"]
    lines = ["  nearest tokens of each vector: cosine, distance (tokens lie about "
             f"{typical_distance(base):.2f} from the token nearest to them)"]
    for i, row in enumerate(nearest_tokens(base, prompt[0])):
        words = [f"{in_letters(tokenizer, [t])!r} {cosine:.2f} {distance:.2f}"
                 for t, cosine, distance in row]
        lines.append(f"    {i:>3}  {'   '.join(words)}")
    return lines


def nearest_tokens(base: GPT, prompt: Tensor, k: int = 3) -> list[list[tuple[int, float, float]]]:
    """prompt (P, C) -> (token, cosine, distance) of the k embeddings nearest to each vector."""
    words, vectors = base.wte.weight.detach().float() * base.embedding_scale, prompt.float()
    cosine = F.normalize(vectors, dim=1) @ F.normalize(words, dim=1).T  # (P, V)
    distance = torch.cdist(vectors, words)
    best = cosine.topk(min(k, len(words)), dim=1).indices.tolist()
    return [[(t, float(cosine[i, t]), float(distance[i, t])) for t in row]
            for i, row in enumerate(best)]


def typical_distance(base: GPT) -> float:
    """Median distance of a token to the nearest other one, over at most 1,000 tokens."""
    words = base.wte.weight.detach().float() * base.embedding_scale
    nearest = [torch.cdist(some, words).kthvalue(2, dim=1).values  # the first is the token itself
               for some in words[:1000].split(64)]
    return float(torch.cat(nearest).median())


def check_out(args) -> None:
    """Raise Error where OUT is the adapter's own folder, or holds a run, an adapter or a base."""
    out = Path(args.out)
    if os.path.realpath(out) == os.path.realpath(args.folder):
        raise Error(f"{out} is the adapter itself: {args.command} it into another folder")
    for folder in (out, *(out / part for part in read_combination(Path(args.folder), METHODS))):
        check_no_run(folder)
        check_destination(folder, "an adapter")
        for path in (folder / FOLDER_MARKERS["an adapter"], *tensor_files(folder, "adapter_model")):
            if path.exists():
                raise Error(f"{folder} already holds an adapter: save an adapter in a folder of its own")


def export(args) -> None:
    check_out(args)
    kind = export_adapter(open_base(args)[0], args.folder, args.out)
    print(f"{args.out}: {kind}, which peft.PeftModel.from_pretrained(base, {args.out!r}) opens")


def import_(args) -> None:
    check_out(args)
    model = load_adapter(open_base(args)[0], args.folder)
    if model.method.name == WHOLE:
        raise Error(f"{args.folder} is a whole model: --base opens it as it is")
    model.save(args.out)
    size = sum(t.numel() for t in model.method.tensors().values())
    print(f"{args.out}: {model.method.name}, {size:,} parameters, fits {args.base}")


def main(argv=None) -> None:
    args = arguments(argv)
    commands = {"generate": complete, "inspect": inspect, "export": export, "import": import_}
    commands[args.command](args)


if __name__ == "__main__":
    sys.exit(run("python -m minipeft", main))
