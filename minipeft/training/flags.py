"""Flags of train.py that belong to single methods: one table, and a help page for each method."""

from ..methods import METHODS, hyperparameters_of
from ..methods.base import WIDE
from ..runtime.console import Parser

LADDER = ("hard-prompt", "prompt", "prefix")  # the levels of --climb

METHOD_FLAGS = {  # type, or choices; metavar; help
    "num_virtual_tokens": (int, "P", "virtual tokens (default: the length of the start, or 8)"),
    "space": (("kv", "hidden"), None, "train keys and values, or hidden vectors (default: kv)"),
    "prefix_projection": (bool, None, "produce it by an MLP, at a tenth of the learning rate"),
    "encoder_hidden_size": (int, "M", "width of that MLP (default: the base's)"),
    "init": (("random", "vocab"), None, "start from noise or from tokens of the vocabulary "
             "(default: vocab for prompt, random for prefix)"),
    "init_from_text": (str, "TEXT", "start from the embeddings, or keys and values, of this text"),
    "init_from": (str, "ADAPTER", "start from an adapter on a lower level of the ladder"),
    "wordings": (list, "TEXT", "candidates (default: all instructions of all skills)"),
    "search": (int, "P", "also search for P tokens along the gradient, for --steps steps"),
    "r": (int, "R", "rank (default: 8)"),
    "lora_alpha": (float, "A", "the update is scaled by A / r (default: 8)"),
    "lora_dropout": (float, "SHARE", "dropout of its input in training (default: 0)"),
    "target_modules": (list, "LINEAR", "of c_attn, attn.c_proj, c_fc, mlp.c_proj in GPT-2's shape, "
                       "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj in Llama's "
                       "(default: c_attn; q_proj v_proj)"),
    "bottleneck_size": (int, "M", "width of the bottleneck (default: 8)"),
    "placement": (("houlsby", "pfeiffer"), None,
                  "after attention and MLP, or after the MLP alone (default: houlsby)"),
    "adapter_len": (int, "K", "prompt vectors of a layer (default: 10)"),
    "adapter_layers": (int, "N", "in the top N layers (default: 30 of 32 of them)"),
    "gate": (("head", "layer"), None, "one gate a head, or one a layer as in PEFT (default: head)"),
}
STARTS = ("init", "init_from_text", "init_from")  # at most one of them
SET_BY_CLIMB = ("num_virtual_tokens", "prefix_projection", *STARTS)
PARAMETER = {"init_from_text": "init", "init_from": "init",  # where adapt() has another name
             "wordings": "tokens", "search": "tokens"}


def add_method_flags(parser, names, **settings) -> None:
    """Add these flags of METHOD_FLAGS to a parser or group; settings override a flag's own."""
    names, start = list(names), parser
    if set(STARTS) & set(names):
        start = parser.add_mutually_exclusive_group()
    for name in names:
        kind, metavar, help_text = METHOD_FLAGS[name]
        how = {"help": help_text} | settings
        if kind is bool:
            how |= {"action": "store_true", "default": None}
        elif isinstance(kind, tuple):
            how |= {"choices": kind}
        else:
            how |= {"metavar": metavar} | ({"nargs": "+"} if kind is list else {"type": kind})
        (start if name in STARTS else parser).add_argument(as_flag(name), **how)


def as_flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def flags_of(methods) -> list[str]:
    """Names in METHOD_FLAGS that one of these methods takes. Raises Error for an unknown method."""
    known = [name for method in methods for name in hyperparameters_of(method)]
    return [flag for flag in METHOD_FLAGS if PARAMETER.get(flag, flag) in known]


def method_help(method: str) -> str:
    """The help page of one method, or of several joined by '+'."""
    names = flags_of(method.split("+"))
    lines = [f"Flags of --method {method}, beside those of python train.py --help."]
    for m in map(METHODS.get, method.split("+")):
        if m.learning_rate:
            lines.append(f"Learning rate of {m.name}: {m.learning_rate:g}, or "
                         f"{m.learning_rate_wide:g} on a base with {WIDE} channels or more.")
    p = Parser("\n".join(lines), usage=f"python train.py --method {method} [flags]", add_help=False)
    add_method_flags(p.add_argument_group(method), names)
    return p.format_help()
