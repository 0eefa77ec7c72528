"""The ledger: closed forms, in whole numbers, of what a method costs on a base of any shape."""

from .activations import Kept, activations
from .decoding import Inference, inference
from .memory import TrainBytes, train_bytes
from .parameters import Count, base_parameters, count, depends_on, lora_targets, top_layers
from .products import Flops, Product, flops, products, step_flops
from .storage import adapter_bytes, storage_bytes
from .table import ledger
from .wire import Traffic, bytes_per_step, wire_bytes

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
