"""The whole ledger of one method on one shape: as a flat row for tables, and as formulas."""

from typing import NamedTuple

from ..config import GPTConfig
from ..files.huggingface import block_tensors, outer_tensors
from ..formulas.symbols import symbol
from ..formulas.terms import Size, Term
from ..methods import METHODS, WHOLE
from .activations import saved_terms
from .communication import padded_terms, traffic_terms, wire_bytes
from .decoding import decoding_terms, inference
from .matmuls import Flops, flops, pass_terms, step_flops, step_matmuls
from .parameters import Declared, base_parameters, count, tensor_terms
from .step_memory import TrainBytes, state_terms, train_bytes, trained_tensors
from .storage import adapter_bytes, folder_terms, storage_bytes, storage_terms

SHORT = {  # {quantity of `terms`: its symbol in the formulas of others}
    "base_parameters": "base", "trained": "trained", "stored": "stored", "tensors": "tensors", "block": "block",
    "rest": "rest", "adapter_bytes": "adapter", **{f"train_{part}": part for part in TrainBytes._fields},
    **{f"flops_{part}": part for part in (*Flops._fields, "step")}}

OF_WHOLE = {"flops_step": "full", "adapter_bytes": "folder"}  # as SHORT, of full fine-tuning


class Work(NamedTuple):
    """The work that a method is for; sizes may be symbols."""

    B: Size
    T: Size
    tasks: Size = 1
    processes: Size = 1
    checkpointing: bool = False


def terms(part: str, c: GPTConfig, d: Declared, w: Work) -> dict[str, list[Term]]:
    """The quantities of one of PARTS as formulas, under the ledger's names.

    What a quantity takes from another is a symbol in it (SHORT, OF_WHOLE), and so are `header` and
    `config`, the bytes of these files' text.
    """
    return PARTS[part](c, d, w)


def _base(c: GPTConfig, d: Declared, w: Work) -> dict[str, list[Term]]:
    whole = METHODS[WHOLE].shapes(c)
    return {"base_parameters": tensor_terms(c, whole, whole.trained),
            "block": padded_terms(block_tensors(c), w.processes), "rest": padded_terms(outer_tensors(c), w.processes)}


def _counts(c: GPTConfig, d: Declared, w: Work) -> dict[str, list[Term]]:
    trained, stored = (tensor_terms(c, d.shapes, tensors) for tensors in (d.shapes.trained, d.shapes.stored))
    percent = Term("of the base, in %", 100 * symbol("stored") / symbol("base"))
    return {"trained": trained, "stored": stored, "tensors": trained_tensors(c, d), "share": [percent]}


def _state(c: GPTConfig, d: Declared, w: Work) -> dict[str, list[Term]]:
    states = state_terms(c, d, *map(symbol, ("base", "trained", "tensors")))
    return {f"train_{name}": of for name, of in states.items()}


def _memory(c: GPTConfig, d: Declared, w: Work) -> dict[str, list[Term]]:
    return {"train_activations": saved_terms(c, d, w.B, w.T, w.checkpointing),
            "memory": [Term(name, symbol(name)) for name in TrainBytes._fields]}


def _flops(c: GPTConfig, d: Declared, w: Work) -> dict[str, list[Term]]:
    passes = {f"flops_{name}": pass_terms(step_matmuls(c, d, w.B, w.T), name) for name in Flops._fields}
    step = [Term(name, symbol(name)) for name in Flops._fields]
    return passes | {"flops_step": step, "step": [Term("of full fine-tuning's", symbol("step") / symbol("full"))]}


def _inference(c: GPTConfig, d: Declared, w: Work) -> dict[str, list[Term]]:
    return {f"inference_{name}": of for name, of in decoding_terms(c, d, w.B, w.T).items()}


def _wire(c: GPTConfig, d: Declared, w: Work) -> dict[str, list[Term]]:
    known = map(symbol, ("trained", "tensors", "block", "rest"))
    traffic = traffic_terms(c, *known, w.processes, full=not d.method.freezes_base)
    return {"wire": [term for of in traffic.values() for term in of]}


def _storage(c: GPTConfig, d: Declared, w: Work) -> dict[str, list[Term]]:
    stored, header, config, adapter, folder = map(symbol, ("stored", "header", "config", "adapter", "folder"))
    return {"adapter_bytes": folder_terms(d, stored, header, config),
            "storage": storage_terms(d, w.tasks, adapter, folder)}


PARTS = {"base": _base, "counts": _counts, "state": _state, "memory": _memory, "flops": _flops,
         "inference": _inference, "wire": _wire, "storage": _storage}


def ledger(c: GPTConfig, method: str, batch_size: int, seq_len: int, **hyperparameters) -> dict[str, int]:
    """{name: integer}: every closed form under its own name, its parts as name_part.

    train_checkpointed_activations: with gradient checkpointing. wire_N: bytes handed to all collectives
    in a step of N processes. storage_N: bytes of N tasks. step_flops: 0 if nothing is trained.
    """
    of = (c, method, batch_size, seq_len)
    checkpointed = train_bytes(*of, checkpointing=True, **hyperparameters).activations
    parts = {"": count(c, method, **hyperparameters), "train_": train_bytes(*of, **hyperparameters),
             "flops_": flops(*of, **hyperparameters), "inference_": inference(*of, **hyperparameters)}
    return {
        "base_parameters": base_parameters(c),
        **{f"{part}{name}": value for part, values in parts.items() for name, value in values._asdict().items()},
        "train_checkpointed_activations": checkpointed,
        "step_flops": step_flops(*of, **hyperparameters) if parts[""].trained else 0,
        **{f"wire_{n}": sum(wire_bytes(c, method, n, **hyperparameters)) for n in (2, 8)},
        "adapter_bytes": adapter_bytes(c, method, **hyperparameters),
        **{f"storage_{n}": storage_bytes(c, method, n, **hyperparameters) for n in (1, 10, 100, 1000)},
    }
