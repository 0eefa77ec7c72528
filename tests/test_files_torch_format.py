"""The reader of what torch.save writes: equal to torch's own, and forged files are refused before they do harm."""

import gc
import os
import struct
import weakref
import zipfile

import pytest
import torch
from conftest import tiny
from test_files import edit, refused

from minipeft import adapt
from minipeft.files import tensors as stored_tensors
from tests.faults import pickles


@pytest.fixture
def base():
    return tiny("learned")


def in_torchs_format(base, tmp_path, monkeypatch):
    """An adapter folder with a .bin and no checksum in the config."""
    monkeypatch.setattr(stored_tensors, "have_safetensors", lambda: False)
    adapt(base, "prompt", num_virtual_tokens=4).save(tmp_path / "adapter")
    edit(tmp_path / "adapter", lambda c: c.pop("minipeft"))
    return tmp_path / "adapter", tmp_path / "adapter" / "adapter_model.bin"


class Dangerous:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_no_code_runs_from_a_file(base, tmp_path, monkeypatch):
    folder, path = in_torchs_format(base, tmp_path, monkeypatch)
    torch.save({"prompt_embeddings": Dangerous(str(tmp_path / "ran"))}, path)
    refused(base, folder, "torn or not a file of tensors")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "value, message",
    [
        (lambda m: m.tensor(m.storage(count=10**12)), "claims 1000000000000 numbers, but has 16 bytes"),
        (lambda m: m.tensor(m.storage(), 0, (10**6, 10**6), (0, 0)), "claim more than its bytes hold"),
        (lambda m: m.tensor(m.storage(), 0, (2**61,) * 9, (0,) * 9), "described as no tensor is"),
        (lambda m: m.tensor(m.storage(), 1, (4,), (1,)), "torn or not a file of tensors"),
        (lambda m: m.tensor(m.storage(), 0, (10**9, (1,)), (1, 1)), "described as no tensor is"),
        (lambda m: m.Call(bytearray, 10**13), "it names '.*bytearray'"),
        (lambda m: m.Call(torch.FloatStorage, 10**12), "torn or not a file of tensors"),
        (lambda m: m.shared(60, list), "something else than named tensors"),
    ],
)
def test_what_a_pickle_claims_is_refused_before_it_is_made(value, message, base, tmp_path, monkeypatch):
    folder, path = in_torchs_format(base, tmp_path, monkeypatch)
    pickles.archive(path, pickles.pickled({"prompt_embeddings": value(pickles)}))
    refused(base, folder, message)


def test_a_key_that_takes_for_ever_to_hash_is_refused(base, tmp_path, monkeypatch):
    folder, path = in_torchs_format(base, tmp_path, monkeypatch)
    nested = pickles.pickled(pickles.shared(60, tuple))[2:-1]
    pickles.archive(path, b"\x80\x02}" + nested + b"K\x01s.")
    refused(base, folder, "keys that are neither names nor numbers")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_parts_of_a_zip_must_be_as_large_as_it_says(base, tmp_path, monkeypatch):
    folder, path = in_torchs_format(base, tmp_path, monkeypatch)
    whole = path.read_bytes()
    good = pickles.pickled({"prompt_embeddings": pickles.tensor(pickles.storage())})
    pickles.archive(path, good, method=zipfile.ZIP_DEFLATED)
    refused(base, folder, "it is compressed")
    pickles.archive(path, b"\x80\x02" + b"]" * (1 << 20) + b".")
    refused(base, folder, "its data.pkl has more than 1,048,576 bytes")
    pickles.rewritten(path, {"data.pkl": None})
    refused(base, folder, "it has no data.pkl")
    pickles.archive(path, good, more=[("a/byteorder", "big")])
    refused(base, folder, "parts of one name")
    pickles.archive(path, good)
    pickles.rewritten(path, {"byteorder": b"big"})
    refused(base, folder, "its numbers are not little-endian")

    changed = bytearray(whole)
    changed[whole.index(b"data/0") + 100] ^= 1  # a number: the zip has a checksum of its own
    path.write_bytes(changed)
    refused(base, folder, "torn or not a file of tensors .BadZipFile")

    pickles.archive(path, good)
    claims = bytearray(path.read_bytes())
    struct.pack_into("<II", claims, claims.index(b"PK\x01\x02") + 20, 10**6, 10**6)  # an entry's sizes
    path.write_bytes(claims)
    refused(base, folder, "its parts claim more bytes than it has")
    pickles.archive(path, good, more=[(f"a/{i}", b"") for i in range(20_000)])
    refused(base, folder, "its directory claims 1,[0-9,]+ bytes")


def test_the_format_before_1_6_is_refused_by_name(base, tmp_path, monkeypatch):
    folder, path = in_torchs_format(base, tmp_path, monkeypatch)
    pickles.legacy(path, {"prompt_embeddings": torch.ones(4, 32)})
    refused(base, folder, "torch's format from before version 1.6")


def test_torch_and_this_reader_agree(tmp_path):
    weight = torch.nn.Linear(3, 5).requires_grad_(False)
    value = {"a": weight.state_dict(), "b": torch.nn.Parameter(torch.ones(2)),
             "c": [1, 2.5, None, True, "x", 2**70, (1,)], 3: {}}
    value["d"] = [torch.arange(12).view(3, 4).t(), torch.empty(0, 3),
                  torch.tensor(4.5, dtype=torch.bfloat16), torch.tensor([True])]
    shared = torch.arange(10.0)
    value["tied"] = [shared[2:5], shared]
    torch.save(value, tmp_path / "file.pt")
    ours, theirs = stored_tensors.read_torch(tmp_path / "file.pt"), torch.load(tmp_path / "file.pt", weights_only=True)
    assert ours["c"] == theirs["c"] and ours[3] == {} and list(ours["a"]) == ["weight", "bias"]
    for a, b in zip([*ours["a"].values(), ours["b"], *ours["d"], *ours["tied"]],
                    [*theirs["a"].values(), theirs["b"], *theirs["d"], *theirs["tied"]], strict=True):  # fmt: skip
        assert a.dtype == b.dtype and torch.equal(a, b)
    assert ours["tied"][0].untyped_storage().data_ptr() == ours["tied"][1].untyped_storage().data_ptr()


def test_a_reader_keeps_no_tensor_alive(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "file.pt")
    gc.disable()
    try:
        read = stored_tensors.read_torch(tmp_path / "file.pt")
        alive = weakref.ref(read["a"])
        del read
        assert alive() is None
    finally:
        gc.enable()
