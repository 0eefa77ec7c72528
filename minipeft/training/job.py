"""One run of train.py: open base and data, attach the method, train, save and evaluate."""

import json
import shlex
import signal
import time
from pathlib import Path

import torch
from torch import Tensor

from ..accounting import base_parameters, bytes_per_step
from ..accounting.shapes import EMBEDDED
from ..adapters import fingerprint, load_adapter
from ..attach import Adapted, adapt
from ..config import Error
from ..data import BASES
from ..data.batches import FileData, TaskData, draw, grouped, thinned
from ..data.encoding import Encoded, collate
from ..data.tasks import INSTRUCTIONS, KINDS, SKILLS, find_task, skill_example
from ..data.tokenizer import Tokenizer, tokenizer_for
from ..files.atomic import write_json, write_text
from ..files.huggingface import find_base
from ..methods import METHODS, hyperparameters_of
from ..model import GPT
from ..runtime.console import line_breaks, shown_as
from ..runtime.memory import available, gigabytes, resident_peak
from ..runtime.processes import check_same, lost_peer, own_noise, run_on_rank0, world_size
from ..runtime.profiling import card, saved_bytes
from ..runtime.signals import Stopped
from .evaluation import batches, batches_of, complete, evaluate
from .flags import LADDER, METHOD_FLAGS, PARAMETER
from .loop import train
from .prompt_search import choose_wording, search
from .run_folder import RunFolder
from .scores import text_scores
from .sharding import full_base, parallel
from .traffic import counted_step

VALIDATION = 200  # examples of the validation set, at most
REPORTED = 200  # held-out examples of a file whose loss is reported, at most
LOWER = "--batch-size or --max-length, or try --gradient-checkpointing, --dtype bfloat16 or --base-dtype bfloat16"
SETTINGS = ("method", *METHOD_FLAGS, "task", "data", "dev", "test", "columns", "limit", "batch_size", "seed", "dtype", "base_dtype",
            "lr", "keep_best")  # flags that must be equal for a run to be resumed


def run_job(args) -> dict:
    """One run, alone in its folder. Returns the content of its scores.json."""
    if args.eval_only:
        return Job(args).run(None)
    try:
        with RunFolder(args.out, args.resume, args.overwrite) as folder:
            result = Job(args).run(folder)
            run_on_rank0(lambda: write_json(args.out / "scores.json", result))
            folder.finish()  # only now that the result is written
            return result
    except KeyboardInterrupt as e:
        e = e if isinstance(e, Stopped) else Stopped(signal.SIGINT, "interrupted")
        raise Stopped(e.number, f"{e}; go on with: {resume_command(args)}", e.agreed) from None
    except RuntimeError as e:
        if not lost_peer(e):
            raise
        raise Error(f"another process of this run ended or fell silent; go on with: {resume_command(args)}") from None


def resume_command(args) -> str:
    """The command with --resume; for a hard prompt, which has no checkpoints, with --overwrite."""
    words = [word for word in shlex.split(args.command) if word not in ("--overwrite", "--resume")]
    return shlex.join([*words, "--resume" if args.climb or args.method != "hard-prompt" else "--overwrite"])


def open_base(args, keep_on_cpu: bool = False) -> tuple[GPT, Tokenizer]:
    """The base of --base on the device, and its tokenizer."""
    dtype = getattr(torch, args.base_dtype) if args.base_dtype else None
    if "full" in args.methods:
        dtype = torch.float32  # trained in float32, whatever the file holds
    name, _, size = args.base.partition(":")
    if name == "scratch":
        if size not in ("", *EMBEDDED):
            raise Error(f"--base scratch: takes one of {', '.join(EMBEDDED)}, not {size!r}")
        base, folder = GPT(EMBEDDED[size or "nano"]).to(dtype), None
    else:
        folder = find_base(BASES.get(args.base, args.base))
        base = GPT.from_pretrained(folder, dtype)
    return base if keep_on_cpu else base.to(args.device), tokenizer_for(base.config.vocab_size, folder)


