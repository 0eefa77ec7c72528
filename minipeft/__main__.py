"""Use what was tuned, and take it to PEFT and back.

python -m minipeft generate --adapter runs/prefix-reverse --prompt "58213764 -> "
python -m minipeft generate --adapter runs/prefix-reverse --adapter runs/prompt-sort --prompt "58213764 -> "
python -m minipeft inspect runs/prompt-sort
python -m minipeft generate --base SmolLM2-135M --adapter runs/lora --template chat --prompt "name[Zizzi], area[riverside]"
python -m minipeft export runs/prefix for-peft --base SmolLM2-135M      what peft.PeftModel.from_pretrained opens
python -m minipeft import from-peft runs/theirs --base SmolLM2-135M     what PEFT saved, checked against the base
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from .adapters import export_adapter, fingerprint, load_adapter
from .attach import Adapted
from .config import Error
from .data import BASES
from .data.tasks import Example
from .data.template import Template
from .data.tokenizer import Tokenizer, in_letters, tokenizer_for
from .files.huggingface import find_base
from .files.peft import read_adapter, read_combination
from .inference.generation import generate, stream
from .inference.task_bank import TaskBank, why_not
from .methods import METHODS
from .model import GPT
from .runtime.console import Parser, line_breaks, run, seed, shown_as
from .runtime.devices import device


def arguments(argv) -> argparse.Namespace:
    p = Parser(__doc__, prog="python -m minipeft")
    commands = p.add_subparsers(
        dest="command", metavar="generate|inspect|export|import", required=True, parser_class=argparse.ArgumentParser
    )
    g = commands.add_parser("generate", help="go on from a text; several adapters answer side by side, in one batch where they mix")
    i = commands.add_parser("inspect", help="what an adapter folder holds, and the words nearest to a soft prompt's vectors")
    e = commands.add_parser("export", help="write an adapter as PEFT has it: hard prompts as soft ones, prefixes as keys and values")
    m = commands.add_parser("import", help="check what PEFT saved against its base, and write it with checksum and fingerprint")
    for command in (g, i, e, m):
        command.error = p.error
        command.add_argument("--base", default="nano", metavar="FOLDER", help="a Hugging Face folder or hub id of the GPT-2 or Llama "
            f"family, or an embedded one: {', '.join(BASES)} (default: nano)")  # fmt: skip
        command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1 …")
    g.add_argument("--adapter", action="append", default=[], metavar="FOLDER", help="may be given several times; none: the bare base")
    g.add_argument("--prompt", required=True, metavar="TEXT", help="what to go on from")
    g.add_argument("--template", default="{input}", metavar="TEXT", help='how the prompt is put: a text with {input}, or "chat"')
    g.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="stop after so many (default: 64)")
    g.add_argument("--temperature", type=float, default=0.0, help="0 (the default): the most likely token; 1: as the model weighs them")
    g.add_argument("--top-k", type=int, metavar="K", help="draw from the K most likely tokens alone")
    g.add_argument("--top-p", type=float, metavar="P", help="draw from the fewest tokens that are P likely together")
    g.add_argument("--seed", type=seed, default=0, help="of what is drawn")
    for command in (i, e, m):
        command.add_argument("adapter", metavar="ADAPTER", help="its folder")
    for command in (e, m):
        command.add_argument("out", metavar="OUT", help="the folder to write")
    return p.parse_args(argv)


def open_base(args) -> tuple[GPT, Path]:
    folder = find_base(BASES.get(args.base, args.base))
    return GPT.from_pretrained(folder).to(device(args.device)), folder


def answer(args) -> None:
    """Stream one answer, or print those of several adapters side by side."""
    base, folder = open_base(args)
    tokenizer, template = tokenizer_for(base.config.vocab_size, folder), Template(line_breaks(args.template))
    template.check(tokenizer)
    text = template.fill(Example(args.prompt, ""))
    asked = torch.tensor([tokenizer.begin + tokenizer.encode(text)], dtype=torch.int64, device=base.wte.weight.device)
    settings = (args.max_new_tokens, args.temperature, args.top_k, args.top_p, tokenizer.stops)
    models = [load_adapter(base, folder) for folder in args.adapter]
    torch.manual_seed(args.seed)  # what is loaded has drawn numbers, too
    if len(models) <= 1:
        new, shown = [], ""
        for token in stream(models[0] if models else base, asked, *settings):
            new.append(int(token))
            text = tokenizer.decode(new)
            if not text.endswith("\ufffd"):  # a letter may be several tokens
                print(text[len(shown) :], end="", flush=True)
                shown = text
        print(tokenizer.decode(new)[len(shown) :])
        return
    names = [Path(folder).name for folder in args.adapter]
    if len(set(names)) < len(names):
        names = args.adapter
    for name, row in zip(names, side_by_side(base, models, asked, settings), strict=True):
        print(f"{name:<{max(map(len, names))}}  {shown_as(tokenizer.decode(row))}")


def side_by_side(base: GPT, models: list[Adapted], asked: Tensor, settings: tuple) -> list[list[int]]:
    """The new tokens of every adapter: from one batch when all of them mix, else one after the other."""
    if any(why_not(model) for model in models):
        rows = [generate(model, asked, *settings)[0] for model in models]
    else:
        bank = TaskBank(base, dict(enumerate(models)))
        rows = generate(bank.rows(list(range(len(models)))), asked.expand(len(models), -1), *settings)
    return [row[asked.size(1) :].tolist() for row in rows]


def inspect(args) -> None:
    """What the folder says about itself, then (on the right base) what a prompt's vectors are near to."""
    folder = Path(args.adapter)
    base, base_folder = open_base(args)
    if not folder.is_dir():
        raise Error(f"no adapter at {folder}: there is no such folder")
    if (folder / "config.json").exists() and not (folder / "adapter_config.json").exists():
        tuned = GPT.from_pretrained(folder)
        print(f"{folder}\n  {'method':<20}full, or a base: {sum(p.numel() for p in tuned.parameters()):,} parameters, {tuned.config}")
        return
    for part in read_combination(folder, METHODS) or [""]:
        inspect_one(args, folder / part, base, base_folder)


