"""The ledger: closed forms, in whole numbers, of what a method costs on a base of any shape."""

from .activations import Kept, activations
from .memory import TrainBytes, train_bytes
from .parameters import Count, base_parameters, count, depends_on, lora_targets, top_layers
from .products import Flops, Product, flops, products, step_flops
from .wire import Traffic, bytes_per_step, wire_bytes

__all__ = [
    "Count",
    "Flops",
    "Kept",
    "Product",
    "Traffic",
    "TrainBytes",
    "activations",
    "base_parameters",
    "bytes_per_step",
    "count",
    "depends_on",
    "flops",
    "lora_targets",
    "products",
    "step_flops",
    "top_layers",
    "train_bytes",
    "wire_bytes",
]
