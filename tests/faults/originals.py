"""Good files of every kind, their content, the readers under test, and plainer readers to judge them.

The content is {name: tensor} and facts (a config's fields, or rows of data), recorded before the
file is written.
"""

import csv
import io
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minipeft.adapters import fingerprint, load_adapter
from minipeft.attach import Adapted, adapt
from minipeft.checks import Error
from minipeft.config import GEMMA3, LLAMA, GPTConfig
from minipeft.data.files import read_examples
from minipeft.data.tasks import Example
from minipeft.data.tokenizer import FileTokenizer
from minipeft.files import families
from minipeft.files.tensors import digest
from minipeft.methods import METHODS
from minipeft.model import GPT
from minipeft.parts.quantised import QUANTISED as KINDS_OF_BASE
from minipeft.parts.quantised_base import quantise_base
from minipeft.training.checkpoints import collect, restore
from minipeft.training.run_folder import RunFolder

TINY = dict(vocab_size=40, block_size=32, n_layer=2, n_head=2, n_embd=8)
BASES = {
    "gpt2": GPTConfig(**TINY),
    "llama": GPTConfig(**TINY, **LLAMA, n_kv_head=1, n_inner=12),
    "qwen2": GPTConfig(**TINY, **LLAMA | {"bias": "qkv"}, n_inner=12, tied=False),
    "gemma3": GPTConfig(**TINY, **GEMMA3, n_kv_head=1, head_dim=6, n_inner=12, sliding_window=3,
                        sliding_window_pattern=2, rope_local_base_freq=100.0),
    "minipeft": GPTConfig(**TINY, position="rotary"),
}
ADAPTERS = {
    "prompt": ("minipeft", "prompt", dict(num_virtual_tokens=3)),
    "prefix": ("minipeft", "prefix", dict(num_virtual_tokens=3)),
    "hidden": ("minipeft", "prefix", dict(num_virtual_tokens=3, space="hidden")),
    "lora": ("minipeft", "lora",
             dict(r=2, lora_alpha=5, lora_dropout=0.1, target_modules=["c_attn", "mlp.c_proj"])),
    "lora-llama": ("llama", "lora", dict(r=2)),
    "lora-gemma3": ("gemma3", "lora", dict(r=2)),
    "prefix-gemma3": ("gemma3", "prefix", dict(num_virtual_tokens=3)),
    "adapter": ("minipeft", "adapter", dict(bottleneck_size=3)),
    "pfeiffer": ("gpt2", "adapter", dict(bottleneck_size=3, placement="pfeiffer")),
    "llama-adapter": ("minipeft", "llama-adapter", dict(adapter_len=3)),
    "adaption-prompt": ("llama", "llama-adapter", dict(adapter_len=3, adapter_layers=1, gate="layer")),
    "hard-prompt": ("gpt2", "hard-prompt", dict(tokens=torch.tensor([3, 1, 4, 1, 5]))),
    "lora+prefix": ("minipeft", ["lora", "prefix"], dict(r=2, num_virtual_tokens=3)),
}
HERE = {method for _, method, _ in ADAPTERS.values() if isinstance(method, str)}
ADAPTERS |= {name: ("gpt2", name, method.typical[0]) for name, method in METHODS.items()
             if method.freezes_base and name not in HERE}
PLAIN_FACTS = tuple(dict.fromkeys(field for method in METHODS.values() for field in method.config_fields()
                                  if field != "target_modules"))  # whose names are PEFT's in the file
TEXT = "name[The Eagle] said: 58213764 -> ääb 😀"
ROWS = [("58213764", "46731285"), ("a, b", 'say "c"'), ("ü 😀", "line\nbreak"), ("", "d")]
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "I64": torch.int64, "U8": torch.uint8}
SETTINGS = {"lr": 0.1, "steps": 10}
KINDS = ("adapter", "combination", "base", "shards", "state", "tokenizer", "data")


class Held(NamedTuple):
    tensors: dict[str, Tensor]
    facts: Any