class Job:
    """One run. args: the flags of train.py, checked."""

    def __init__(self, args):
        torch.manual_seed(args.seed)
        self.args, self.trains_base = args, "full" in args.methods
        self.is_sharded = world_size() > 1 and (self.trains_base or args.shard_base)
        if self.is_sharded and args.compile:
            raise Error("--compile does not go with a sharded base: its weights come and go between the compiled parts")
        self.base, self.tokenizer = open_base(args, keep_on_cpu=self.is_sharded)
        self.max_length = min(args.max_length, self.base.config.block_size)  # virtual tokens included
        self.data: FileData | TaskData | None = None
        self.wordings: list[dict] = []  # scores of the candidates for a hard prompt
        self.model = self._attach()
        self._fit_data(self.model.method.num_virtual_tokens)
        own_noise(args.seed)

    def _attach(self) -> Adapted:
        args = self.args
        if args.eval_only:
            return load_adapter(self.base, args.out)
        tokens = {"tokens": self._choose_hard_prompt()} if "hard-prompt" in args.methods else {}
        return adapt(self.base, args.methods, **tokens, **self._hyperparameters())

    def _hyperparameters(self) -> dict:
        """Arguments of adapt() from the flags given; a hard prompt's tokens are chosen elsewhere."""
        args = self.args
        h = {name: value for name in METHOD_FLAGS if name not in PARAMETER and (value := getattr(args, name)) is not None}
        if args.init_from_text is not None:
            h["init"] = self._ids(args.init_from_text)
        if args.init_from is not None:
            lower = load_adapter(self.base, args.init_from)
            if not hasattr(lower.method, "ladder_value"):
                raise Error(f"--init-from {args.init_from} is {lower.method.name}, no level of the ladder: "
                            f"only {', '.join(LADDER)} are")
            h["init"], P = lower.method.ladder_value().detach().clone(), lower.method.num_virtual_tokens
            lower.detach()
            if args.num_virtual_tokens not in (None, P):
                raise Error(f"--init-from {args.init_from} has {P} virtual tokens, "
                            f"so --num-virtual-tokens cannot be {args.num_virtual_tokens}")
        if args.climb:  # its flags may belong to another level
            h = {name: value for name, value in h.items() if name in hyperparameters_of(args.method)}
        return h

    def _ids(self, text: str) -> Tensor:
        """Token ids of a wording; like every text, it begins with the tokenizer's mark."""
        return torch.tensor(self.tokenizer.begin + self.tokenizer.encode(line_breaks(text)), dtype=torch.int64)

    def _choose_hard_prompt(self) -> Tensor:
        """Tokens (P,) of the best wording, or those found by --search."""
        args = self.args
        if args.wordings is None and args.data is not None and not args.search:
            raise Error("hard-prompt on your own data needs --wordings to choose from, or --search P")
        candidates = [self._ids(text) for text in args.wordings or (INSTRUCTIONS if args.data is None else [])]
        random = torch.randint(self.base.config.vocab_size, (args.search or 0,))
        longest = max([*candidates, random], key=len)
        adapt(self.base, "hard-prompt", tokens=longest).detach()  # raises Error if it is too long
        self._fit_data(len(longest))
        if args.search:
            candidates.append(search(self.base, random, lambda step: self._collate(self.data.batch(step)), self.steps))
        self.wordings, tokens = choose_wording(self.base, candidates, self._validation_batches(), self.tokenizer)
        return tokens

    def _fit_data(self, num_virtual_tokens: int) -> None:
        """Open the data, or fit it to another number of virtual tokens."""
        args = self.args
        if isinstance(self.data, FileData):
            self.data.fit(num_virtual_tokens)
        elif args.data is not None:
            self.data = FileData(args.data, self.tokenizer, args.template, args.seed, args.batch_size, self.max_length,
                                 num_virtual_tokens, dev=args.dev, test=args.test, limit=args.limit,
                                 columns=args.columns and tuple(args.columns))
        elif self.data is None:
            self.data = TaskData(find_task(args.task), self.tokenizer, args.seed, args.batch_size)

    @property
    def steps(self) -> int:
        if self.args.steps is not None:
            return self.args.steps
        return 300 if self.args.data is None else (self.args.epochs or 3) * self.data.steps_per_epoch

    def _collate(self, records: list[Encoded], bucket: int = 1, longest: int = 0) -> tuple[Tensor, Tensor]:
        return collate(records, self.tokenizer.end, bucket, longest)

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        longest = self.max_length - self.model.method.num_virtual_tokens
        return self._collate(self.data.batch(step), 32 if self.args.compile else 1, longest)

    def _validation_batches(self) -> list[tuple[Tensor, Tensor]]:
        return batches_of(self.data.validation(VALIDATION), self.tokenizer)

    def _answers(self, model, records: list[Encoded], targets: list[Encoded]) -> list[str]:
        """Greedy completions of the records' prompts, long enough for any of these targets."""
        enough = max((r.new_tokens for r in targets), default=0) + 8
        return complete(model, [r.prompt for r in records], self.tokenizer, enough) if records else []

    def run(self, folder: RunFolder | None) -> dict:
        """Evaluate, train, save and evaluate again; without a folder only evaluate."""
        args, base, model, data = self.args, self.base, self.model, self.data
        reported = data.held_out if args.data is None else thinned(data.held_out, REPORTED)
        held_out = batches_of(reported, self.tokenizer)
        prompts = list(grouped(data.held_out).values())
        shown = [records[0] for records in prompts[:3] if records[0].example.input is not None]
        if args.answers and not shown:
            raise Error("--answers answers inputs, and texts have none")
        with torch.no_grad():  # raises Error unless virtual and real tokens fit the block size
            model.base.hidden(held_out[-1][0][:1].to(base.wte.weight.device), **model.slots())
        head = [f"base {args.base} || method {model.method.name} || {self._describe()} || device {args.device}",
                model.trainable_summary()]
        print("\n".join(head), flush=True)
        trains = folder is not None and any(True for _ in model.trainable_parameters())
        if trains:
            self._prepare()
        before, base_samples = evaluate(base, held_out), self._answers(base, shown, shown)
        start_loss = evaluate(model, held_out)[0] if args.init_from else None
        seconds = self._train(folder) if trains else None
        if folder:
            self._save(self.settings["base"] if trains else None)
        after, tuned_samples = evaluate(model, held_out), self._answers(model, shown, shown)
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
            "wordings": self.wordings,
            "samples": [
                {"input": shown_as(r.example.input), "wanted": shown_as(r.example.target), "base": shown_as(untuned), "tuned": shown_as(tuned)}
                for r, untuned, tuned in zip(shown, base_samples, tuned_samples, strict=True)
            ],
            "answers": self._write_answers(prompts[: args.answers]) if args.answers else None,
            "skills": skill_scores(model, self.tokenizer) if args.task == "skills" and args.data is None else {},
            "out": str(args.out),
            "kb": [size_kb(args.out), sum(p.numel() * p.element_size() for p in base.parameters()) / 1000],
            "peak_bytes": resident_peak(),
        }
        if args.data is not None:
            is_reported = data.validation(VALIDATION) == reported
            result["dev_loss"] = after[0] if is_reported else evaluate(model, self._validation_batches())[0]
        return result

    def _describe(self) -> str:
        args, data = self.args, self.data
        if args.data is None:
            return f"task {args.task} ({data.task.kind}: {KINDS[data.task.kind]})"
        text = f"data {args.data} ({len(data.examples)} to train on, {len(data.held_out)} held out)"
        return text + (f", {data.cut} cut from the left (texts: divided) to {self.max_length} tokens" if data.cut else "")

    def _prepare(self) -> None:
        """Refuse what cannot be trained here, and let several processes train together."""
        args, data, method = self.args, self.data, self.model.method
        self.settings = {name: str(v) if isinstance(v := getattr(args, name), Path) else v for name in SETTINGS}
        examples = f"{len(data.examples)} to train on, {len(data.held_out)} held out, SHA-256 {data.digest[:12]}" if args.data else None
        self.settings |= {"num_virtual_tokens": method.num_virtual_tokens, "base": fingerprint(self.base),
                          "template": args.template.text, "examples": examples, "steps": self.steps}
        check_same(self.settings)
        self.model.gradient_checkpointing(args.gradient_checkpointing)
        if not self.is_sharded:
            self._check_memory()
        self.loss_of = parallel(self.model, args.device, args.shard_base)

    def _check_memory(self) -> None:
        """Raise Error when training needs more memory than is left, before the out-of-memory killer ends the process.

        The longest example's activation memory is measured; a gradient and AdamW's two moments are computed.
        """
        dtype, device = getattr(torch, self.args.dtype), self.args.device
        idx, targets = self._collate([self.data.longest])
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            row = saved_bytes(lambda: self.model.loss(idx.to(device), targets.to(device)), self.model.parameters())
        trained = sum(p.numel() * p.element_size() for p in self.model.trainable_parameters())
        rows = -(-self.args.batch_size // world_size())
        need, left = rows * row + (4 if self.args.keep_best else 3) * trained, available(device)
        if left is not None and need > left:
            raise Error(f"training needs {gigabytes(need)} more memory, and {gigabytes(left)} are left: {gigabytes(row)} for each of "
                        f"{rows} examples, {gigabytes(need - rows * row)} for gradients and moments; lower {LOWER}")

    def _train(self, folder: RunFolder) -> float:
        """Train; returns the seconds it took."""
        args, model = self.args, self.model
        resume = folder.newest() if args.resume else None
        if args.resume:
            print(f"resuming from {resume}" if resume else f"nothing to resume in {args.out} yet: from the beginning", flush=True)
        if world_size() > 1:
            print(self._traffic(), flush=True)
        began = time.perf_counter()
        model.compile_blocks(args.compile)
        train(model, self._batch, self.steps, args.lr, run=folder, settings=self.settings, resume=resume,
              dtype=getattr(torch, args.dtype), score=self._score() if args.keep_best else None, loss_of=self.loss_of)
        model.compile_blocks(False)  # generation would compile every length anew
        model.gradient_checkpointing(False)
        return round(time.perf_counter() - began, 1)

    def _score(self):
        """The loss on the validation set, as a function for train()."""
        validation = self._validation_batches()

        def score() -> float:
            self.model.compile_blocks(False)
            loss, _ = evaluate(self.model, validation)
            self.model.compile_blocks(self.args.compile)
            return loss

        return score

    def _traffic(self) -> str:
        """One line: bytes that a step sends, counted in one step and by the closed form."""
        N, config = world_size(), self.base.config
        trained, item = sum(p.numel() for p in self.model.trainable_parameters()), self.base.wte.weight.element_size()
        closed_form = bytes_per_step(config, trained, N, self.trains_base, self.args.shard_base, item)
        counted = counted_step(self.model, self.loss_of, *self._batch(0))
        everything = bytes_per_step(config, base_parameters(config), N)
        return (f"{N} processes, each hands {sum(counted):,} bytes a step to collectives (closed form {sum(closed_form):,}), "
                f"and sends {closed_form.sent(N):,.0f}; full fine-tuning's gradients are {sum(everything):,} bytes")

    def _save(self, base_fingerprint: str | None) -> None:
        """Write the adapter, or the tuned base with its tokenizer, on the main process."""
        if not self.trains_base:
            run_on_rank0(lambda: self.model.save(self.args.out, base_fingerprint))
            return
        tuned = full_base(self.model.base)
        run_on_rank0(lambda: tuned.save_pretrained(self.args.out))
        run_on_rank0(lambda: self.tokenizer.save(self.args.out))

    def _write_answers(self, prompts: list[list[Encoded]]) -> dict:
        """Complete these prompts into OUT/answers.jsonl; returns their scores against all their references."""
        examples = [records[0].example for records in prompts]
        references = [[r.example.target for r in records] for records in prompts]
        answers = self._answers(self.model, [records[0] for records in prompts], [r for records in prompts for r in records])
        rows = [
            {"input": e.input, **({"turns": e.turns} if e.turns else {}), "answer": a, "references": r}
            for e, a, r in zip(examples, answers, references, strict=True)
        ]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        run_on_rank0(lambda: write_text(self.args.out / "answers.jsonl", text))
        return {"inputs": len(rows), **text_scores(answers, references)}


def skill_scores(model, tokenizer: Tokenizer) -> dict[str, dict[str, float]]:
    """Exact match of a pretrained base on 500 held-out examples of every skill, with and without instruction."""

    def score(name: str, instructed: bool) -> float:
        examples = draw(lambda rng: skill_example(rng, name, instructed), f"held-out {name}", 500)
        return evaluate(model, batches(examples, tokenizer))[1]

    return {name: {"told": score(name, True), "not told": score(name, False)} for name in SKILLS}


def size_kb(folder: Path) -> float:
    """Kilobytes of the adapter or base in this folder."""
    files = [f for place in (folder, *(folder / name for name in METHODS)) if place.is_dir() for f in place.iterdir()]
    saved = ("adapter_", "model", "pytorch_model", "config", "combination")
    return sum(f.stat().st_size for f in files if f.name.startswith(saved)) / 1000
