"""A base's Hugging Face folder: config.json, and model.safetensors or pytorch_model.bin or shards.

families.py says which architectures there are, and what their files call things.
"""

import hashlib
import importlib.util
import math
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..checks import Error, did_you_mean
from ..config import BY_LAYER, GPTConfig, linears
from .atomic import as_path, check_destination, file_exists, lost_from_run, read_json, write_json
from .families import architecture, config_from_json, config_to_json, is_transposed, stored_name, told
from .tensors import Lazily, StoredTensors, check_tensors, config_digest, digest, write_tensors

SHIPPED = Path(__file__).parents[1] / "data"  # holds a folder for each base of the package itself
MAX_LAYERS = 1000  # a module takes memory however small its weights; real models have some hundred


def block_tensors(c: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of a block's tensors: linears (out, in), biases (out,), norms (C,), of heads (hs,)."""
    shapes = {}
    for name in ("ln_1", "ln_2", *(("ln_1_post", "ln_2_post") if c.sandwich_norm else ())):
        shapes |= _norm_tensors(c, name)
    for name in ("attn.q_norm", "attn.k_norm") if c.qk_norm else ():
        shapes |= _norm_tensors(c, name, c.head_size)
    for module, (inputs, outputs) in linears(c).items():
        shapes[f"{module}.weight"] = (outputs, inputs)
        is_qkv = module in ("attn.c_attn", "attn.q_proj", "attn.k_proj", "attn.v_proj")
        if c.bias == "all" or (c.bias == "qkv" and is_qkv):
            shapes[f"{module}.bias"] = (outputs,)
    return shapes


def outer_tensors(c: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors outside the blocks: embeddings (V, C), positions, last norm, head."""
    positions = {"wpe.weight": (c.block_size, c.n_embd)} if c.position == "learned" else {}
    head = {} if c.tied else {"lm_head.weight": (c.vocab_size, c.n_embd)}
    return {"wte.weight": (c.vocab_size, c.n_embd), **positions, **_norm_tensors(c, "ln_f"), **head}


def _norm_tensors(c: GPTConfig, name: str, size: int | None = None) -> dict[str, tuple[int, ...]]:
    tensors = ("weight", "bias") if c.norm == "layer" else ("weight",)
    return {f"{name}.{tensor}": (c.n_embd if size is None else size,) for tensor in tensors}


def base_tensors(c: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of a base, under model.py's names."""
    block = block_tensors(c)
    blocks = {f"h.{i}.{name}": shape for i in range(c.n_layer) for name, shape in block.items()}
    return outer_tensors(c) | blocks


def count_parameters(c: GPTConfig) -> int:
    """Parameters of a base, without listing every layer's tensors."""
    outer, block = outer_tensors(c).values(), block_tensors(c).values()
    return sum(map(math.prod, outer)) + c.n_layer * sum(map(math.prod, block))


def write_base(c: GPTConfig, tensors: dict[str, Tensor], folder,
               safe_serialization: bool | None = None) -> None:
    """Write a base's folder; safe_serialization: as in GPT.save_pretrained."""
    if tensors.keys() != base_tensors(c).keys():
        raise Error("a quantised base is not saved: keep the folder it was read from, which adapters open on too")
    check_destination(folder, "a base")
    folder, kind = Path(folder), architecture(c)
    tensors = {stored_name(name, kind): t.t() if is_transposed(name) else t
               for name, t in tensors.items()}
    config = config_to_json(c)
    as_read = config_from_json(config, folder / "config.json")
    notes = {"sha256": digest(tensors), "config": config_digest(told(as_read.resolved()))}
    safe = write_tensors(folder, "model", tensors, safe_serialization, notes)
    write_json(folder / "config.json", config if safe else config | {"minipeft": notes})


_HUB_NAME = re.compile(r"(\w[\w.-]{0,95}/)?\w[\w.-]{0,95}", re.ASCII)  # with or without an owner
_HUB_FAILURES = {  # classes of huggingface_hub's exceptions, in the order they are looked for
    "GatedRepoError": "its page asks for a login and consent",
    "RepositoryNotFoundError": "the hub has no such model, or keeps it private",
    "LocalEntryNotFoundError": "the hub cannot be reached",
    "ConnectionError": "the hub cannot be reached", "TransportError": "the hub cannot be reached",
}
_GGUF = "GGUF is not read: take the Hugging Face folder that it was made from"


def find_base(folder) -> Path:
    """A folder, else a base that ships with the package ("nano"), else the snapshot of a hub id.

    Raises Error when there is none of that name."""
    if as_path("a base's folder", folder).is_dir():
        return Path(folder)
    shipped = {path.parent.name: path.parent for path in SHIPPED.glob("*/config.json")}
    if str(folder) in shipped:
        return shipped[str(folder)]
    if Path(folder).suffix == ".gguf":
        raise Error(f"no base at {folder}: {_GGUF}")
    meant = did_you_mean(str(folder), shipped)
    if not _HUB_NAME.fullmatch(str(folder)):
        raise Error(f"no base at {folder}: there is no such folder{meant}")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise Error(f"no base at {folder}: there is no such folder "
                    f"(and to fetch a model of that name: pip install huggingface_hub){meant}")
    from huggingface_hub import snapshot_download

    files = ["*.json", "*.jinja", "*.safetensors"]
    try:
        found = Path(snapshot_download(str(folder), allow_patterns=files))
        if not any(found.glob("*.safetensors")):  # an older model
            files += ["pytorch_model*.bin"]
            found = Path(snapshot_download(str(folder), allow_patterns=files))
        return found
    except Exception as e:  # no network, no such model, no permission: a class for each
        classes = {c.__name__ for c in type(e).__mro__}
        said = (text for name, text in _HUB_FAILURES.items() if name in classes)
        lines = [line[:200] for line in str(e).splitlines() if line.strip()] or [type(e).__name__]
        raise Error(f"no base at {folder}: there is no such folder, and fetching a model of that "
                    f"name failed ({next(said, lines[0])}){meant}") from None


def read_base_config(folder: Path) -> tuple[GPTConfig, dict]:
    """The config of a base's folder and its config.json as it stands. Raises Error without one."""
    if not file_exists(path := folder / "config.json"):
        wanted = _GGUF if any(folder.glob("*.gguf")) else "a base is a Hugging Face model folder"
        raise Error(lost_from_run(path) or f"{folder} holds no config.json: {wanted}")
    stored = read_json(path)
    return config_from_json(stored, path), stored


@torch.no_grad()
def read_base(folder: Path, dtype: torch.dtype | None = None, convert: Callable[[str, Tensor], Tensor] | None = None,
              ) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Config and weights of the base in a folder, in `dtype` or the file's own; `convert` replaces
    tensors as they are read, from (name, tensor).

    Raises Error for a folder that is no base, an architecture that model.py does not have, or files
    that are torn or changed.
    """
    path = folder / "config.json"
    config, stored = read_base_config(folder)
    files = StoredTensors(folder, "model", stored)
    files.check_size(count_parameters(config), path)
    if config.n_layer > MAX_LAYERS:
        raise Error(f"{path}: {config.n_layer} layers, but no more than {MAX_LAYERS} are read")
    kind = stored["model_type"]
    weights = _read_weights(files, config, kind, dtype, convert)
    files.check_config(told(config.resolved()), path)  # after more specific errors of the tensors
    return config, weights


def _our_names(c: GPTConfig, kind: str) -> dict[str, str]:
    """{name in a folder of this model_type: ours} of every tensor of a base."""
    ours = {stored_name(name, kind): name for name in base_tensors(c)}
    # GPT-2's released files, and all that a model without its head saved, lack the outer prefix
    return ours | {re.sub("^(transformer|model)[.]", "", theirs): name for theirs, name in ours.items()}


def _turned(name: str, t: Tensor) -> Tensor:
    """The tensor of a folder as torch has it, (out, in)."""
    return t.t().contiguous() if is_transposed(name) and t.dim() == 2 else t


def read_lazily(folder: Path, c: GPTConfig) -> Lazily:
    """{name: tensor} of a base that read_base has read; see StoredTensors.lazily."""
    kind = read_json(folder / "config.json")["model_type"]
    stored, ours = StoredTensors(folder, "model", {}).lazily(), _our_names(c, kind)
    return Lazily({ours[theirs]: lambda theirs=theirs: _turned(ours[theirs], stored[theirs])
                   for theirs in stored if theirs in ours})


def _read_weights(files: StoredTensors, c: GPTConfig, kind: str, dtype: torch.dtype | None,
                  convert: Callable[[str, Tensor], Tensor] | None) -> dict[str, Tensor]:
    """The tensors under our names; kind: model_type. Raises Error: missing, unknown, misshapen."""
    ours, shapes = _our_names(c, kind), base_tensors(c)
    weights, head, unknown = {}, None, []  # head: of a file that has tied weights under both names
    for theirs, t in files:
        if theirs.endswith((".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")):
            continue  # old files also hold causal masks and rotary frequencies
        name = ours.get(theirs)
        t = t.to(dtype) if dtype is not None and t.is_floating_point() else t
        if theirs == "lm_head.weight" and c.tied:
            head = t
        elif name is None:
            unknown.append(theirs)
        elif name in weights:
            raise Error(f"{files.path} holds {name} under two names")
        else:
            t = _turned(name, t)
            weights[name] = t if convert is None else convert(name, t)
    if head is not None:  # safetensors' save_model writes one name of the two
        weights.setdefault("wte.weight", head)
    expected = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    check_tensors(weights | dict.fromkeys(unknown), expected, files.path)
    if head is not None and not torch.equal(head, weights["wte.weight"]):
        raise Error(f"{files.path}: lm_head.weight differs from the embeddings, "
                    "but the config says that the head is tied to them")
    for name in weights:  # some programs leave norms in float32, but a model computes in one type
        weights[name] = weights[name].to(weights["wte.weight"].dtype)
    return weights


def base_fingerprint(c: GPTConfig, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of a base's config and weights, rounded to bfloat16: a float32 base and its copy in
    bfloat16 are the same base."""
    sizes = [c.vocab_size, c.block_size, c.n_layer, c.n_head, c.n_embd, float(c.layer_norm_epsilon)]
    sizes += [float(c.rope_theta)] if c.position == "rotary" else []
    sizes += [c.n_kv] if c.n_kv != c.n_head else []  # weights' names and shapes tell other choices
    sizes += [tuple(map(float, c.rope_scaling))] if c.rope_scaling and c.position == "rotary" else []
    untold = {name: getattr(c.resolved(), name) for name in ("norm", "mlp", "scale_embeddings", *BY_LAYER)}
    sizes += [f"{name} {value}" for name, value in untold.items()
              if value not in (None, False, "layer", "rms", "gelu", "swiglu")]
    text = f"{sizes} {c.position} {digest(tensors, torch.bfloat16)}"
    return hashlib.sha256(text.encode()).hexdigest()
