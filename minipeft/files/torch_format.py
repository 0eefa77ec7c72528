"""What torch.save writes, read without torch.load: every size that a file claims is checked before memory is taken for it.

    a zip, nothing compressed     NAME/data.pkl     a pickle, in which a tensor is _rebuild_tensor_v2(storage, offset, shape, strides, …)
                                  NAME/data/7       the bytes of storage "7"
                                  NAME/byteorder    of these bytes

A pickle is a small program. Of its instructions only the old ones are known here, which torch.save uses, and of the names it may call
only those of `find_class`, each of which is a function of this file: nothing that a file brings is ever run. What torch itself would
allow under weights_only is more (bytearray, sparse tensors, dictionaries with any keys), and each has sizes or loops of its own.
"""

import io
import math
import os
import pickle
import pickletools
import sys
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from ..config import shown

STRUCTURE = 1 << 20  # bytes that a pickle, or a zip's directory, may have: some 5,000 tensors
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how files begin that torch wrote before 1.6

_KINDS = {"Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16, "Long": torch.int64}
_KINDS |= {"Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool}


class Malformed(ValueError):
    """Why a file is none of torch.save's; whoever knows its name makes an Error of it."""


class _Pieces(io.FileIO):
    """A file that is read in pieces of at most STRUCTURE: a zip's directory is read as one, of the size that the file claims."""

    def read(self, size: int = -1) -> bytes:
        if size > STRUCTURE:
            raise Malformed(f"its directory claims {size:,} bytes")
        return super().read(size)


def load(path: Path):
    """What was given to torch.save: dictionaries, lists, tuples, strings, numbers, and tensors on the CPU.

    Raises Malformed, or whatever zipfile and pickle raise, for a file that is torn, compressed, or holds anything else.
    """
    with _Pieces(path) as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(len(LEGACY)) == LEGACY:
            raise Malformed("it is in torch's format from before version 1.6: load it there and save it again")
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if any(e.compress_type != zipfile.ZIP_STORED for e in entries):
                raise Malformed("it is compressed")
            if sum(e.file_size for e in entries) > size:  # one by one they would fit, where they lie on one another
                raise Malformed("its parts claim more bytes than it has")
            names = {e.filename: e for e in entries}
            pickles = [name for name in names if name.endswith("/data.pkl")]
            if len(names) < len(entries) or len(pickles) != 1:
                raise Malformed("it has no data.pkl, or parts of one name")
            if names[pickles[0]].file_size > STRUCTURE:
                raise Malformed(f"its data.pkl has more than {STRUCTURE:,} bytes")
            return _Unpickler(archive, pickles[0].removesuffix("data.pkl"), 2 * size).load()


class _Unpickler(pickle._Unpickler):  # pickle's own in Python: the one in C takes memory for any index that a file gives
    dispatch = {ord(o.code): pickle._Unpickler.dispatch[ord(o.code)] for o in pickletools.opcodes if o.proto <= 2 and o.name != "DICT"}
    dispatch[pickle.BUILD[0]] = lambda self: self.stack.pop()  # attributes, such as the _metadata of a state_dict: not needed
    dispatch[pickle.SETITEM[0]] = lambda self: self._fill([self.stack.pop() for _ in "ab"][::-1])
    dispatch[pickle.SETITEMS[0]] = lambda self: self._fill(self.pop_mark())

    def __init__(self, archive: zipfile.ZipFile, prefix: str, room: int):
        """room: bytes that all tensors may have together; with tied weights it is more than the file has."""
        super().__init__(io.BytesIO(archive.read(f"{prefix}data.pkl")))
        self.archive, self.prefix, self.room = archive, prefix, room
        self.storages: dict[str, Tensor] = {}
        order = f"{prefix}byteorder"
        if order in archive.namelist() and self._bytes(order).numpy().tobytes() != sys.byteorder.encode():
            raise Malformed(f"its numbers are not {sys.byteorder}-endian")

    def load(self):
        try:
            return super().load()
        finally:
            vars(self).clear()  # the memo has methods of its own, and would keep every tensor with itself until the next collection

    def find_class(self, module: str, name: str):
        kind = name.removesuffix("Storage")
        if module == "torch" and name != kind and kind in _KINDS:
            return _KINDS[kind]
        known = {
            ("collections", "OrderedDict"): lambda: {},
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): lambda t, *_: t,
        }
        if (module, name) not in known:
            raise Malformed(f"it names {shown(f'{module}.{name}')}, which is no part of a tensor")
        return known[module, name]

    def persistent_load(self, claim) -> Tensor:
        """("storage", type, key, device, numbers) -> the storage, as a tensor of one dimension."""
        _, dtype, key, _, count = claim
        if not isinstance(dtype, torch.dtype) or type(key) is not str or type(count) is not int:
            raise Malformed("a storage is described as no storage is")
        if key not in self.storages:
            self.storages[key] = self._bytes(f"{self.prefix}data/{key}")
        if count * dtype.itemsize != self.storages[key].numel():
            raise Malformed(f"a storage claims {shown(count)} numbers, but has {self.storages[key].numel():,} bytes")
        return self.storages[key].view(dtype)

    def _bytes(self, name: str) -> Tensor:
        """One part of the zip, (n,) uint8. Raises BadZipFile where its own checksum does not match."""
        out, at = torch.empty(self.archive.getinfo(name).file_size, dtype=torch.uint8), 0
        with self.archive.open(name) as f:
            while piece := f.read(STRUCTURE):
                out.numpy()[at : at + len(piece)] = bytearray(piece)
                at += len(piece)
        if at != out.numel():
            raise Malformed("a part of it ends too early")
        return out

    def _tensor(self, storage: Tensor, offset: int, shape: tuple, strides: tuple, *_) -> Tensor:
        sizes = (offset, *shape, *strides)
        if type(storage) is not Tensor or len(sizes) > 17 or not all(type(n) is int and 0 <= n < 2**62 for n in sizes):
            raise Malformed("a tensor is described as no tensor is")
        self.room -= math.prod(shape) * storage.element_size()
        if self.room < 0:
            raise Malformed("its tensors claim more than its bytes hold")
        return storage.as_strided(shape, strides, offset)  # torch checks that it ends within the storage

    def _fill(self, items: list) -> None:
        """Keys and values in turn, into the dictionary on top of the stack. No other keys: a nested tuple takes for ever to hash."""
        if type(self.stack[-1]) is not dict or not all(type(key) in (str, int) for key in items[::2]):
            raise Malformed("a dictionary has keys that are neither names nor numbers")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))
