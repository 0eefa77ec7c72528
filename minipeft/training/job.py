"""One run of train.py: attach the method, evaluate, train, save, evaluate again."""

import contextlib
import hashlib
import json
from functools import cached_property
from pathlib import Path

import torch

from ..adapters import fingerprint, load_adapter
from ..attach import adapt
from ..checks import Error
from ..data.batches import FileData, TaskData, grouped, thinned
from ..data.encoding import Batch, Encoded, collate, without_soft
from ..data.tasks import INSTRUCTIONS, TASK_KINDS
from ..documents import prefill
from ..files.atomic import write_json, write_text
from ..methods.hard_prompt import HardPrompt
from ..runtime import processes
from ..runtime.console import note, printable
from ..runtime.memory import resident_peak
from ..runtime.profiling import card
from .checkpoints import setting_of
from .compile_choice import CompileChoice
from .evaluation import batches, complete, evaluate
from .flags import ALL_FLAGS, flags_of, trains_anything, trains_base
from .loop import train
from .memory_check import check_memory
from .opening import hyperparameters, open_base, open_data, read_document, token_ids
from .prompt_search import choose_wording, search
from .resumable import SETTINGS, notes_of, resumable_folder, run_flags, sources_of
from .run_folder import EVAL_ONLY_ANSWERS, SEARCH, RunFolder, template_of_run
from .scores import size_kb, skill_scores, text_scores
from .sharding import full_base, parallel
from .traffic import traffic_line

VALIDATION = 200  # examples of the validation set, at most
REPORTED = 200  # held-out examples of a file whose loss is reported, at most


def run_job(args, held: RunFolder | None = None) -> dict:
    """A run, alone in its folder (held by the caller, who finishes it). Returns scores.json."""
    if args.eval_only:
        return Job(args).run()
    with contextlib.nullcontext(held) if held else resumable_folder(args) as folder:
        result = Job(args, folder).run()
        processes.run_on_rank0(lambda: write_json(args.out / "scores.json", result))
        if held is None:
            folder.finish(*notes_of(args))  # only now that the result is written
        return result


