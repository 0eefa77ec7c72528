"""The quantities of the ledger as formulas, part by part, for the explorer (forms.py)."""

from typing import NamedTuple

from minipeft.accounting.activations import saved_terms
from minipeft.accounting.communication import padded_terms, traffic_terms
from minipeft.accounting.decoding import decoding_terms
from minipeft.accounting.matmuls import Flops, pass_terms, step_matmuls
from minipeft.accounting.parameters import Declared, tensor_terms
from minipeft.accounting.step_memory import TrainBytes, state_terms, trained_tensors
from minipeft.accounting.storage import folder_terms, storage_terms
from minipeft.config import GPTConfig
from minipeft.files.huggingface import block_tensors, outer_tensors
from minipeft.formulas.symbols import symbol
from minipeft.formulas.terms import Size, Term
from minipeft.methods import METHODS, WHOLE

QUANTITIES = {  # that formulas are made of
    "base": "parameters of the base", "trained": "parameters trained", "stored": "elements stored for a task",
    "tensors": "tensors trained", "block": "elements of a block, padded", "rest": "elements outside the blocks, padded",
    "weights": "bytes of weights", "gradients": "bytes of gradients", "optimizer": "bytes of AdamW's state",
    "activations": "bytes saved for backward", "forward": "FLOPs of a forward pass",
    "backward": "FLOPs of a backward pass", "step": "FLOPs of a step", "full": "FLOPs of a step of full fine-tuning",
    "header": "bytes of the header's text", "config": "bytes of the config file", "adapter": "bytes of one adapter",
    "folder": "bytes of the base's folder",
}
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
    return {"trained": trained, "stored": stored, "tensors": trained_tensors(c, d),
            "share": [percent]}


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