class Original(NamedTuple):
    """A good file, or a folder of several."""

    kind: str  # one of KINDS
    name: str
    base: str  # one of BASES
    folder: Path
    held: list[Held]  # right results: a run goes back to the checkpoint before a damaged one

    @property
    def file(self) -> str:
        """The file of data."""
        return f"data.{self.name.partition('-')[0]}"


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """The module with noise added to every parameter."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p))
    return module


def build(root: Path) -> list[Original]:
    """Write all originals under root."""
    torch.manual_seed(0)
    bases = {name: shaken(GPT(config)).eval() for name, config in BASES.items()}
    made = []

    def add(kind: str, name: str, base: str, *held: Held) -> Path:
        folder = root / kind / name
        made.append(Original(kind, name, base, folder, list(held)))
        folder.mkdir(parents=True)
        return folder

    for name, base in bases.items():
        for safe in (True, False):
            held, form = of_base(base), "safe" if safe else "bin"
            base.save_pretrained(add("base", f"{name}-{form}", name, held), safe_serialization=safe)
            bare = add("base", f"{name}-{form}-bare", name, held)
            base.save_pretrained(bare, safe_serialization=safe)
            without_notes(bare, "config.json")
            if name in ("gpt2", "llama"):
                shards = add("shards", f"{name}-{form}", name, held)
                shutil.copytree(bare, shards, dirs_exist_ok=True)
                in_shards(shards)
    for name, (base, method, hyperparameters) in ADAPTERS.items():
        for form in ("safe", "bin", "safe-bare", "bin-bare"):
            model = adapt(bases[base], method, **hyperparameters)
            shaken(model.method)
            kind = "adapter" if isinstance(method, str) else "combination"
            folder = add(kind, f"{name}-{form}", base, of_adapter(model))
            model.save(folder)
            model.detach()
            for part in [folder] if kind == "adapter" else [folder / n for n in ("lora", "prefix")]:
                if form.startswith("bin"):
                    as_bin(part)
                if form.endswith("bare"):
                    without_notes(part, "adapter_config.json")
    run = RunFolder(add("state", "two", "minipeft"))
    model, optimizer = tuned(bases["minipeft"])
    with run:
        for step in (1, 2):
            shaken(model.method)
            parameters = dict(model.named_trainable_parameters())
            made[-1].held.append(Held({name: p.detach().clone() for name, p in parameters.items()}, step))
            run.save(step, collect(step, SETTINGS, parameters, optimizer, None))
    model.detach()
    write_tokenizer(folder := add("tokenizer", "bpe", "minipeft"))
    made[-1].held.append(library_tokenizer(folder))
    for name, lines in data_files().items():
        held = [Example(*row) for row in ROWS if name != "tsv" or "\n" not in row[1]]
        folder = add("data", name, "minipeft", Held({}, held))
        (folder / made[-1].file).write_text(lines, encoding="utf-8", newline="")
    return made


def data_files() -> dict[str, str]:
    table = io.StringIO(newline="")
    csv.writer(table).writerows([("input", "target"), *ROWS])
    pairs = "".join(json.dumps({"input": a, "target": b}) + "\n" for a, b in ROWS)
    talk = [[{"role": "user", "content": a}, {"role": "assistant", "content": b}]
            for a, b in ROWS]
    return {
        "jsonl": pairs,
        "csv": table.getvalue(),
        "tsv": "".join("\t".join(row) + "\r\n" for row in [("mr", "ref"), *ROWS[:2], *ROWS[3:]]),
        "json-array": json.dumps([{"prompt": a, "completion": b} for a, b in ROWS], indent=1),
        "json-talk": "\n".join(json.dumps({"messages": t}) for t in talk),
    }


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE({c: i for i, c in enumerate([*alphabet, "th", "the"])}, [("t", "h"), ("th", "e")]))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.add_special_tokens(["<end>"])
    bpe.post_processor = processors.TemplateProcessing(
        single="<end> $A", special_tokens=[("<end>", bpe.token_to_id("<end>"))])
    bpe.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"eos_token": {"content": "<end>"}, "chat_template": "{{ messages }}"}')
    (folder / "generation_config.json").write_text('{"eos_token_id": [258, 7], "temperature": 0.5}')


def as_bin(folder: Path) -> None:
    """Convert an adapter folder's safetensors to torch's own format."""
    path = folder / "adapter_model.safetensors"
    tensors, notes = parsed(path), notes_of(path)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"minipeft": notes}))
    torch.save(tensors, path.with_suffix(".bin"))
    path.unlink()


def without_notes(folder: Path, config_name: str) -> None:
    """Remove checksum and fingerprint, which other programs do not save."""
    config = json.loads((folder / config_name).read_text())
    config.pop("minipeft", None)
    (folder / config_name).write_text(json.dumps(config))
    for path in folder.glob("*.safetensors"):
        write_safetensors(path, parsed(path), None)


def in_shards(folder: Path) -> None:
    """Split the file of tensors into two shards with an index."""
    (path,) = [p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin")]
    tensors = tensors_of(path)
    names = [f"{path.stem}-0000{i}-of-00002{path.suffix}" for i in (1, 2)]
    weight_map = {name: names[i % 2] for i, name in enumerate(tensors)}
    for file in names:
        shard = {name: t for name, t in tensors.items() if weight_map[name] == file}
        write_tensors(folder / file, shard, None)
    path.with_name(f"{path.name}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    path.unlink()


def write_tensors(path: Path, tensors: dict[str, Tensor], notes: dict | None) -> None:
    if path.suffix == ".bin":
        torch.save(tensors, path)
    else:
        write_safetensors(path, tensors, notes)


def write_safetensors(path: Path, tensors: dict[str, Tensor], notes: dict | None) -> None:
    from safetensors.torch import save_file

    metadata = {"format": "pt"} | ({} if notes is None else {"minipeft": json.dumps(notes)})
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, metadata)


def tensors_of(path: Path) -> dict[str, Tensor]:
    """The tensors of a trusted file."""
    return torch.load(path, weights_only=True) if path.suffix == ".bin" else parsed(path)


def header_of(path: Path) -> tuple[dict, bytes]:
    """The JSON header of a safetensors file and the bytes behind it. Raises anything if malformed."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:start]), data[start:]


