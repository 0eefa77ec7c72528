"""The ledger: closed forms, in whole numbers, of what a method costs on a base of any shape.

    count, base_parameters    numbers trained and stored, and the base's         parameters.py
    flops, step_flops         operations of a step, as executed and at least     products.py
    train_bytes               weights, gradients, optimizer, activations         memory.py
    activations               the last of these, tensor by tensor                activations.py
    wire_bytes                what several processes send in a step              wire.py
    adapter_bytes             files of one task; storage_bytes: of many          storage.py
    inference                 caches, and operations of a token                  decoding.py
    ledger                    all of them in one row                             table.py

They differ so much because each counts something else: parameters are what a task must remember; memory is what a step holds of them
and of the text; operations are what the frozen weights do for every token, whoever is trained.
"""

from ..files.huggingface import base_tensors
from ..methods.llama_adapter import top_layers
from ..methods.lora import lora_targets
from .activations import Kept, activations
from .communication import Traffic, bytes_per_step, wire_bytes
from .decoding import Inference, inference
from .matmuls import Flops, Product, flops, products, step_flops
from .parameters import Count, base_parameters, count, depends_on
from .step_memory import TrainBytes, train_bytes
from .storage import adapter_bytes, storage_bytes
from .table import ledger

__all__ = [
    "Count",
    "Flops",
    "Inference",
    "Kept",
    "Product",
    "Traffic",
    "TrainBytes",
    "activations",
    "adapter_bytes",
    "base_parameters",
    "base_tensors",
    "bytes_per_step",
    "count",
    "depends_on",
    "flops",
    "inference",
    "ledger",
    "lora_targets",
    "products",
    "step_flops",
    "storage_bytes",
    "top_layers",
    "train_bytes",
    "wire_bytes",
]
