#!/usr/bin/env python3
"""Tune a base with any method, or pretrain one.

python train.py                                              prefix-tune the embedded base on the default task
python train.py --method prompt --task sort                  a soft prompt for another skill
python train.py --method full --task reverse+increment       full fine-tuning on two skills in a row
python train.py --data pairs.jsonl                           your own {"input": …, "target": …} lines
python train.py --eval-only --out runs/prefix-reverse        what a saved adapter reaches
python train.py --base scratch --method full --task skills --steps 3500 --lr 2e-3     pretrain a base
"""

import argparse
import inspect
import shlex
import sys
import time
from pathlib import Path

import torch

import minipeft
from minipeft import METHODS, PRESETS, Error
from minipeft.bench.measure import card
from minipeft.checkpoint import check_place, fingerprint, write_json
from minipeft.console import Parser, device, run, seed
from minipeft.data import NANO
from minipeft.data.batches import FileData, TaskData, draw, encode, question
from minipeft.data.tasks import KINDS, NOVEL, SKILLS, find_task, skill_example
from minipeft.data.tokenizer import ByteTokenizer
from minipeft.methods import method_class
from minipeft.training import evaluate, train

TOKENIZER = ByteTokenizer()


def arguments(argv) -> argparse.Namespace:
    rates = ", ".join(f"{name} {method.learning_rate:g}" for name, method in METHODS.items())
    p = Parser(__doc__)
    add = p.add_argument
    add("--method", default="prefix", help=f"one of {', '.join(METHODS)}")
    add("--task", default="reverse", help=f"a skill ({', '.join(SKILLS)}), two joined by '+', novel ({', '.join(NOVEL)}), or skills: "
        "the mixture that a base is pretrained on")  # fmt: skip
    add("--data", metavar="FILE.jsonl", help='train on a file instead of a task: one {"input": "…", "target": "…"} a line')
    add("--base", default="nano", metavar="FOLDER|scratch", help="a folder with a byte-level GPT, the embedded nano, "
        "or scratch: random weights in nano's shape")  # fmt: skip
    add("--num-virtual-tokens", type=int, metavar="P", help="prompt, prefix: its length (default: 8)")
    add("--space", choices=["kv", "hidden"], help="prefix: learn keys and values, or the hidden vectors they are made of (default: kv)")
    add("--prefix-projection", action="store_true", help="prefix: produce it by a two-layer MLP, folded away when saved")
    add("--encoder-hidden-size", type=int, metavar="M", help="prefix: width of that MLP (default: the base's)")
    start = p.add_mutually_exclusive_group()
    start.add_argument("--init", choices=["random", "vocab"], help="prompt, prefix: start from noise, or from tokens of the vocabulary "
        "(default: prompt vocab, prefix random)")  # fmt: skip
    start.add_argument(
        "--init-from-text", metavar="TEXT", help="prompt, prefix: start from the embeddings, or keys and values, of this text"
    )
    add("--lr", type=float, help=f"peak learning rate (default: the method's own: {rates}; 0.01 with --prefix-projection)")
    add("--batch-size", type=int, default=64, metavar="B", help="examples a step")
    add("--steps", type=int, default=300, help="optimizer steps")
    add("--seed", type=seed, default=0, help="of initial values and data order; held-out examples do not depend on it")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1 …")
    add("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the products; what is trained stays float32")
    add("--base-dtype", choices=["float32", "bfloat16"], help="hold the frozen base in this type (default: its own); not with full")
    add("--gradient-checkpointing", action="store_true", help="keep less for the backward pass, and run every block twice instead")
    add("--compile", action="store_true", help="torch.compile the blocks for training: some ten seconds a length of text, then faster")
    add("--out", metavar="FOLDER", help="where the adapter goes (default: runs/METHOD-TASK)")
    kind = p.add_mutually_exclusive_group()
    kind.add_argument("--resume", action="store_true", help="go on with the run that was stopped in --out")
    kind.add_argument("--eval-only", action="store_true", help="train nothing: evaluate the adapter in --out")
    args = p.parse_args(argv)
    for name in ("batch_size", "steps"):
        if getattr(args, name) < 1:
            raise Error(f"--{name.replace('_', '-')} must be at least 1, not {getattr(args, name)}")
    if args.lr is not None and not 0 < args.lr <= 100:
        raise Error(f"--lr must be above 0 and at most 100, not {args.lr:g}")
    method = method_class(args.method)  # what is wrong is noticed before anything is loaded
    find_task(args.task)
    for flag in hyperparameters(args):
        if flag not in inspect.signature(method).parameters:
            raise Error(f"--{flag.replace('_', '-')} does not go with --method {args.method}")
    if args.method == "full" and args.base_dtype == "bfloat16":
        raise Error("--base-dtype bfloat16 is for a frozen base: full trains every weight, in float32 (--dtype bfloat16 works in both)")
    args.out = Path(args.out or f"runs/{args.method}-{Path(args.data).stem if args.data else args.task}")
    if not args.eval_only:
        check_place(args.out, adapter=method.freezes_base)
    return args


