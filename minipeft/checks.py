"""The error every refusal raises, and the checks of arguments whose shapes and sizes must fit."""

import difflib
import reprlib

import torch


class Error(ValueError):
    """The error minipeft raises on purpose: one line on what was wrong and what would be right."""


class _ShortRepr(reprlib.Repr):
    def __init__(self):
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 80, 80
        self.maxlist = self.maxtuple = self.maxdict = 8

    def repr_int(self, x, level):
        return repr(x) if abs(x) < 10**24 else f"a number of {x.bit_length()} bits"

    def repr_instance(self, x, level):
        plain = isinstance(x, (float, bytes, bool, type(None)))
        return repr(x)[:80] if plain else f"<{type(x).__name__}>"


def shown(value) -> str:
    """The repr of a value read from a file, cut where long or deep, for a message of one line."""
    text = _ShortRepr().repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def described(x) -> str:
    """A tensor's shape and dtype, or the repr of anything else, for a message of one line."""
    return f"{tuple(x.shape)} {str(x.dtype)[6:]}" if isinstance(x, torch.Tensor) else shown(x)


def did_you_mean(word: str, known) -> str:
    """" (did you mean 'prefix'?)" for a word that is close to one of the known ones, else ""."""
    close = difflib.get_close_matches(str(word).lower(), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


SIZE_LIMIT = 2**31  # far above any model's sizes, and products of several sizes still print
FLOAT32_MAX = torch.finfo(torch.float32).max


def at_least_one(name: str, value: int) -> int:
    """Return `value`. Raises Error unless it is a whole number from 1 to SIZE_LIMIT - 1."""
    if type(value) is not int or value < 1:
        raise Error(f"{name} must be a whole number of at least 1, not {shown(value)}")
    if value >= SIZE_LIMIT:
        raise Error(f"{name} must be below {SIZE_LIMIT:,}, not {shown(value)}")
    return value


def positive(name: str, value: float) -> float:
    """Return `value`. Raises Error unless it is a number above 0 that float32 can hold."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value <= FLOAT32_MAX:
        raise Error(f"{name} must be a positive number, not {shown(value)}")
    return value


def one_of(name: str, value, choices):
    """The value. Raises Error unless it is one of `choices`."""
    if value not in tuple(choices):
        raise Error(f"{name} must be {' or '.join(map(repr, choices))}, not {shown(value)}")
    return value


def check_base(base) -> None:
    """Raise Error unless `base` is a model.GPT."""
    if not isinstance(base, torch.nn.Module) or not hasattr(base, "through_compile"):
        raise Error(f"the base must be a GPT, as GPT.from_pretrained() opens it, not {shown(base)}")


def check_shape(name: str, x: torch.Tensor, shape: tuple) -> None:
    """Raise Error unless x has this shape; a string in `shape` names a dimension of any size."""
    fits = isinstance(x, torch.Tensor) and x.dim() == len(shape) and all(
        isinstance(want, str) or want == have for want, have in zip(shape, x.shape, strict=True))
    if not fits:
        raise Error(f"{name} {described(x)} must be ({', '.join(map(str, shape))})")


def check_tokens(idx, at_least: int = 1) -> None:
    """Raise Error unless idx holds token ids (B, T) with T >= at_least."""
    ids = isinstance(idx, torch.Tensor) and idx.dtype in (torch.int64, torch.int32)
    if not ids or idx.dim() != 2 or not len(idx) or idx.size(1) < at_least:
        raise Error(f"idx {described(idx)} must be (B, T) int64, B at least 1"
                    f"{at_least * ', with at least one token to go on from'}")


def check_attention(q, k, v, prefix_k, prefix_v, gate, prefix_length, length, window, prefix_bias) -> None:
    """Raise Error unless the arguments have the shapes that `attention.prefix_attention` names."""
    for name, x in (("prefix_k", prefix_k), ("prefix_v", prefix_v)):
        check_shape(name, x, ("B", "heads", "T", "hs"))
    (B, nh, Tq, hs), (_, n_kv, Tk, _), P = q.shape, k.shape, prefix_k.size(2)
    if k.shape != v.shape or k.shape != (B, n_kv, Tk, hs):
        raise Error(f"k {tuple(k.shape)} and v {tuple(v.shape)} must both be (B, n_kv, Tk, hs) "
                    f"with q's B {B} and hs {hs}")
    if not q.is_floating_point():
        raise Error(f"q {described(q)} must be of floats")
    if not n_kv or nh % n_kv:
        raise Error(f"{nh} query heads do not divide into groups over {n_kv} key heads")
    if Tq > Tk:
        raise Error(f"queries are the last Tq of Tk positions, but Tq {Tq} > Tk {Tk}")
    if prefix_k.shape != prefix_v.shape or prefix_k.shape not in ((1, n_kv, P, hs),
                                                                  (B, n_kv, P, hs)):
        raise Error(f"prefix_k {tuple(prefix_k.shape)} and prefix_v {tuple(prefix_v.shape)} must "
                    f"both be (1|B, n_kv, P, hs) with B {B}, n_kv {n_kv}, hs {hs}")
    if gate is not None:
        check_shape("gate, one value per head,", gate, (nh,))
    for name, x, low, high in (("prefix_length", prefix_length, 0, P), ("length", length, Tq, Tk)):
        if x is not None and (not isinstance(x, torch.Tensor) or x.shape != (B,) or x.dtype != torch.int64):
            raise Error(f"{name} must be ({B},) int64, one value per row, not {described(x)}")
        if x is not None and B and x.device.type == "cpu" and not torch.compiler.is_compiling() and not (
                low <= int(x.min()) <= int(x.max()) <= high):
            raise Error(f"{name} must be of {low} … {high}, not {shown(x.tolist())}")
    if gate is not None and prefix_length is not None:
        raise Error("a gated prefix has one length for all rows: its softmax needs at least one key")
    if window is not None and not (hasattr(window, "virtual") and window.size >= 1 and window.virtual >= 0):
        raise Error(f"window must be a Window(size, virtual) of at least one key, not {shown(window)}")
    if prefix_bias is not None:
        if gate is not None:
            raise Error("a gated prefix takes no bias: its softmax needs at least one key")
        if not isinstance(prefix_bias, torch.Tensor) or prefix_bias.shape != prefix_k.shape[:3]:
            raise Error(f"prefix_bias {described(prefix_bias)} must be (1|B, n_kv, P) as prefix_k has them, "
                        f"{tuple(prefix_k.shape[:3])}")
        if not prefix_bias.is_floating_point():
            raise Error(f"prefix_bias {described(prefix_bias)} must be of floats")


def check_slots(c, idx, prompt, prefix, hooks, cached: int, hookable) -> None:
    """Raise Error unless the arguments fit `GPT.hidden` and every token has a position.

    cached: positions in the cache; hookable: the module names that hooks may have.
    """
    check_tokens(idx, at_least=0 if prompt is not None else 1)
    (B, T), P = idx.shape, cached
    if prompt is not None:
        check_shape("prompt", prompt, ("1|B", "P", c.n_embd))
        if prompt.size(0) not in (1, B):
            raise Error(f"prompt {tuple(prompt.shape)} must be (1|B, P, {c.n_embd}) with B {B}")
        P += prompt.size(1)
    if prefix is not None:
        if not isinstance(prefix, tuple) or not hasattr(prefix, "taken"):
            raise Error(f"prefix must be a tensor or a Prefix, not {described(prefix)}")
        k, v, gate, bias = prefix.k, prefix.v, prefix.gate, prefix.bias
        fits = k.dim() == 5 and k.shape == v.shape and k.size(1) in (1, B) and len(k) <= c.n_layer
        if not fits or (k.size(2), k.size(4)) != (c.n_kv, c.head_size):
            raise Error(f"a prefix's keys and values must each be ({c.n_layer}, 1|B, {c.n_kv}, P, "
                        f"{c.head_size}) with B {B}, not {tuple(k.shape)} and {tuple(v.shape)}")
        if gate is not None:
            check_shape("a prefix's gate", gate, (len(k), c.n_head))
        if bias is not None:
            check_shape("a prefix's bias", bias, tuple(k.shape[:4]))
            if gate is not None:
                raise Error("a prefix has a bias or a gate, not both")
        if (length := prefix.length) is not None:
            check_shape("a prefix's length", length, (B,))
            if length.dtype != torch.int64 or (length.device.type == "cpu" and not 0 <= int(length.min())
                                               <= int(length.max()) <= k.size(3)):
                raise Error(f"a prefix's length must be int64 in 0 … {k.size(3)}, its keys")
        p = prefix.positions
        fits = p is None or (type(p) is int and p >= 0)
        if isinstance(p, torch.Tensor):
            fits = p.shape == (B,) and p.dtype == torch.int64 and int(p.min()) >= 0
        if not fits or (p is not None and gate is not None):
            raise Error(f"a prefix's positions {described(p)} must be a whole number of at least 0, "
                        f"or ({B},) int64, and a gated prefix takes none")
        P += prefix.most_taken
    listed = isinstance(hooks, (list, tuple)) and all(isinstance(of, dict) for of in hooks)
    if hooks is not None and not (listed and len(hooks) == c.n_layer and set().union(*hooks) <= set(hookable)):
        raise Error(f"hooks must be one {{module name: function}} for each of {c.n_layer} layers, "
                    f"with names of {', '.join(hookable)}")
    if P + T > c.block_size:
        used = f"{cached} cached + " if cached else ""
        raise Error(f"{used}{P - cached} virtual + {T} real tokens do not fit the base's block size of {c.block_size}")
