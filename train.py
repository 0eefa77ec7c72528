#!/usr/bin/env python3
"""Tune a base with any method, or pretrain one.

python train.py                                              prefix-tune the embedded base on the default task
python train.py --method prompt --task sort                  a soft prompt for another skill
python train.py --method lora --task differences             LoRA on something the base never learnt
python train.py --method lora+prefix                         two methods together, saved as one adapter folder each
python train.py --method full --task reverse+increment       full fine-tuning on two skills in a row
python train.py --method hard-prompt                         try wordings, keep the best: nothing is trained
python train.py --climb                                      hard prompt -> soft prompt -> prefix, each started from the one before
python train.py --data pairs.jsonl                           your own {"input": …, "target": …} lines, or CSV
python train.py --base SmolLM2-135M --base-dtype bfloat16 --data train.csv --test test.csv --method lora --epochs 3 --answers 100
                                                             a real model: a Hugging Face folder of the GPT-2 or Llama family
python train.py --eval-only --out runs/prefix-reverse        what a saved adapter reaches
python train.py --base scratch --method full --task skills --steps 3500 --lr 2e-3     pretrain a base
torchrun --nproc-per-node 2 train.py                         the same over two processes: docs/processes.md
"""

import argparse
import contextlib
import importlib.util
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import minipeft
from minipeft import METHODS, Error
from minipeft.accounting import base_parameters, bytes_per_step
from minipeft.adapters import fingerprint
from minipeft.config import EMBEDDED
from minipeft.data import BASES
from minipeft.data.batches import FileData, TaskData, draw, encode, references, thinned
from minipeft.data.tasks import (
    INSTRUCTIONS,
    KINDS,
    NOVEL,
    SKILLS,
    Example,
    find_task,
    skill_example,
)
from minipeft.data.template import DEFAULT, Template
from minipeft.data.tokenizer import Tokenizer, tokenizer_for
from minipeft.files.atomic import check_place, read_json, write_json, write_text
from minipeft.files.huggingface import find_base
from minipeft.methods import hyperparameters_of
from minipeft.methods.base import WIDE, Adapted
from minipeft.runtime.console import Parser, line_breaks, run, seed, shown_as
from minipeft.runtime.devices import device
from minipeft.runtime.memory import available, gigabytes, resident_peak
from minipeft.runtime.processes import (
    check_same,
    is_main_process,
    join,
    leave,
    lost_peer,
    own_noise,
    run_on_rank0,
    world_size,
)
from minipeft.runtime.profiling import card, saved_bytes
from minipeft.runtime.signals import Stopped
from minipeft.training.evaluation import answer, batches, evaluate, perplexity
from minipeft.training.loop import train
from minipeft.training.prompt_search import choose_wording, search
from minipeft.training.run_folder import RunFolder
from minipeft.training.scores import text_scores
from minipeft.training.sharding import full_base, parallel
from minipeft.training.traffic import counted_step

DEVELOPMENT = 200  # examples that hard prompts are chosen by
REPORTED = 200  # held-out examples of a file that the loss is reported on, at most