def inspect_one(args, folder: Path, base: GPT, base_folder: Path) -> None:
    config, stored = read_adapter(folder)
    tensors, path = dict(stored), stored.path
    kind, theirs, here = config.get("peft_type"), stored.notes.get("base"), fingerprint(base)
    method = next((name for name, method in METHODS.items() if kind in method.peft_types), f"unknown here ({kind})")
    right = "" if theirs is None else f", which is {args.base}" if theirs == here else f", not {args.base}"
    lines = {"method": method}
    lines |= {name: config[name] for name in SIZES if config.get(name) is not None}
    lines |= {
        "parameters": f"{sum(t.numel() for t in tensors.values()):,}",
        "size": f"{path.stat().st_size / 1000:,.1f} KB ({path.name})",
        "base": ("not recorded" if theirs is None else str(theirs)[:12]) + right,
        "tensors": "",
    }
    print(folder)
    for name, value in lines.items():
        print(f"  {name:<20}{shown_as(str(value))[:200]}".rstrip())  # what a stranger's file says moves no cursor
    for name, t in list(tensors.items())[:4]:
        print(f"    {shown_as(str(name))[:200]} {tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}")
    if len(tensors) > 4:
        print(f"    … and {len(tensors) - 4} more")
    if method in ("prompt", "hard-prompt") and theirs in (None, here) and config.get("token_dim") == base.config.n_embd:
        print("\n".join(in_words(folder, base, tokenizer_for(base.config.vocab_size, base_folder))))


SIZES = ("num_virtual_tokens", "r", "lora_alpha", "lora_dropout", "target_modules", "bottleneck_size", "placement", "adapter_len",
    "adapter_layers", "gate")  # fmt: skip


def in_words(folder: Path, base: GPT, tokenizer: Tokenizer) -> list[str]:
    """A hard prompt's text; the tokens that a soft prompt's vectors are nearest to."""
    rung = load_adapter(base, folder).method.ladder_value().detach()
    if rung.dim() == 1:
        return [f"  {'text':<20}{in_letters(tokenizer, rung.tolist())!r}"]
    lines = ["  nearest tokens of each vector: cosine, distance (tokens lie about "
             f"{typical_distance(base):.2f} from the token nearest to them)"]  # fmt: skip
    for i, row in enumerate(nearest_tokens(base, rung[0])):
        words = "   ".join(f"{in_letters(tokenizer, [t])!r} {cosine:.2f} {distance:.2f}" for t, cosine, distance in row)
        lines.append(f"    {i:>3}  {words}")
    return lines


def nearest_tokens(base: GPT, prompt: Tensor, k: int = 3) -> list[list[tuple[int, float, float]]]:
    """prompt (P, C) -> for each vector its k nearest embeddings by cosine: (token, cosine, Euclidean distance)."""
    words, vectors = base.wte.weight.detach().float(), prompt.float()
    cosine = torch.nn.functional.normalize(vectors, dim=1) @ torch.nn.functional.normalize(words, dim=1).T  # (P, V)
    distance = torch.cdist(vectors, words)
    best = cosine.topk(min(k, len(words)), dim=1).indices.tolist()
    return [[(t, float(cosine[i, t]), float(distance[i, t])) for t in row] for i, row in enumerate(best)]


def typical_distance(base: GPT) -> float:
    """The median over (at most 1,000) tokens of the distance to the nearest other token."""
    words = base.wte.weight.detach()
    some = words[:1000].float()
    nearest = torch.full((len(some),), torch.inf, device=words.device)
    for first in range(0, len(words), 8192):
        distance = torch.cdist(some, words[first : first + 8192].float())
        if first == 0:
            distance.fill_diagonal_(torch.inf)  # itself
        nearest = torch.minimum(nearest, distance.amin(dim=1))
    return float(nearest.median())


def export(args) -> None:
    base, _ = open_base(args)
    kind = export_adapter(base, args.adapter, args.out)
    print(f"{args.out}: {kind}, which peft.PeftModel.from_pretrained(base, {args.out!r}) opens")


def import_(args) -> None:
    base, _ = open_base(args)
    model = load_adapter(base, args.adapter)
    model.save(args.out)
    print(f"{args.out}: {model.method.name}, {sum(t.numel() for t in model.method.tensors().values()):,} parameters, fits {args.base}")


def main(argv=None) -> None:
    args = arguments(argv)
    {"generate": answer, "inspect": inspect, "export": export, "import": import_}[args.command](args)


if __name__ == "__main__":
    sys.exit(run("python -m minipeft", main))
