"""The ledger: closed forms, in integers, of a method's costs on a base of any shape.

    count, base_parameters    parameters: trained, stored, and the base's        parameters.py
    flops, step_flops         matmuls of a training step: executed, and needed   matmuls.py
    base_weight_bytes         the base's weights in a dtype, or quantised        base_weights.py
    train_bytes               weights, gradients, optimizer, activations         step_memory.py
    activations               every tensor saved for backward                    activations.py
    wire_bytes                communication of a step over several processes     communication.py
    adapter_bytes             files of one task; storage_bytes: of many tasks    storage.py
    inference                 caches, and matmuls of one token                   decoding.py
    ledger                    all of these in one row                            table.py

The costs scale differently. Parameters are stored per task; memory holds the base and the batch as
well; FLOPs are spent by the frozen weights on every token, however few parameters are trained.

All raise Error as `count` does, and for a batch, a length, tasks or processes below 1.

Symbols: B batch, T real tokens, P virtual tokens, S positions in the blocks, L layers, C channels,
nh heads, n_kv key heads, hs head size, V vocabulary, M width of the MLP, r rank, m bottleneck.
"""

from ..files.huggingface import base_tensors
from .activations import activations
from .base_weights import base_weight_bytes
from .communication import Traffic, bytes_per_step, wire_bytes
from .decoding import Inference, inference
from .matmuls import Flops, Product, flops, products, step_flops
from .parameters import Count, base_parameters, count, depends_on
from .step_memory import TrainBytes, train_bytes
from .storage import adapter_bytes, storage_bytes
from .table import ledger

__all__ = ["Count", "Flops", "Inference", "Product", "Traffic", "TrainBytes", "activations",
           "adapter_bytes", "base_parameters", "base_tensors", "base_weight_bytes",
           "bytes_per_step", "count", "depends_on", "flops", "inference", "ledger", "products",
           "step_flops", "storage_bytes", "train_bytes", "wire_bytes"]
