"""Forged files in torch's format: pickles that are programs, and zips that claim false sizes."""

import collections
import io
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

MARKER = "code-ran"  # the file that a program creates beside the folder


class Call:
    """An object that calls f(*args) when it is unpickled."""

    def __init__(self, f: Callable, *args):
        self.f, self.args = f, args

    def __reduce__(self):
        return self.f, self.args


class Claim(collections.namedtuple("Claim", "kind dtype key device count")):
    """A storage as described in a pickle."""


class _Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return tuple(value) if isinstance(value, Claim) else None


def pickled(value) -> bytes:
    out = io.BytesIO()
    _Pickler(out, protocol=2).dump(value)
    return out.getvalue()


def tensor(storage, offset=0, shape=(4,), strides=(1,)) -> Call:
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, shape, strides, False, collections.OrderedDict())


def storage(key="0", count=4, dtype=torch.FloatStorage) -> Claim:
    return Claim("storage", dtype, key, "cpu", count)


def archive(path: Path, data: bytes, storages=(bytes(16),), method: int = zipfile.ZIP_STORED,
            more: tuple = ()) -> None:
    """Write a zip as torch.save does, with this pickle; more: (name, bytes) of further entries."""
    with zipfile.ZipFile(path, "w", method) as z:
        z.writestr("a/data.pkl", data)
        z.writestr("a/version", "3\n")  # torch.load refuses an archive without one
        z.writestr("a/byteorder", "little")
        for i, piece in enumerate(storages):
            z.writestr(f"a/data/{i}", piece)
        for name, piece in more:
            z.writestr(name, piece)


def shared(n: int, make: Callable) -> object:
    """A value of 2^n parts made of n objects, each of which holds the one before twice."""
    value = make(())
    for _ in range(n):
        value = make((value, value))
    return value