class Job:
    """One run. args: the flags of train.py, checked; without a folder it only evaluates."""

    def __init__(self, args, folder: RunFolder | None = None):
        torch.manual_seed(args.seed)
        self.args, self.folder, self.is_full = args, folder, trains_base(args.methods)
        trains = not args.eval_only and trains_anything(args.methods)
        self.is_sharded = processes.world_size() > 1 and trains and (self.is_full or args.shard_base)
        if args.shard_base and processes.world_size() == 1:
            raise Error("--shard-base goes with several processes: torchrun --nproc-per-node N train.py …")
        if self.is_sharded and args.compile:
            raise Error("--compile does not go with a sharded base, whose weights are gathered block by block")
        self.base, self.tokenizer = open_base(args, on_device=not self.is_sharded)
        self.max_length = min(args.max_length, self.base.config.block_size)  # with virtual tokens
        self.data: FileData | TaskData | None = None
        self.wordings: list[dict] = []  # scores of the candidates for a hard prompt
        if args.eval_only:
            self.model = load_adapter(self.base, args.out)
        else:
            self.model = adapt(self.base, args.methods, **self._tokens(),
                               **hyperparameters(args, self.base, self.tokenizer))
        method = self.model.method
        if method.tokens_in_text and not args.template.has_soft:
            raise Error(f"the adapter in {args.out} has its virtual tokens in the text: give its --template")
        if not method.tokens_in_text and args.template.has_soft:
            raise Error(f"{{soft}} in --template, but {args.out} has no virtual tokens in the text")
        then = template_of_run(args.out) if args.eval_only and args.data is not None else None
        if then not in (None, args.template.text):
            note(f"--template is not that of the run in {args.out}, {then!r}")
        if args.teacher_context is not None:
            context = read_document(args.teacher_context, self.tokenizer)
            self.teacher_digest = hashlib.sha256(context.numpy().tobytes()).hexdigest()
            context = context.to(self.base.wte.weight.device)
            self.model.distil_from(prefill(self.base, context), args.teacher_top_k)
        self._fit_data(max(method.positions_taken, 0 if self.model.teacher is None else self.model.teacher.most_taken),
                       method.tokens_in_text)
        processes.seed_this_rank(args.seed)

    def _tokens(self) -> dict:
        """{argument: the tokens of the best hard prompt} where a method takes some, else {}."""
        args, base = self.args, self.base
        if "search" not in flags_of(args.methods):
            return {}
        if args.wordings is None and args.data is not None and not args.search:
            raise Error(f"{args.method} on your own data needs --wordings, or --search P")
        texts = args.wordings or (INSTRUCTIONS if args.data is None else [])
        candidates = [token_ids(self.tokenizer, text) for text in texts]
        if (args.search or 0) > base.config.block_size:
            raise Error(f"--search {args.search} is more tokens than the base's block size of {base.config.block_size}")
        start = torch.randint(base.config.vocab_size, (args.search or 0,))
        longest = max([*candidates, start], key=len)
        adapt(base, HardPrompt.name, tokens=longest).detach()  # raises Error if it is too long
        self._fit_data(len(longest))
        if args.search:
            settings = self._settings(len(start)) | {"processes": processes.world_size()}
            candidates.append(search(base, start, self._batch, self.steps, self.folder, settings,
                                     self._newest(SEARCH)))
        validation = self._validation_batches()
        self.wordings, tokens = choose_wording(base, candidates, validation, self.tokenizer)
        return {ALL_FLAGS["search"].argument: tokens}

    def _fit_data(self, num_virtual_tokens: int, num_soft: int = 0) -> None:
        """Open the data, or fit it to another number of virtual tokens before or in the text."""
        if self.data is None:
            self.data = open_data(self.args, self.tokenizer, self.max_length, num_virtual_tokens,
                                  num_soft)
        elif isinstance(self.data, FileData):
            self.data.fit(num_virtual_tokens)

    @cached_property
    def base_fingerprint(self) -> str:
        """Fingerprint of the base, taken before it is trained."""
        return fingerprint(self.base)

    @property
    def steps(self) -> int:
        args = self.args
        epochs = 300 if args.data is None else (args.epochs or 3) * self.data.steps_per_epoch
        return epochs if args.steps is None else args.steps

    def _batch(self, step: int) -> Batch:
        return collate(self.data.batch(step), self.tokenizer.end)

    def _validation_batches(self) -> list[Batch]:
        return batches(self.data.validation(VALIDATION), self.tokenizer)

    def _newest(self, stage: str = "") -> Path | None:
        """The checkpoint to go on from, if --resume asks for one and there is one."""
        if not self.args.resume:
            return None
        path = self.folder.newest(stage)
        nothing = f"nothing to resume in {self.args.out} yet: from the beginning"
        print(f"resuming from {path}" if path else nothing, flush=True)
        return path

    def _settings(self, num_virtual_tokens: int) -> dict:
        """Values that a resumed run must share."""
        args, data = self.args, self.data
        settings = {name: getattr(args, name) for name in SETTINGS}
        examples = f"{data.sizes}, SHA-256 {data.digest[:12]}" if args.data else None
        if args.teacher_context is not None:
            settings["teacher_context"] += f", SHA-256 {self.teacher_digest[:12]}"
        return settings | {"num_virtual_tokens": num_virtual_tokens, "base": self.base_fingerprint,
                           "template": args.template.text, "examples": examples, "steps": self.steps}

    def run(self) -> dict:
        """Evaluate, train, save and evaluate again."""
        args, base, model, data, folder = self.args, self.base, self.model, self.data, self.folder
        reported = data.held_out if args.data is None else thinned(data.held_out, REPORTED)
        held_out = batches(reported, self.tokenizer)
        prompts = list(grouped(data.held_out).values())  # of each, all completions
        shown = [records[:1] for records in prompts[:3] if records[0].example.input is not None]
        if args.answers and not shown:
            raise Error("--answers answers inputs, and texts have none")
        with torch.no_grad():  # raises Error unless all tokens fit the block size
            base.hidden(held_out[-1][0][:1].to(base.wte.weight.device), *model.slots())
        head = [f"base {args.base} || method {model.method.name} || {self._describe_data()} || "
                f"device {args.device}", model.trainable_summary()]
        print("\n".join(head), flush=True)
        trains = folder is not None and any(True for _ in model.trainable_parameters())
        if trains:
            self._prepare()
        bare = [without_soft(r, self.tokenizer) for r in reported]  # the base has none in its text
        bare_shown = [[without_soft(r, self.tokenizer) for r in records] for records in shown]
        before, base_answers = evaluate(base, batches(bare, self.tokenizer)), self._answers(base, bare_shown)
        start_loss = evaluate(model, held_out)[0] if args.init_from else None
        seconds = self._train() if trains else None
        if folder:
            self._save()
        after, tuned_answers = evaluate(model, held_out), self._answers(model, shown)
        samples = [{"input": printable(r.example.input), "wanted": printable(r.example.target),
                    "base": printable(untuned), "tuned": printable(tuned)}
                   for [r], untuned, tuned in zip(shown, base_answers, tuned_answers, strict=True)]
        makes_base = args.task == "skills" and args.data is None
        result = {
            "command": args.command,
            "flags": run_flags(args),
            "sources": sources_of(args, self.base_fingerprint) if folder else {},
            "card": card(args.device),
            "processes": processes.world_size(),
            "head": head,
            "seconds": seconds,
            "trained": sum(p.numel() for p in model.trainable_parameters()),
            "examples": len(reported),
            "exact_match": [before[1], after[1]],
            "loss": [before[0], after[0]],
            "start_loss": start_loss,
            "wordings": self.wordings,
            "samples": samples,
            "answers": self._write_answers(prompts[: args.answers]) if args.answers else None,
            "skills": skill_scores(model, self.tokenizer) if makes_base else {},
            "out": str(args.out),
            "kb": [size_kb(args.out),
                   sum(p.numel() * p.element_size() for p in base.parameters()) / 1000],
            "peak_bytes": resident_peak(),
        }
        if args.data is not None:
            same = data.validation(VALIDATION) == reported
            result["dev_loss"], _ = after if same else evaluate(model, self._validation_batches())
            result["dev_set"] = "training examples" if data.validates_on_training else "the validation set"
        return result

    def _describe_data(self) -> str:
        args, data = self.args, self.data
        if args.data is None:
            return f"task {args.task} ({data.task.kind}: {TASK_KINDS[data.task.kind]})"
        text = f"data {args.data} ({data.sizes})"
        if data.cut:
            text += f", {data.cut} cut from the left (texts: divided) to {self.max_length} tokens"
        return text

    def _prepare(self) -> None:
        """Refuse what cannot be trained here, and let several processes train together."""
        args, data, model = self.args, self.data, self.model
        self.settings = self._settings(model.method.num_virtual_tokens)
        processes.check_same_settings(self.settings)
        model.gradient_checkpointing(args.gradient_checkpointing)
        if not self.is_sharded:
            most = args.batch_size if args.data is None else min(args.batch_size, len(data.examples))
            check_memory(args, model, data.longest, self.tokenizer.end, most)
        self.loss_of = parallel(model, args.device, args.shard_base)

    def _train(self) -> float:
        """Train; returns the seconds it took, those before a stop included."""
        args, model = self.args, self.model
        resume = self._newest()
        if processes.world_size() > 1:
            print(traffic_line(model, self.loss_of, self._batch(0), self.is_full, args.shard_base),
                  flush=True)
        validation = self._validation_batches() if args.keep_best else []
        if args.keep_best and isinstance(self.data, FileData) and self.data.validates_on_training:
            note("--keep-best goes by the loss on training examples: without --dev and --test there are no others")

        choice = self._compile_choice(resume)

        def score() -> float:
            choice.switch(False)
            loss, _ = evaluate(model, validation)
            choice.switch()
            return loss

        def timed(seconds: float, done: int) -> None:
            if choice.decide(seconds, done):
                self.settings["compile"] = choice.made

        choice.switch()
        seconds = train(model, self._batch, self.steps, args.lr, run=self.folder, settings=self.settings,
                        resume=resume, dtype=getattr(torch, args.dtype), loss_of=self.loss_of,
                        score=score if args.keep_best else None, timed=timed)
        choice.switch(False)
        model.gradient_checkpointing(False)
        return round(seconds, 1)

    def _compile_choice(self, resume: Path | None) -> CompileChoice:
        """The choice for this run, and for its checkpoints."""
        args, weight = self.args, self.base.wte.weight
        recorded = setting_of(resume, "compile") if resume else None
        if self.is_sharded:  # eagerly: weights are gathered block by block
            self.settings["compile"] = recorded or "no"
            return CompileChoice(self.model, False, None, weight.dtype, False)
        older = resume and not recorded  # a checkpoint of an older version has no such setting
        alone = args.device.type == "cpu" and processes.world_size() == 1
        dtype = weight.dtype if args.dtype == "float32" else getattr(torch, args.dtype)
        choice = CompileChoice(self.model, args.compile, "no" if older else recorded, dtype, alone)
        if not older:
            self.settings["compile"] = choice.made
        return choice

    def _save(self) -> None:
        """Write the adapter, or the tuned base with its tokenizer, on the main process."""
        out = self.args.out
        if self.is_full:
            tuned = full_base(self.model.base)
            processes.run_on_rank0(lambda: tuned.save_pretrained(out))
            processes.run_on_rank0(lambda: self.tokenizer.save(out))
        else:
            processes.run_on_rank0(lambda: self.model.save(out, self.base_fingerprint))

    def _answers(self, model, prompts: list[list[Encoded]]) -> list[str]:
        """Greedy completions of the prompts, long enough for the longest of their targets."""
        longest = max((r.new_tokens for records in prompts for r in records), default=0) + 8
        return complete(model, [records[0].prompt for records in prompts], self.tokenizer, longest)

    def _write_answers(self, prompts: list[list[Encoded]]) -> dict:
        """Complete the prompts into a file of OUT; returns scores against all references.

        The file is answers.jsonl, another with --eval-only: scores.json describes the run's own."""
        answers = self._answers(self.model, prompts)
        references = [[r.example.target for r in records] for records in prompts]
        text = ""
        for records, answer, known in zip(prompts, answers, references, strict=True):
            e = records[0].example
            turns = {"turns": e.turns} if e.turns else {}
            row = {"input": e.input, **turns, "answer": answer, "references": known}
            text += json.dumps(row, ensure_ascii=False) + "\n"
        path = self.args.out / (EVAL_ONLY_ANSWERS if self.args.eval_only else "answers.jsonl")
        processes.run_on_rank0(lambda: write_text(path, text))
        if self.args.eval_only:
            print(f"answers in {path}", flush=True)
        return {"inputs": len(prompts), **text_scores(answers, references)}
