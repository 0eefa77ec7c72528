#!/usr/bin/env python3
"""Tune a base with any method, or pretrain one.

    python train.py                                              prefix-tune the embedded base on the default task
    python train.py --method prompt --task sort                  a soft prompt for another skill
    python train.py --method full --task reverse+increment       full fine-tuning on two skills in a row
    python train.py --data pairs.jsonl                           your own {"input": …, "target": …} lines
    python train.py --eval-only --out runs/prefix-reverse        what a saved adapter reaches
    python train.py --base scratch --method full --task skills --steps 3000     pretrain a base
"""

import argparse
import sys
from pathlib import Path

import torch

import minipeft
from minipeft import METHODS, PRESETS, Error
from minipeft.checkpoint import fingerprint
from minipeft.data import NANO
from minipeft.data.batches import FileData, TaskData, draw, encode, question
from minipeft.data.tasks import KINDS, SKILLS, find_task, skill_example
from minipeft.data.tokenizer import ByteTokenizer
from minipeft.methods import method_class
from minipeft.training import evaluate, train

TOKENIZER = ByteTokenizer()


def arguments(argv) -> argparse.Namespace:
    class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        pass

    p = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    p.add_argument("--method", default="prefix", help=f"one of {', '.join(METHODS)}")
    p.add_argument("--task", default="reverse", help=f"a skill ({', '.join(SKILLS)}), two joined by '+', a novel task, or skills for the pretraining mixture")
    p.add_argument("--data", metavar="FILE.jsonl", help='train on a file instead of a task: one {"input": "…", "target": "…"} a line')
    p.add_argument("--base", default="nano", metavar="FOLDER|scratch", help="a Hugging Face folder with a byte-level GPT, the embedded nano, or scratch (random weights, nano's shape)")
    p.add_argument("--num-virtual-tokens", type=int, default=8, metavar="P", help="length of a prompt or prefix")
    p.add_argument("--space", default="kv", choices=["kv", "hidden"], help="prefix: learn keys and values, or the hidden vectors they are made of")
    p.add_argument("--prefix-projection", action="store_true", help="prefix: produce it by a two-layer MLP, folded away when saved")
    p.add_argument("--encoder-hidden-size", type=int, metavar="M", help="prefix: width of that MLP (default: the base's)")
    p.add_argument("--init", default="vocab", choices=["vocab", "random"], help="prompt, prefix: start from tokens drawn from the vocabulary, or from noise")
    p.add_argument("--init-from-text", metavar="TEXT", help="prompt, prefix: start from the embeddings, or keys and values, of this text")
    p.add_argument("--lr", type=float, help="peak learning rate (default: the method's own: " + ", ".join(f"{n} {m.learning_rate:g}" for n, m in METHODS.items()) + ")")
    p.add_argument("--batch-size", type=int, default=64, metavar="B", help="examples a step")
    p.add_argument("--steps", type=int, default=300, help="optimizer steps")
    p.add_argument("--seed", type=int, default=0, help="of initial values and data order; held-out examples do not depend on it")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1 …")
    p.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the products; what is trained stays float32")
    p.add_argument("--out", metavar="FOLDER", help="where the adapter goes (default: runs/METHOD-TASK)")
    p.add_argument("--resume", action="store_true", help="go on with the run that was stopped in --out")
    p.add_argument("--eval-only", action="store_true", help="train nothing: evaluate the adapter in --out")
    args = p.parse_args(argv)
    for name in ("batch_size", "steps"):
        if getattr(args, name) < 1:
            raise Error(f"--{name.replace('_', '-')} must be at least 1, not {getattr(args, name)}")
    args.lr = method_class(args.method).learning_rate if args.lr is None else args.lr
    args.out = Path(args.out or f"runs/{args.method}-{Path(args.data).stem if args.data else args.task}")
    return args


def open_base(args) -> minipeft.GPT:
    if args.base == "scratch":
        base = minipeft.GPT(PRESETS["nano"])
    else:
        base = minipeft.GPT.from_pretrained(NANO if args.base == "nano" else args.base)
    if base.config.vocab_size != TOKENIZER.vocab_size:
        raise Error(f"--base {args.base} has {base.config.vocab_size} tokens, but text is read as bytes here: it needs {TOKENIZER.vocab_size}")
    try:
        return base.to(args.device)
    except (RuntimeError, AssertionError) as e:
        raise Error(f"--device {args.device} cannot be used: {str(e).splitlines()[0]}") from None