def arguments(argv) -> argparse.Namespace:
    rates = ", ".join(f"{name} {m.learning_rate:g} | {m.learning_rate_wide:g}" for name, m in METHODS.items() if m.learning_rate)
    p = Parser(__doc__)
    add = p.add_argument
    which = p.add_mutually_exclusive_group()
    which.add_argument("--method", default="prefix", help=f"one of {', '.join(METHODS)}; or several joined by '+'")
    which.add_argument("--climb", action="store_true", help="hard-prompt, prompt and prefix in turn, each started from the one before")
    add("--task", default="reverse", help=f"a skill ({', '.join(SKILLS)}), two joined by '+', novel ({', '.join(NOVEL)}), or skills: "
        "the mixture that a base is pretrained on")  # fmt: skip
    add("--data", metavar="FILE", help='train on a file instead of a task: .jsonl with {"input": "…", "target": "…"}, {"text": "…"} or '
        '{"messages": […]} on every line, or .csv or .tsv with the columns input,target or mr,ref')  # fmt: skip
    add("--dev", metavar="FILE", help=f"to choose by: at most {DEVELOPMENT} of it (default: a tenth of --data)")
    add("--test", metavar="FILE", help=f"to report on: at most {REPORTED} of it, and --answers (default: --dev, or that tenth)")
    add("--columns", nargs=2, metavar=("INPUT", "TARGET"), help="what input and target are called in the files")
    add("--limit", type=int, metavar="N", help="train on N examples of --data alone, drawn by --seed")
    add("--max-length", type=int, default=1024, metavar="T", help="longer examples of --data are cut from the left of their input, as "
        "the base's block size cuts them anyway; virtual tokens count")  # fmt: skip
    add(
        "--template", metavar="TEXT", help=f'how an input is put to the base: a text with {{input}} in it, or "chat" (default: "{DEFAULT}")'
    )
    add("--answers", type=int, metavar="N", help="also answer the first N held-out inputs in full, into OUT/answers.jsonl, and score them "
        "by BLEU and chrF (needs sacrebleu)")  # fmt: skip
    add("--base", default="nano", metavar="FOLDER|NAME", help="a Hugging Face folder (or hub id) of the GPT-2 or Llama family, one of "
        f"the embedded ones ({', '.join(EMBEDDED)}), or scratch:SIZE, random weights in one's shape (scratch: nano's)")  # fmt: skip
    add("--num-virtual-tokens", type=int, metavar="P", help="prompt, prefix: its length (default: what it starts from has, else 8)")
    add("--space", choices=["kv", "hidden"], help="prefix: learn keys and values, or the hidden vectors they are made of (default: kv)")
    add("--prefix-projection", action="store_true", default=None, help="prefix: produce it by a two-layer MLP, folded away when saved")
    add("--encoder-hidden-size", type=int, metavar="M", help="prefix: width of that MLP (default: the base's)")
    start = p.add_mutually_exclusive_group()
    start.add_argument("--init", choices=["random", "vocab"], help="prompt, prefix: start from noise, or from tokens of the vocabulary "
        "(default: prompt vocab, prefix random)")  # fmt: skip
    start.add_argument(
        "--init-from-text", metavar="TEXT", help="prompt, prefix: start from the embeddings, or keys and values, of this text"
    )
    start.add_argument("--init-from", metavar="ADAPTER", help="prompt, prefix: start from an adapter on a lower rung of the ladder")
    add("--wordings", nargs="+", metavar="TEXT", help="hard-prompt: what to choose from (default: all instructions of all skills)")
    add("--search", type=int, metavar="P", help="hard-prompt: also search for P tokens along the gradient, for --steps steps")
    add("--r", type=int, help="lora: rank (default: 8)")
    add("--lora-alpha", type=float, metavar="A", help="lora: the change is multiplied by A / r (default: 8)")
    add("--lora-dropout", type=float, metavar="SHARE", help="lora: of its input, dropped in training (default: 0)")
    add("--target-modules", nargs="+", metavar="LINEAR", help="lora: of c_attn, attn.c_proj, c_fc, mlp.c_proj in GPT-2's shape, "
        "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj in Llama's (default: c_attn; q_proj v_proj)")  # fmt: skip
    add("--bottleneck-size", type=int, metavar="M", help="adapter: width of its small networks (default: 8)")
    add("--placement", choices=["houlsby", "pfeiffer"], help="adapter: after attention and MLP, or MLP alone (default: houlsby)")
    add("--adapter-len", type=int, metavar="K", help="llama-adapter: prompts a layer (default: 10)")
    add("--adapter-layers", type=int, metavar="N", help="llama-adapter: in the top N layers (default: 30 of 32 of them)")
    add("--gate", choices=["head", "layer"], help="llama-adapter: a gate a head, or one a layer, which PEFT can open (default: head)")
    add("--lr", type=float, help=f"peak learning rate (default: the method's own; on the embedded base | with {WIDE} channels or more: "
        f"{rates}; a tenth of it with --prefix-projection)")  # fmt: skip
    add("--batch-size", type=int, metavar="B", help="examples a step (default: 64 of a task, 8 of --data)")
    long = p.add_mutually_exclusive_group()
    long.add_argument("--steps", type=int, help="optimizer steps (default: 300 on a task)")
    long.add_argument("--epochs", type=int, metavar="E", help="times through --data (default: 3)")
    add("--keep-best", action="store_true", help="save what had the lowest loss on what is chosen by (see --dev), looked at ten times in "
        "the run, instead of what the last step made")  # fmt: skip
    add("--seed", type=seed, default=0, help="of initial values and data order; held-out examples do not depend on it")
    add("--shard-base", action="store_true", help="under torchrun: every process holds a part of the frozen base, not all of it (full "
        "always does)")  # fmt: skip
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1 …")
    add("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the products; what is trained stays float32")
    add("--base-dtype", choices=["float32", "bfloat16"], help="hold the frozen base in this type (default: its own); not with full")
    add("--gradient-checkpointing", action="store_true", help="keep less for the backward pass, and run every block twice instead")
    add("--compile", action="store_true", help="torch.compile the blocks for training: some ten seconds a length of text, then faster")
    add("--out", metavar="FOLDER", help="where the adapter goes (default: runs/METHOD-TASK)")
    kind = p.add_mutually_exclusive_group()
    kind.add_argument("--resume", action="store_true", help="go on with the run that was stopped in --out, from its last whole state")
    kind.add_argument("--overwrite", action="store_true", help="start anew in --out, whatever run it holds")
    kind.add_argument("--eval-only", action="store_true", help="train nothing: evaluate the adapter in --out")
    args = p.parse_args(argv)
    for name in ("batch_size", "steps", "epochs", "limit", "answers", "max_length"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise Error(f"--{name} must be at least 1, not {getattr(args, name)}".replace("_", "-"))
    for name in ("dev", "test", "columns", "limit", "template", "answers", "epochs"):
        if args.data is None and getattr(args, name) is not None:
            raise Error(f"--{name} goes with --data: a task makes its own examples")
    args.template = Template(DEFAULT if args.template is None else line_breaks(args.template))
    args.batch_size = args.batch_size or (64 if args.data is None else 8)
    if args.answers and importlib.util.find_spec("sacrebleu") is None:
        raise Error("--answers scores by BLEU and chrF, which needs: pip install sacrebleu")
    if args.lr is not None and not 0 < args.lr <= 100:
        raise Error(f"--lr must be above 0 and at most 100, not {args.lr:g}")
    args.methods = args.method.split("+")
    known = [name for method in (LADDER if args.climb else args.methods) for name in hyperparameters_of(method)]
    find_task(args.task)  # what is wrong is noticed before anything is loaded
    for flag in HYPERPARAMETERS:
        if getattr(args, flag) is not None and PARAMETER.get(flag, flag) not in known:
            raise Error(f"--{flag.replace('_', '-')} does not go with {'--climb' if args.climb else '--method ' + args.method}")
    if args.climb and (args.eval_only or any(getattr(args, flag) for flag in STARTS)):
        raise Error("--climb starts every rung from the one before: no --init, --num-virtual-tokens, --prefix-projection or --eval-only")
    if (args.resume or args.keep_best) and args.method == "hard-prompt" and not args.climb:
        raise Error(f"nothing to {'resume' if args.resume else 'keep the best of'}: hard-prompt trains nothing")
    if args.wordings and "" in args.wordings:
        raise Error("--wordings must be texts of at least one letter")
    if args.search is not None and args.search < 1:
        raise Error(f"--search must be at least 1 token, not {args.search}")
    if "full" in args.methods and args.base_dtype == "bfloat16":
        raise Error("--base-dtype bfloat16 is for a frozen base: full trains every weight, in float32 (--dtype bfloat16 works in both)")
    name = "climb" if args.climb else args.method
    args.out = Path(args.out or f"runs/{name}-{Path(args.data).stem if args.data else args.task}")
    if not args.eval_only:
        for folder in [args.out / rung for rung in LADDER] if args.climb else [args.out]:
            check_place(folder, "a combination" if len(args.methods) > 1 else "a base" if args.method == "full" else "an adapter")
    return args


LADDER = ("hard-prompt", "prompt", "prefix")  # the rungs that --climb takes
HYPERPARAMETERS = ("num_virtual_tokens", "space", "prefix_projection", "encoder_hidden_size", "init", "init_from_text", "init_from",
    "wordings", "search", "r", "lora_alpha", "lora_dropout", "target_modules", "bottleneck_size", "placement", "adapter_len",
    "adapter_layers", "gate")  # fmt: skip
STARTS = ("num_virtual_tokens", "prefix_projection", "init", "init_from_text", "init_from")  # what --climb settles itself
PARAMETER = {"init_from_text": "init", "init_from": "init", "wordings": "tokens", "search": "tokens"}  # where adapt() calls it otherwise


def open_base(args) -> tuple[minipeft.GPT, Tokenizer]:
    dtype = getattr(torch, args.base_dtype) if args.base_dtype else None
    if "full" in args.methods:
        dtype = torch.float32  # what is trained, whatever the file holds
    name, _, size = args.base.partition(":")
    if name == "scratch":
        if size not in ("", *EMBEDDED):
            raise Error(f"--base scratch: takes one of {', '.join(EMBEDDED)}, not {size!r}")
        base, folder = minipeft.GPT(EMBEDDED[size or "nano"]).to(dtype), None
    else:
        folder = find_base(BASES.get(args.base, args.base))
        base = minipeft.GPT.from_pretrained(folder, dtype)
    return base if is_sharded(args) else base.to(args.device), tokenizer_for(base.config.vocab_size, folder)


def is_sharded(args) -> bool:
    """Whether every process holds a part of the base: then it moves to the device block by block."""
    return world_size() > 1 and ("full" in args.methods or args.shard_base)


def hyperparameters(args, base, tokenizer) -> dict:
    """What adapt() is given: the flags that were, by the names they have there; all but a hard prompt's tokens."""
    h = {name: getattr(args, name) for name in HYPERPARAMETERS if name not in PARAMETER and getattr(args, name) is not None}
    if args.init_from_text is not None:
        h["init"] = ids(tokenizer, args.init_from_text)
    if args.init_from is not None:
        lower = minipeft.load_adapter(base, args.init_from)
        if not hasattr(lower.method, "ladder_value"):
            raise Error(f"--init-from {args.init_from} is {lower.method.name}, no rung of the ladder: only {', '.join(LADDER)} are")
        h["init"], P = lower.method.ladder_value().detach().clone(), lower.method.num_virtual_tokens
        lower.detach()
        if args.num_virtual_tokens not in (None, P):
            raise Error(f"--init-from {args.init_from} has {P} virtual tokens, so --num-virtual-tokens cannot be {args.num_virtual_tokens}")
    if args.climb:  # a flag of one rung is none of the others
        known = hyperparameters_of(args.method)
        h = {name: value for name, value in h.items() if name in known}
    return h


def ids(tokenizer: Tokenizer, text: str) -> Tensor:
    """A wording's tokens, which start as every text does (and so does the input behind them)."""
    return torch.tensor(tokenizer.begin + tokenizer.encode(line_breaks(text)), dtype=torch.int64)


def attach(args, base, tokenizer) -> tuple[Adapted, "FileData | TaskData", list[dict]]:
    """The adapted model, the data (inputs are cut to fit beside virtual tokens), and what hard-prompt had to choose from."""
    if args.eval_only:
        model = minipeft.load_adapter(base, args.out)
        return model, open_data(args, base, tokenizer, model.method.num_virtual_tokens), []
    if "hard-prompt" not in args.methods:
        model = minipeft.adapt(base, args.methods, **hyperparameters(args, base, tokenizer))
        return model, open_data(args, base, tokenizer, model.method.num_virtual_tokens), []
    if args.wordings is None and args.data is not None and not args.search:
        raise Error("hard-prompt on your own data needs --wordings to choose from, or --search P")
    candidates = [ids(tokenizer, text) for text in args.wordings or (INSTRUCTIONS if args.data is None else [])]
    random = torch.randint(base.config.vocab_size, (args.search or 0,))
    longest = max([*candidates, random], key=len)
    minipeft.adapt(base, "hard-prompt", tokens=longest).detach()  # it fits, or this says why not
    data = open_data(args, base, tokenizer, len(longest))
    if args.search:
        candidates.append(search(base, random, lambda step: encode(data.batch(step), tokenizer, args.template), steps(args, data)))
    development = batches(data.development(DEVELOPMENT), tokenizer, args.template)
    scores, tokens = choose_wording(base, candidates, development, tokenizer)
    model = minipeft.adapt(base, args.methods, tokens=tokens, **hyperparameters(args, base, tokenizer))
    return model, open_data(args, base, tokenizer, model.method.num_virtual_tokens), scores


def open_data(args, base, tokenizer, virtual: int) -> "FileData | TaskData":
    if args.data is None:
        return TaskData(find_task(args.task), args.seed, args.batch_size)
    files = dict(dev=args.dev, test=args.test, columns=args.columns and tuple(args.columns), limit=args.limit)
    return FileData(args.data, tokenizer, args.template, args.seed, args.batch_size, longest_example(args, base), virtual, **files)


def longest_example(args, base) -> int:
    """Positions that an example may take, virtual tokens included."""
    return min(args.max_length, base.config.block_size)


def steps(args, data) -> int:
    if args.steps is not None:
        return args.steps
    return 300 if args.data is None else (args.epochs or 3) * data.steps_per_epoch


def describe(args, base, data) -> str:
    if args.data is None:
        return f"task {args.task} ({data.task.kind}: {KINDS[data.task.kind]})"
    text = f"data {args.data} ({len(data.examples)} to train on, {len(data.held_out)} held out)"
    return text + (f", {data.cut} cut from the left (texts: divided) to {longest_example(args, base)} tokens" if data.cut else "")


def longest(examples: list[Example], tokenizer: Tokenizer) -> int:
    """Tokens that are enough for an answer to any of them."""
    return max(len(tokenizer.encode(e.target)) for e in examples) + 8


def skill_scores(model, tokenizer) -> dict[str, dict[str, float]]:
    """What a pretrained base can do: exact match on 500 held-out examples of every skill, told the instruction and not."""

    def score(name: str, told: bool) -> float:
        examples = draw(lambda rng: skill_example(rng, name, told), f"held-out {name}", 500)
        return evaluate(model, batches(examples, tokenizer))[1]

    return {name: {"told": score(name, True), "not told": score(name, False)} for name in SKILLS}


def size_kb(folder: Path) -> float:
    files = [f for place in (folder, *(folder / name for name in METHODS)) if place.is_dir() for f in place.iterdir()]
    return sum(f.stat().st_size for f in files if f.name.startswith(("adapter_", "model", "pytorch_model", "config", "combination"))) / 1000


def main(argv=None) -> None:
    args = arguments(argv)
    args.device = join(device(args.device))
    args.command = command(sys.argv[1:] if argv is None else argv)
    with contextlib.ExitStack() as stack:
        if not is_main_process():  # it prints for all
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        if args.climb:
            climb(args)
        else:
            print(report(tune_and_score(args)))
    leave()


def command(argv: list[str]) -> str:
    """What starts this again. Behind -- torchrun leaves flags alone: else it would take --r for one of its own, cut short."""
    start = ["python"] if world_size() == 1 else ["torchrun", "--nproc-per-node", os.environ["LOCAL_WORLD_SIZE"], "--"]
    return shlex.join([*start, "train.py", *argv])


def climb(args) -> None:
    """Hard prompt, soft prompt, prefix: one run each, started from the one before."""
    if args.resume and not args.out.is_dir():
        raise Error(f"nothing to resume: there is no folder {args.out}")
    results, ran = [], False  # once a rung is run, those above it that lie there started from another one
    for rung, below in zip(LADDER, (None, *LADDER), strict=False):
        its_own = argparse.Namespace(**vars(args))
        its_own.method, its_own.methods, its_own.out = rung, [rung], args.out / rung
        its_own.init_from = args.out / below if below else None
        scores = its_own.out / "scores.json"
        if args.resume and not ran and scores.exists() and RunFolder(its_own.out).is_finished:
            results.append(read_json(scores))
            continue
        its_own.resume = args.resume and not ran and rung != "hard-prompt" and its_own.out.is_dir()
        its_own.overwrite = args.overwrite or args.resume and not its_own.resume
        results.append(tune_and_score(its_own))
        ran = True
    print(climb_table(results))


def climb_table(results: list[dict]) -> str:
    """The rungs of a --climb, side by side. The loss before training is that of the rung below: the ladder loses nothing."""
    lines = [f"{'rung':<12} {'trained':>8} {'exact match':>12} {'loss at its start':>18} {'loss':>7}"]
    for rung, r in zip(LADDER, results, strict=True):
        started = f"{r['start_loss']:.3f}" if r["start_loss"] is not None else "-"
        lines.append(f"{rung:<12} {r['trained']:>8,} {r['exact_match'][1]:>12.3f} {started:>18} {r['loss'][1]:>7.3f}")
    return "\n".join(lines)


def tune_and_score(args) -> dict:
    """One run, alone in its folder. Returns what its scores.json holds."""
    if args.eval_only:
        return work(args, None)
    try:
        with RunFolder(args.out, args.resume, args.overwrite) as run:
            result = work(args, run)
            run_on_rank0(lambda: write_json(args.out / "scores.json", result))
            run.finish()  # only now that the result is safe
            return result
    except KeyboardInterrupt as e:
        e = e if isinstance(e, Stopped) else Stopped(signal.SIGINT, "interrupted")
        raise Stopped(e.number, f"{e}; go on with: {resume_command(args)}", e.agreed) from None
    except RuntimeError as e:
        if not lost_peer(e):
            raise
        raise Error(f"another process of this run ended or fell silent; go on with: {resume_command(args)}") from None


def resume_command(args) -> str:
    """The command again, with --resume; a hard prompt, which has no states, is chosen anew."""
    words = [word for word in shlex.split(args.command) if word not in ("--overwrite", "--resume")]
    return shlex.join([*words, "--resume" if args.climb or args.method != "hard-prompt" else "--overwrite"])


def work(args, run: RunFolder | None) -> dict:
    """Attach the method, train, save, evaluate before and after; without a run only evaluate."""
    torch.manual_seed(args.seed)
    base, tokenizer = open_base(args)
    model, data, wordings = attach(args, base, tokenizer)
    own_noise(args.seed)
    if is_sharded(args) and args.compile:
        raise Error("--compile does not go with a sharded base: its weights come and go between the compiled parts")
    reported = data.held_out if args.data is None else thinned(data.held_out, REPORTED)
    held_out, shown = batches(reported, tokenizer, args.template), [e for e, _ in references(data.held_out)[:3] if e.input is not None]
    if args.answers and not shown:
        raise Error("--answers answers inputs, and texts have none")
    with torch.no_grad():  # virtual and real tokens fit the block size, or this says why not
        model.base.hidden(held_out[-1][0][:1].to(base.wte.weight.device), **model.slots())
    head = [
        f"base {args.base} || method {model.method.name} || {describe(args, base, data)} || device {args.device}",
        model.trainable_summary(),
    ]
    print("\n".join(head), flush=True)

    def samples(of) -> list[str]:
        return answer(of, shown, tokenizer, args.template, longest(shown, tokenizer)) if shown else []

    training = prepare(args, tokenizer, model, data) if run and any(True for _ in model.trainable_parameters()) else None
    before, base_answers = evaluate(base, held_out), samples(base)
    start_loss = evaluate(model, held_out)[0] if args.init_from else None
    seconds = tune(args, tokenizer, model, data, run, training) if training else None
    if run:
        save(args, tokenizer, model, training)
    after, tuned_answers = evaluate(model, held_out), samples(model)
    result = {
        "command": args.command,
        "card": card(args.device),
        "processes": world_size(),
        "head": head,
        "seconds": seconds,
        "trained": sum(p.numel() for p in model.trainable_parameters()),
        "examples": len(reported),
        "exact_match": [before[1], after[1]],
        "loss": [before[0], after[0]],
        "start_loss": start_loss,
        "wordings": wordings,
        "samples": [
            {"input": shown_as(e.input), "wanted": shown_as(e.target), "base": shown_as(untuned), "tuned": shown_as(tuned)}
            for e, untuned, tuned in zip(shown, base_answers, tuned_answers, strict=True)
        ],
        "answers": write_answers(args, model, data, tokenizer) if args.answers else None,
        "skills": skill_scores(model, tokenizer) if args.task == "skills" and args.data is None else {},
        "out": str(args.out),
        "kb": [size_kb(args.out), sum(p.numel() * p.element_size() for p in base.parameters()) / 1000],
        "peak_bytes": resident_peak(),
    }
    if args.data is not None:
        chosen_by = data.development(DEVELOPMENT)
        result["dev_loss"] = after[0] if chosen_by == reported else evaluate(model, batches(chosen_by, tokenizer, args.template))[0]
    return result


def write_answers(args, model, data, tokenizer) -> dict:
    """Answer held-out inputs in full: OUT/answers.jsonl beside its scores, against all references that each input has."""
    asked = references(data.held_out)[: args.answers]
    examples, known = [e for e, _ in asked], [targets for _, targets in asked]
    enough = max(longest([e._replace(target=t) for t in targets], tokenizer) for e, targets in asked)
    given = answer(model, examples, tokenizer, args.template, enough)
    rows = [
        {"input": e.input, **({"turns": e.turns} if e.turns else {}), "answer": a, "references": r}
        for e, a, r in zip(examples, given, known, strict=True)
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    run_on_rank0(lambda: write_text(args.out / "answers.jsonl", text))
    return {"inputs": len(rows), **text_scores(given, known)}


def report(r: dict) -> str:
    """What a run reached, as it is printed, from what its scores.json holds."""
    (before, after), (loss, lower), (adapter, base) = r["exact_match"], r["loss"], r["kb"]
    lines = []
    if r["wordings"]:
        lines.append(f"wordings, best first, on {DEVELOPMENT} other examples: exact match, loss")
        lines += ["  {exact_match:.3f} {loss:6.3f}  {wording!r}".format(**w) for w in r["wordings"]]
    lines.append(f"held-out exact match {before:.3f} -> {after:.3f}, loss {loss:.3f} -> {lower:.3f} ({r['examples']} examples)")
    if "dev_loss" in r:
        lines.append(f"perplexity {perplexity(loss):.2f} -> {perplexity(lower):.2f}; loss on what is chosen by: {r['dev_loss']:.3f}")
    if r.get("answers"):
        lines.append("{inputs} inputs answered: BLEU {bleu:.2f}, chrF {chrf:.2f}, exact match {exact_match:.3f}".format(**r["answers"]))
    for s in r["samples"]:
        lines += [f"  {s['input']}", f"    wanted {s['wanted']}", f"    base   {s['base']}", f"    tuned  {s['tuned']}"]
    if r["skills"]:
        lines.append("skill         told  not told")
        lines += [f"{name:<12} {score['told']:.3f}     {score['not told']:.3f}" for name, score in r["skills"].items()]
    lines.append(f"{r['out']}: {adapter:,.1f} KB, beside the base's {base:,.1f} KB")
    return "\n".join(lines)


class Training(NamedTuple):
    """What is settled before a base is sharded."""

    batch: Callable[[int], tuple[Tensor, Tensor]]
    settings: dict  # what must be the same for a run to be resumed
    loss_of: Callable[[Tensor, Tensor], Tensor]


def prepare(args, tokenizer, model, data) -> Training:
    """Refuse what cannot be trained here, and let several processes train together."""
    most = longest_example(args, model.base) - model.method.num_virtual_tokens
    bucket = 32 if args.compile else 1
    chosen = settings(args, model, data)
    check_same(chosen)
    model.gradient_checkpointing(args.gradient_checkpointing)
    if not is_sharded(args):
        check_memory(args, model, encode([data.longest], tokenizer, args.template))

    def batch(step: int) -> tuple[Tensor, Tensor]:
        return encode(data.batch(step), tokenizer, args.template, bucket, most)

    return Training(batch, chosen, parallel(model, args.device, args.shard_base))


def tune(args, tokenizer, model, data, run: RunFolder, training: Training) -> float:
    """Train; returns the seconds it took."""
    resume = run.newest() if args.resume else None
    if args.resume:
        print(f"resuming from {resume}" if resume else f"nothing to resume in {args.out} yet: from the beginning", flush=True)
    if world_size() > 1:
        print(traffic_line(args, model, training), flush=True)
    start = time.perf_counter()
    model.compile_blocks(args.compile)
    train(
        model,
        training.batch,
        steps(args, data),
        args.lr,
        run=run,
        settings=training.settings,
        resume=resume,
        dtype=getattr(torch, args.dtype),
        score=score_by(args, tokenizer, model, data) if args.keep_best else None,
        loss_of=training.loss_of,
    )
    model.compile_blocks(False)  # answers grow token by token: every length would be compiled
    model.gradient_checkpointing(False)
    return round(time.perf_counter() - start, 1)


def traffic_line(args, model, training: Training) -> str:
    """What a step sends, counted in one and by the closed form."""
    base, trained = model.base, sum(p.numel() for p in model.trainable_parameters())
    item = base.wte.weight.element_size()
    full = "full" in args.methods
    known = bytes_per_step(base.config, trained, world_size(), full, args.shard_base, item)
    counted = counted_step(model, training.loss_of, *training.batch(0))
    everything = bytes_per_step(base.config, base_parameters(base.config), world_size())
    return (
        f"{world_size()} processes, each hands {sum(counted):,} bytes a step to collectives (closed form {sum(known):,}), "
        f"and sends {known.sent(world_size()):,.0f}; full fine-tuning's gradients are {sum(everything):,} bytes"
    )


def save(args, tokenizer, model, training: Training | None) -> None:
    """The leader writes the adapter, or the base that was tuned, for all."""
    if "full" not in args.methods:
        run_on_rank0(lambda: model.save(args.out, training and training.settings["base"]))
        return
    tuned = full_base(model.base)
    run_on_rank0(lambda: tuned.save_pretrained(args.out))
    run_on_rank0(lambda: tokenizer.save(args.out))  # what was saved is a base of its own


RUN = ("method", *HYPERPARAMETERS, "task", "data", "dev", "test", "columns", "limit", "batch_size", "seed", "dtype", "base_dtype", "lr",
    "keep_best")  # fmt: skip


def settings(args, model, data) -> dict:
    """What must be the same for a run to be resumed, and in all processes."""
    chosen = {name: str(v) if isinstance(v := getattr(args, name), Path) else v for name in RUN}
    chosen |= {"num_virtual_tokens": model.method.num_virtual_tokens, "base": fingerprint(model.base), "template": args.template.text}
    examples = f"{len(data.examples)} to train on, {len(data.held_out)} held out, SHA-256 {data.digest[:12]}" if args.data else None
    return chosen | {"examples": examples, "steps": steps(args, data)}


def score_by(args, tokenizer, model, data) -> Callable[[], float]:
    """The loss on what is chosen by."""
    development = batches(data.development(DEVELOPMENT), tokenizer, args.template)

    def score() -> float:
        model.compile_blocks(False)
        loss, _ = evaluate(model, development)
        model.compile_blocks(args.compile)
        return loss

    return score


def check_memory(args, model, longest: tuple[Tensor, Tensor]) -> None:
    """Raise Error when training needs more memory than there is: before the system, which asks nobody, ends the process.

    Measured on one row: what autograd keeps of the longest example. Known: a gradient and AdamW's two moments of all that is trained.
    """
    dtype, on = getattr(torch, args.dtype), args.device
    with torch.autocast(on.type, dtype, enabled=dtype != torch.float32):
        row = saved_bytes(lambda: model.loss(*(t.to(on) for t in longest)), model.parameters())
    trained = sum(p.numel() * p.element_size() for p in model.trainable_parameters())
    rows = -(-args.batch_size // world_size())
    need, there = rows * row + (4 if args.keep_best else 3) * trained, available(on)
    if there is not None and need > there:
        raise Error(f"training needs {gigabytes(need)} more memory, and {gigabytes(there)} are left: {gigabytes(row)} for each of "
            f"{rows} examples, {gigabytes(need - rows * row)} for gradients and moments; lower {LOWER}")  # fmt: skip


LOWER = "--batch-size or --max-length, or try --gradient-checkpointing, --dtype bfloat16 or --base-dtype bfloat16"

if __name__ == "__main__":
    sys.exit(run("train.py", main, LOWER))
