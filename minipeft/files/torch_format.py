"""Reader of the files that torch.save writes; checks every size a file claims before allocating it.

    a zip, not compressed:  NAME/data.pkl     a pickle with a tensor as
                                              _rebuild_tensor_v2(storage, offset, shape, strides, …)
                            NAME/data/7       the bytes of storage "7"
                            NAME/byteorder    of these bytes

A pickle is a small program. This reader knows the instructions torch.save uses and calls only the
functions in `find_class`, all of this file: no code from a pickle runs.

`torch.load(weights_only=True, mmap=True)` runs no code either, but breaks three promises that
tests/faults checks: it skips the zip's checksums, so a flipped bit loads as another value; it reads
compressed bytes as if they were values; a forged pickle of 3 MB keeps it busy for over 20 s.
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

from ..checks import shown

MAX_STRUCTURE = 1 << 20  # bytes of a pickle or of a zip's directory: some 5,000 tensors
LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # of torch's format before 1.6

_DTYPES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16,
    "BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16,
    "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool,
}


class Malformed(ValueError):
    """The reason why a file is not one torch.save wrote; the caller adds the file's name."""


class _SmallReads(io.FileIO):
    """A file that refuses large reads: zipfile reads a directory at the size the file claims."""

    def read(self, size: int = -1) -> bytes:
        if size > MAX_STRUCTURE:
            raise Malformed(f"its directory claims {size:,} bytes")
        return super().read(size)


def load(path: Path):
    """Return the value given to torch.save: dicts, lists, tuples, strings, numbers and CPU tensors.

    Raises Malformed, or an exception of zipfile or pickle, for any other file.
    """
    with _SmallReads(path) as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(len(LEGACY_MAGIC)) == LEGACY_MAGIC:
            raise Malformed("it is in torch's format from before version 1.6: "
                            "load it there and save it again")
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if any(e.compress_type != zipfile.ZIP_STORED for e in entries):
                raise Malformed("it is compressed")
            if sum(e.file_size for e in entries) > size:  # overlapping entries
                raise Malformed("its parts claim more bytes than it has")
            by_name = {e.filename: e for e in entries}
            pickles = [name for name in by_name if name.endswith("/data.pkl")]
            if len(by_name) < len(entries) or len(pickles) != 1:
                raise Malformed("it has no data.pkl, or parts of one name")
            if by_name[pickles[0]].file_size > MAX_STRUCTURE:
                raise Malformed(f"its data.pkl has more than {MAX_STRUCTURE:,} bytes")
            return _Unpickler(archive, pickles[0].removesuffix("data.pkl"), 2 * size).load()


class _Unpickler(pickle._Unpickler):
    """pickle's Python implementation; its C one allocates memory for any memo index in a file."""

    dispatch = {ord(o.code): pickle._Unpickler.dispatch[ord(o.code)]
                for o in pickletools.opcodes if o.proto <= 2 and o.name != "DICT"}
    dispatch[pickle.PROTO[0]] = lambda self: self._check_protocol(self.read(1)[0])
    dispatch[pickle.BUILD[0]] = lambda self: self.stack.pop()  # attributes: not needed
    dispatch[pickle.SETITEM[0]] = lambda self: self._fill([self.stack.pop() for _ in "ab"][::-1])
    dispatch[pickle.SETITEMS[0]] = lambda self: self._fill(self.pop_mark())

    def __init__(self, archive: zipfile.ZipFile, prefix: str, max_bytes: int):
        """max_bytes: of all tensors together; tied weights make it exceed the file's size."""
        super().__init__(io.BytesIO(archive.read(f"{prefix}data.pkl")))
        self.archive, self.prefix, self.bytes_left = archive, prefix, max_bytes
        self.storages: dict[str, Tensor] = {}
        byteorder = f"{prefix}byteorder"
        if byteorder in archive.namelist() and archive.read(byteorder) != sys.byteorder.encode():
            raise Malformed(f"its numbers are not {sys.byteorder}-endian")

    def _check_protocol(self, protocol: int) -> None:
        if protocol > 2:
            raise Malformed(f"it has pickle_protocol {protocol}: save it again with 2, torch's default")

    def load(self):
        try:
            return super().load()
        finally:
            vars(self).clear()  # breaks the cycle through the memo, which holds every tensor

    def find_class(self, module: str, name: str):
        dtype = name.removesuffix("Storage")
        if module == "torch" and name != dtype and dtype in _DTYPES:
            return _DTYPES[dtype]
        known = {("collections", "OrderedDict"): lambda: {},
                 ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
                 ("torch._utils", "_rebuild_parameter"): lambda t, *_: t}
        if (module, name) not in known:
            raise Malformed(f"it names {shown(f'{module}.{name}')}, which is no part of a tensor")
        return known[module, name]

    def persistent_load(self, claim) -> Tensor:
        """("storage", type, key, device, element count) -> the storage, a tensor (count,)."""
        _, dtype, key, _, count = claim
        if not isinstance(dtype, torch.dtype) or type(key) is not str or type(count) is not int:
            raise Malformed("a storage is described as no storage is")
        if key not in self.storages:
            self.storages[key] = self._bytes(f"{self.prefix}data/{key}")
        if count * dtype.itemsize != (size := self.storages[key].numel()):
            raise Malformed(f"a storage claims {shown(count)} numbers, but has {size:,} bytes")
        return self.storages[key].view(dtype)

    def _bytes(self, name: str) -> Tensor:
        """An entry of the zip, (n,) uint8. Raises BadZipFile when its checksum does not match."""
        out, at = torch.empty(self.archive.getinfo(name).file_size, dtype=torch.uint8), 0
        with self.archive.open(name) as f:
            while piece := f.read(MAX_STRUCTURE):
                out.numpy()[at : at + len(piece)] = bytearray(piece)
                at += len(piece)
        if at != out.numel():
            raise Malformed("a part of it ends too early")
        return out

    def _tensor(self, storage: Tensor, offset: int, shape: tuple, strides: tuple, *_) -> Tensor:
        sizes = (offset, *shape, *strides)
        whole = all(type(n) is int and 0 <= n < 2**62 for n in sizes)
        if type(storage) is not Tensor or len(sizes) > 17 or not whole:
            raise Malformed("a tensor is described as no tensor is")
        self.bytes_left -= math.prod(shape) * storage.element_size()
        if self.bytes_left < 0:
            raise Malformed("its tensors claim more than its bytes hold")
        return storage.as_strided(shape, strides, offset)  # torch checks the bounds of the storage

    def _fill(self, items: list) -> None:
        """Put alternating keys and values into the dict on the stack; a nested tuple as key could
        take forever to hash."""
        plain = all(type(key) in (str, int) for key in items[::2])
        if type(self.stack[-1]) is not dict or not plain:
            raise Malformed("a dictionary has keys that are neither names nor numbers")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))