def notes_of(path: Path) -> dict:
    """The notes that minipeft put into a safetensors file. Raises anything if they are malformed."""
    return json.loads((header_of(path)[0].get("__metadata__") or {}).get("minipeft", "{}"))


def parsed(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, read by the format's description alone."""
    header, data = header_of(path)
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        piece = bytearray(data[first:last])
        dtype = DTYPES[entry["dtype"]]
        flat = torch.frombuffer(piece, dtype=dtype) if piece else torch.empty(0, dtype=dtype)
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


def tuned(base: GPT) -> tuple[Adapted, torch.optim.Optimizer]:
    """A model and its optimizer, as in a run that is resumed."""
    model = adapt(base, "prompt", num_virtual_tokens=3)
    optimizer = torch.optim.AdamW(model.trainable_parameters())
    model.loss(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64)).backward()
    optimizer.step()
    return model, optimizer


def of_base(base: GPT) -> Held:
    return Held({name: t.detach().clone() for name, t in base.state_dict().items()}, asdict(base.config.resolved()))


def of_adapter(model: Adapted) -> Held:
    parts = model.method.parts()
    tensors = {f"{part.name}/{name}": t.clone() for part in parts for name, t in part.tensors().items()}
    return Held(tensors, {part.name: part.config(model.base) for part in parts})


def library_tokenizer(folder: Path) -> Held:
    """The tokenizer read by the tokenizers library alone. Raises anything."""
    from tokenizers import Tokenizer

    bpe = Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
    bpe.no_truncation()
    bpe.no_padding()
    return Held({}, [bpe.encode(TEXT, add_special_tokens=False).ids, bpe.decode(list(range(300)))])


def read_base(folder: Path) -> GPT:
    """The base of a folder, which int8 and NF4 must read, or refuse with an Error, as the folder's own dtype does.

    Raises RuntimeError where they differ.
    """
    def quantised(kind: str) -> GPT | None:
        try:
            return GPT.from_pretrained(folder, kind)
        except Error:
            return None

    try:
        base = GPT.from_pretrained(folder)
    except Error:
        if any(quantised(kind) for kind in KINDS_OF_BASE):
            raise RuntimeError("read quantised, and refused otherwise") from None
        raise
    for kind in KINDS_OF_BASE:
        plain, found = GPT.from_pretrained(folder, torch.bfloat16), quantised(kind)
        quantise_base(plain, kind)
        same = found is not None and digest(found.state_dict()) == digest(plain.state_dict())
        if not same or found.quantised != plain.quantised:
            raise RuntimeError(f"in {kind} it is {'refused' if found is None else 'another base'}")
    return base


class Readers:
    """The readers under test, on the bases that the originals belong to."""

    def __init__(self, root: Path):
        self.bases = {name: GPT.from_pretrained(root / "base" / f"{name}-safe") for name in BASES}
        self.here = {name: fingerprint(base) for name, base in self.bases.items()}

    def read(self, original: Original, folder: Path) -> Held:
        """Read the folder and use the result once. Raises Error to refuse it."""
        kind, base = original.kind, original.base
        if kind in ("adapter", "combination"):
            model = load_adapter(self.bases[base], folder, self.here[base])
            try:
                with torch.no_grad():
                    model(torch.zeros(1, 2, dtype=torch.int64))
                return of_adapter(model)
            finally:
                model.detach()
        if kind in ("base", "shards"):
            return of_base(read_base(folder))
        if kind == "tokenizer":
            tokenizer = FileTokenizer(folder, 300)
            tokenizer.encode("a" * 50)
            return Held({}, [tokenizer.encode(TEXT), tokenizer.decode(range(300))])
        if kind == "data":
            return Held({}, read_examples(folder / original.file))
        model, optimizer = tuned(self.bases[base])
        try:
            with RunFolder(folder, resume=True) as run:
                parameters = dict(model.named_trainable_parameters())
                if (state := run.newest()) is None:
                    raise Error(f"nothing to resume in {folder}")
                step, *_ = restore(state, 10, parameters, optimizer, SETTINGS)
            return Held({name: p.detach().clone() for name, p in parameters.items()}, step)
        finally:
            model.detach()


def names_in_file(base: str) -> dict[str, tuple[str, bool]]:
    """{name in a base's file: (model.py's name, True if stored transposed)}."""
    kind = families.architecture(BASES[base])
    with torch.device("meta"):
        names = GPT(BASES[base]).state_dict()
    return {families.stored_name(name, kind): (name, families.is_transposed(name)) for name in names}