def open_base(args) -> minipeft.GPT:
    if args.base == "scratch":
        base = minipeft.GPT(PRESETS["nano"])
    else:
        base = minipeft.GPT.from_pretrained(NANO if args.base == "nano" else args.base)
    if (V := base.config.vocab_size) != TOKENIZER.vocab_size:
        raise Error(f"--base {args.base} has {V} tokens, but text is read as bytes here: it needs {TOKENIZER.vocab_size}")
    if args.method == "full":
        base = base.float()  # what is trained is float32, whatever the file holds
    elif args.base_dtype:
        base = base.to(getattr(torch, args.base_dtype))
    return base.to(device(args.device))


def hyperparameters(args) -> dict:
    """What adapt() is given: the flags that were, by the names they have there."""
    h = {name: getattr(args, name) for name in ("num_virtual_tokens", "space", "encoder_hidden_size", "init")}
    if args.init_from_text is not None:
        h["init"] = torch.tensor(TOKENIZER.encode(args.init_from_text), dtype=torch.int64)
    if args.prefix_projection:
        h["prefix_projection"] = True
    return {name: value for name, value in h.items() if value is not None}


def open_data(args, model) -> FileData | TaskData:
    if args.data is None:
        return TaskData(find_task(args.task), args.seed, args.batch_size)
    return FileData(args.data, TOKENIZER, args.seed, args.batch_size, model.base.config.block_size, model.method.num_virtual_tokens)


def describe(args, base, data) -> str:
    if args.data is None:
        return f"task {args.task} ({data.task.kind}: {KINDS[data.task.kind]})"
    text = f"data {args.data} ({len(data.examples)} to train on, {len(data.held_out)} held out)"
    return text + (f", {data.cut} inputs cut from the left to the block size of {base.config.block_size}" if data.cut else "")


def answers(model, examples, virtual: int = 0) -> list[str]:
    """Greedy answers, one example at a time, as far as the block size goes."""
    texts = []
    for e in examples:
        asked = torch.tensor([question(e, TOKENIZER)], device=next(model.parameters()).device)
        room = getattr(model, "base", model).config.block_size - virtual - asked.size(1) + 1  # the last token is not read again
        longest = min(len(TOKENIZER.encode(e.target)) + 8, room)
        tokens = minipeft.generate(model, asked, longest, stop_token=TOKENIZER.end)[0, asked.size(1) :]
        texts.append(TOKENIZER.decode(tokens.tolist()))
    return texts


def shown_as(text: str) -> str:
    """One line that a terminal can show: what it could not is a dot."""
    return "".join(c if c.isprintable() else "·" for c in text)


def skill_scores(model) -> dict[str, dict[str, float]]:
    """What a pretrained base can do: exact match on 500 held-out examples of every skill, told the instruction and not."""

    def score(name: str, told: bool) -> float:
        examples = draw(lambda rng: skill_example(rng, name, told), f"held-out {name}", 500)
        return evaluate(model, *encode(examples, TOKENIZER))[1]

    return {name: {"told": score(name, True), "not told": score(name, False)} for name in SKILLS}


def size_kb(folder: Path) -> float:
    return sum(f.stat().st_size for f in folder.iterdir() if f.name.startswith(("adapter_", "model", "pytorch_model", "config"))) / 1000