def evil(rng: random.Random, path: Path, named: str = "prompt_embeddings") -> None:
    """Write a file whose pickle is a program or makes false claims; it must be refused."""
    marker = str(path.parent.parent / MARKER)
    good = tensor(storage())
    programs = {
        "system": lambda: archive(path, pickled({named: Call(os.system, f"touch {marker}")})),
        "eval": lambda: archive(path, pickled({named: Call(eval, f"open({marker!r}, 'w')")})),
        "exec": lambda: archive(path, pickled({Call(exec, f"open({marker!r}, 'w')"): good})),
        "open": lambda: archive(path, pickled(Call(io.open, marker, "w"))),
        "getattr": lambda: archive(path, pickled({named: Call(getattr, Call(__import__, "os"), "system")})),
        "load": lambda: archive(path, pickled({named: Call(torch.load, marker, None)})),
        "text": lambda: path.write_bytes(b"cos\nsystem\n(S'touch " + marker.encode() + b"'\ntR."),
        "bytearray": lambda: archive(path, pickled({named: Call(bytearray, 10**13)})),
        "bytes": lambda: archive(path, pickled({named: Call(bytes, 10**10)})),
        "make-storage": lambda: archive(path, pickled({named: Call(torch.FloatStorage, 10**12)})),
        "claims-terabytes": lambda: archive(
            path, pickled({named: tensor(storage(count=rng.choice([10**12, 2**62, 5, 2**80, -4])))})),
        "no-storage": lambda: archive(
            path, pickled({named: tensor(storage(key=rng.choice(["7", "../data.pkl", "", 3, None])))})),
        "strange-storage": lambda: archive(
            path, pickled({named: tensor(rng.choice([None, 3, Claim(1, 2, 3, 4, 5), "text"]))})),
        "view-of-terabytes": lambda: archive(path, pickled({named: tensor(storage(), 0, (10**6, 10**6), (0, 0))})),
        "view-beyond": lambda: archive(
            path, pickled({named: tensor(storage(), rng.choice([1, 10**12, -1]), (4,), (1,))})),
        "strides": lambda: archive(path, pickled(
            {named: tensor(storage(), 0, (2, 2), rng.choice([(-1, 1), (2**62, 1), (2.5, 1), (1,), "ab"]))})),
        "shape": lambda: archive(path, pickled(
            {named: tensor(storage(), 0, rng.choice([(-4,), (2**70,), ("a",), (10**9, (1,)), 4]), (1,))})),
        "sizes-multiply": lambda: archive(path, pickled({named: tensor(storage(), 0, (2**61,) * 9, (0,) * 9)})),
        "many-views": lambda: archive(
            path, pickled({f"{named}{i}": tensor(storage(), 0, (4,), (1,)) for i in range(3000)})),
        "key-that-hashes-for-ever": lambda: archive(
            path, pickled({named: good})[:-2] + pickled(shared(60, tuple))[2:-1] + b"K\x01s."),
        "values-without-end": lambda: archive(path, pickled({named: good, "more": shared(60, list)})),
        "memo": lambda: archive(path, b"\x80\x02}r\xff\xff\xff\x7f."),
        "long-text": lambda: archive(path, b"\x80\x02}X\xff\xff\xff\x7fabc."),
        "protocol-5": lambda: archive(path, b"\x80\x05\x96" + struct.pack("<Q", 10**13) + b"abc."),
        "brackets": lambda: archive(path, b"\x80\x02" + b"]" * 900_000 + b"."),
        "more-brackets": lambda: archive(path, b"\x80\x02" + b"(" * 3_000_000 + b"."),
        "copies": lambda: archive(
            path,
            b"\x80\x02}("
            + b"".join(b"K%cN" % i for i in range(250))
            + b"uq\x01"
            + b"cbuiltins\ndict\nq\x02"
            + b"h\x02h\x01\x85R" * 90_000
            + b".",
        ),
        "sparse": lambda: archive(path, pickled({named: Call(
            torch._utils._rebuild_sparse_tensor, torch.sparse_coo, (good, good, (2**40,), True))})),
        "meta": lambda: archive(path, pickled({named: Call(
            torch._utils._rebuild_meta_tensor_no_storage, torch.float32, (3, 8), (8, 1), False)})),
        "keys": lambda: archive(path, pickled({rng.choice([3, None, (1, 2), b"a", 1.5]): good})),
        "values": lambda: archive(path, pickled({named: rng.choice([3, None, "text", [good], {"a": good}])})),
        "no-dictionary": lambda: archive(path, pickled(rng.choice([3, [good], "text", None, good]))),
        "big-endian": lambda: rewritten(path, {"byteorder": b"big"}),
        "compressed": lambda: archive(path, pickled({named: good}), method=zipfile.ZIP_DEFLATED),
        "bomb": lambda: archive(path, bytes(100_000_000), method=zipfile.ZIP_DEFLATED),
        "bomb-beside": lambda: archive(path, pickled({named: tensor(storage(count=25 * 10**6))}),
                                       [bytes(10**8)], zipfile.ZIP_DEFLATED),
        "two-pickles": lambda: archive(path, pickled({named: good}), more=[("b/data.pkl", pickled({}))]),
        "no-pickle": lambda: rewritten(path, {"data.pkl": None}),
        "zip-sizes": lambda: directory(rng, path),
        "legacy": lambda: legacy(path, {named: torch.ones(4)}),
        "legacy-claims": lambda: path.write_bytes(
            legacy(path, {named: torch.ones(4)}).replace(b"K\x04", b"J\xff\xff\xff\x7f")),
    }
    programs[rng.choice(list(programs))]()


def legacy(path: Path, value: dict) -> bytes:
    torch.save(value, path, _use_new_zipfile_serialization=False)
    return path.read_bytes()


def rewritten(path: Path, changes: dict) -> None:
    """Replace entries of a zip; None removes one."""
    with zipfile.ZipFile(path) as z:
        parts = {name: z.read(name) for name in z.namelist()}
    with zipfile.ZipFile(path, "w") as z:
        for name, data in parts.items():
            if (data := changes.get(name.partition("/")[2], data)) is not None:
                z.writestr(name, data)


def directory(rng: random.Random, path: Path) -> None:
    """Write a zip whose directory claims false sizes, offsets or entry counts."""
    archive(path, pickled({"prompt_embeddings": tensor(storage())}))
    data = bytearray(path.read_bytes())
    central, end = data.index(b"PK\x01\x02"), data.rindex(b"PK\x05\x06")
    if rng.random() < 0.5:
        struct.pack_into("<I", data, central + rng.choice([20, 24, 42]), rng.choice([2**32 - 1, 2**31, 10**6]))
    else:
        struct.pack_into("<I", data, end + rng.choice([12, 16]), rng.choice([2**32 - 1, 2**31, 10**6]))
    path.write_bytes(data)