def hyperparameters(args) -> dict:
    """What adapt() takes for this method, out of the flags."""
    if args.method == "full":
        return {}
    init = args.init
    if args.init_from_text is not None:
        init = torch.tensor(TOKENIZER.encode(args.init_from_text), dtype=torch.int64)
    h = {"num_virtual_tokens": args.num_virtual_tokens, "init": init}
    if args.method == "prefix":
        h |= {"space": args.space, "prefix_projection": args.prefix_projection, "encoder_hidden_size": args.encoder_hidden_size}
        if args.prefix_projection and init == "vocab":
            h["init"] = "random"
    return h


def open_data(args, base) -> FileData | TaskData:
    virtual = 0 if args.method == "full" else args.num_virtual_tokens
    if args.data is None:
        return TaskData(find_task(args.task), args.seed, args.batch_size)
    return FileData(args.data, TOKENIZER, args.seed, args.batch_size, base.config.block_size, virtual)


def answers(model, examples) -> list[str]:
    """Greedy answers, one example at a time."""
    texts = []
    for e in examples:
        asked = torch.tensor([question(e, TOKENIZER)], device=next(model.parameters()).device)
        longest = len(TOKENIZER.encode(e.target)) + 8
        texts.append(TOKENIZER.decode(minipeft.generate(model, asked, longest, TOKENIZER.end)[0, asked.size(1) :].tolist()))
    return texts


def print_skills(model) -> None:
    """What a pretrained base can do: exact match on every skill, when told the instruction and when not."""
    print(f"{'skill':<12}  told   not told      (exact match on 500 held-out examples)")
    for name in SKILLS:
        told, untold = (
            evaluate(model, *encode(draw(lambda rng: skill_example(rng, name, told), f"held-out {name}", 500), TOKENIZER))[1]  # noqa: B023
            for told in (True, False)
        )
        print(f"{name:<12}  {told:.3f}  {untold:.3f}")


def size_kb(folder: Path) -> float:
    return sum(f.stat().st_size for f in folder.iterdir() if f.suffix in (".json", ".bin", ".safetensors")) / 1000


def main(argv=None) -> None:
    args = arguments(argv)
    torch.manual_seed(args.seed)
    data = None
    if args.data is None:
        find_task(args.task)  # a wrong name is noticed before anything is loaded
    base = open_base(args)
    data = open_data(args, base)
    what = f"data {args.data} ({len(data.examples)} to train on, {len(data.held_out)} held out)" if args.data else f"task {args.task} ({data.task.kind}: {KINDS[data.task.kind]})"
    print(f"base {args.base} || {what} || method {args.method} || device {args.device}")
    if args.data and data.cut:
        print(f"{data.cut} examples were longer than the block size of {base.config.block_size}: their inputs are cut from the left")
    held_out = encode(data.held_out, TOKENIZER)
    shown = data.held_out[:3]

    if args.eval_only:
        model = minipeft.load_adapter(base, args.out)
    else:
        model = minipeft.adapt(base, args.method, **hyperparameters(args))
    print(model.trainable_summary())
    before, base_answers = evaluate(base, *held_out), answers(base, shown)

    if not args.eval_only:
        settings = {name: str(getattr(args, name)) for name in ("method", "task", "data", "num_virtual_tokens", "space", "prefix_projection", "encoder_hidden_size", "lr", "batch_size", "steps", "seed")}
        if args.method != "full":
            settings["base"] = fingerprint(base)
        train(
            model,
            lambda step: encode(data.batch(step), TOKENIZER),
            args.steps,
            args.lr,
            state=args.out / "training_state.pt",
            settings=settings,
            resume=args.resume,
            dtype=getattr(torch, args.dtype),
        )
        model.save(args.out)

    after = evaluate(model, *held_out)
    print(f"held-out exact match: {before[1]:.3f} -> {after[1]:.3f}      held-out loss: {before[0]:.3f} -> {after[0]:.3f}      ({len(data.held_out)} examples)")
    for e, untuned, tuned in zip(shown, base_answers, answers(model, shown), strict=True):
        print(f"  {e.input}\n    wanted {e.target}\n    base   {untuned}\n    tuned  {tuned}")
    if args.task == "skills" and not args.data:
        print_skills(model)
    size, base_size = size_kb(args.out), 4 * sum(p.numel() for p in base.parameters()) / 1000
    print(f"{args.out}: {size:,.1f} KB beside the base's {base_size:,.1f} KB")


if __name__ == "__main__":
    try:
        main()
    except Error as e:
        sys.exit(print(f"train.py: {e}", file=sys.stderr) or 2)
    except KeyboardInterrupt:
        sys.exit(print("train.py: interrupted; the same command with --resume goes on from the last saved step", file=sys.stderr) or 130)