def main(argv=None) -> None:
    args = arguments(argv)
    torch.manual_seed(args.seed)
    base = open_base(args)
    if args.eval_only:
        model = minipeft.load_adapter(base, args.out)
    else:
        model = minipeft.adapt(base, args.method, **hyperparameters(args))
    data = open_data(args, model)
    held_out, shown = encode(data.held_out, TOKENIZER), data.held_out[:3]
    model(held_out[0][:1].to(args.device))  # virtual and real tokens fit the block size, or this says why not
    head = [
        f"base {args.base} || method {model.method.name} || {describe(args, base, data)} || device {args.device}",
        model.trainable_summary(),
    ]
    print("\n".join(head))

    before, base_answers = evaluate(base, *held_out), answers(base, shown)
    seconds = None if args.eval_only else tune(args, base, model, data)
    after, tuned_answers = evaluate(model, *held_out), answers(model, shown, model.method.num_virtual_tokens)
    result = {
        "command": shlex.join(["python", "train.py", *(sys.argv[1:] if argv is None else argv)]),
        "card": card(torch.device(args.device)),
        "head": head,
        "seconds": seconds,
        "trained": sum(p.numel() for p in model.trainable_parameters()),
        "examples": len(data.held_out),
        "exact_match": [before[1], after[1]],
        "loss": [before[0], after[0]],
        "samples": [
            {"input": shown_as(e.input), "wanted": shown_as(e.target), "base": shown_as(untuned), "tuned": shown_as(tuned)}
            for e, untuned, tuned in zip(shown, base_answers, tuned_answers, strict=True)
        ],
        "skills": skill_scores(model) if args.task == "skills" and args.data is None else {},
        "out": str(args.out),
        "kb": [size_kb(args.out), sum(p.numel() * p.element_size() for p in base.parameters()) / 1000],
    }
    if not args.eval_only:
        write_json(args.out / "scores.json", result)
    print(report(result))


def report(r: dict) -> str:
    """What a run reached, as it is printed, from what its scores.json holds."""
    (before, after), (loss, lower), (adapter, base) = r["exact_match"], r["loss"], r["kb"]
    lines = [f"held-out exact match {before:.3f} -> {after:.3f}, loss {loss:.3f} -> {lower:.3f} ({r['examples']} examples)"]
    for s in r["samples"]:
        lines += [f"  {s['input']}", f"    wanted {s['wanted']}", f"    base   {s['base']}", f"    tuned  {s['tuned']}"]
    if r["skills"]:
        lines.append("skill         told  not told")
        lines += [f"{name:<12} {score['told']:.3f}     {score['not told']:.3f}" for name, score in r["skills"].items()]
    lines.append(f"{r['out']}: {adapter:,.1f} KB, beside the base's {base:,.1f} KB")
    return "\n".join(lines)


def tune(args, base, model, data) -> float:
    """Train and save; returns the seconds it took."""
    lr = model.method.learning_rate if args.lr is None else args.lr
    names = ("method", "space", "prefix_projection", "encoder_hidden_size", "init", "init_from_text")
    names += ("task", "data", "batch_size", "steps", "seed", "dtype", "base_dtype")
    settings = {name: getattr(args, name) for name in names}
    settings |= {"num_virtual_tokens": model.method.num_virtual_tokens, "lr": lr, "base": fingerprint(base)}
    settings["examples"] = data.digest if args.data else None
    state = args.out / "training_state.pt"
    longest = base.config.block_size - model.method.num_virtual_tokens
    bucket = 32 if args.compile else 1
    model.compile_blocks(args.compile)
    model.gradient_checkpointing(args.gradient_checkpointing)
    start = time.perf_counter()
    train(
        model,
        lambda step: encode(data.batch(step), TOKENIZER, bucket, longest),
        args.steps,
        lr,
        state=state,
        settings=settings,
        resume=args.resume,
        dtype=getattr(torch, args.dtype),
    )
    model.compile_blocks(False)  # answers grow token by token: every length would be compiled
    model.gradient_checkpointing(False)
    model.save(args.out)
    state.unlink()  # only now that the result is safe
    return round(time.perf_counter() - start, 1)


if __name__ == "__main__":
    sys.exit(run("train.py", main, "interrupted; the same command with --resume goes on from the last saved tenth of the run"))
