"""Mutations of a file: accidental damage, and forgery, consistent and with recomputed checksums.

A mutation changes the copy of an original in a folder and returns {file: {name: tensor}} for the
files with new tensors. It uses json, zipfile and pickle alone, none of the readers under test.
"""

import hashlib
import json
import math
import os
import random
import shutil
import struct
import sys
from pathlib import Path

import torch
from torch import Tensor

from minipeft.files.tensors import digest
from tests.faults.originals import Original, tensors_of, write_tensors
from tests.faults.pickles import evil, shared

WEIRD = [
    10**12, 10**9, 10**30, -1, 0, 1, 2, 3, 2.5, -0.0, 1e308, math.inf, math.nan, True, False, None, "",
    "text", "8", "\ud800", "a\nb", "x" * 5000, [], [1], {}, {"a": 1}, ["c_attn", "c_attn"], [[[[1]]]],
    2**63, 2**31, 10**4000]
HUGE = [2**63 - 1, 2**64 - 1, 10**13, 2**40, 2**31, 1 << 20, 100_000_001]


# ---- damage to any file


def flip(rng: random.Random, path: Path) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 2, 8])):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def flip_early(rng: random.Random, path: Path) -> None:
    """Flip bytes of the structure, at the beginning and at the end of the file."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 2])):
        if data:
            near = rng.randrange(min(len(data), 200))
            data[rng.choice([near, -1 - near])] = rng.randrange(256)
    path.write_bytes(data)


def truncate(rng: random.Random, path: Path) -> None:
    data = path.read_bytes()
    near_end = [rng.randrange(len(data) + 1), max(0, len(data) - rng.randrange(100))]
    path.write_bytes(data[: rng.choice([0, 1, 7, 8, 9, *near_end])])


def extend(rng: random.Random, path: Path) -> None:
    more = rng.choice([b"\0", b"\0" * 1000, b"\n", b"{}", rng.randbytes(200), path.read_bytes()])
    path.write_bytes(rng.choice([path.read_bytes() + more, more + path.read_bytes()]))


def blank(rng: random.Random, path: Path) -> None:
    """Blank, drop or repeat a block."""
    data = bytearray(path.read_bytes())
    at, n = rng.randrange(len(data) + 1), rng.choice([1, 16, 512])
    data[at : at + n] = rng.choice([bytes(len(data[at : at + n])), b"", data[at : at + n] * 2])
    path.write_bytes(data)


def splice(rng: random.Random, path: Path) -> None:
    """Move a piece elsewhere."""
    data = path.read_bytes()
    a, b, c = sorted(rng.randrange(len(data) + 1) for _ in range(3))
    path.write_bytes(data[:a] + data[b:c] + data[a:b] + data[c:])


def insert(rng: random.Random, path: Path) -> None:
    """Insert bytes that are illegal or special in text."""
    data = path.read_bytes()
    at = rng.randrange(len(data) + 1)
    pieces = [b"\xff\xfe", b"\xed\xa0\x80", b"\\ud800", b"\0", b"\r", b'"', b",", b"\t", b"{", b"[",
              b"1e999", b"NaN", b"\xe2\x80\xa8"]
    path.write_bytes(data[:at] + rng.choice(pieces) + data[at:])


def missing(rng: random.Random, path: Path) -> None:
    path.unlink()


def no_file(rng: random.Random, path: Path) -> None:
    """Put something other than a regular file in its place."""
    path.unlink()
    kind = rng.choice(["folder", "pipe", "loop", "nowhere", "device"])
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"loop": path.name, "nowhere": "is-not-there", "device": "/dev/zero"}[kind])


def other_file(rng: random.Random, path: Path) -> None:
    """Write the content of the file beside it, or of another kind of file."""
    contents = [b"", b"{}", b"[]", b"null", b"\x80\x02}q\0.", b"PK\x05\x06" + bytes(18), rng.randbytes(300),
                b"[" * 100_000, b'{"a":' * 100_000, b'{"a": ' + b"9" * 5000 + b"}",
                b"[" + b"[]," * 690_000 + b"[]]"]
    contents += [p.read_bytes() for p in path.parent.iterdir() if p.is_file()]
    path.write_bytes(rng.choice(contents))


DAMAGE = (flip, flip, flip_early, truncate, extend, blank, splice, insert, missing, no_file, other_file)


# ---- valid JSON with other content


def json_values(rng: random.Random, path: Path) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    places = list(_places(value))
    if not places:
        return
    for _ in range(rng.choice([1, 1, 1, 3])):
        within, key = rng.choice(places)
        if key not in within if isinstance(within, dict) else key >= len(within):
            continue
        change = rng.choice(["weird", "weird", "weird", "near", "gone", "renamed", "swapped"])
        if change == "weird":
            within[key] = rng.choice(WEIRD)
        elif change == "near":
            within[key] = _near(rng, within[key])
        elif change == "gone":
            del within[key]
        elif change == "swapped":
            other, its_key = rng.choice(places)
            if its_key in other if isinstance(other, dict) else its_key < len(other):
                other[its_key], within[key] = within[key], other[its_key]
        elif isinstance(within, dict):
            within[rng.choice(["a\nb", "x" * 300, "../a", key.upper(), key + " "])] = within.pop(key)
    seen = []

    def acyclic(v):
        """The value without cycles, which swapping can create."""
        if any(v is s for s in seen):
            return None
        if isinstance(v, (dict, list)):
            seen.append(v)
            v = {k: acyclic(w) for k, w in v.items()} if isinstance(v, dict) else [acyclic(w) for w in v]
            seen.pop()
        return v

    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    path.write_text(json.dumps(acyclic(value)), encoding="utf-8")
    sys.set_int_max_str_digits(limit)


def _places(value):
    items = value.items() if isinstance(value, dict) else enumerate(value[:20]) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


def _near(rng: random.Random, value):
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, (int, float)):
        return value + rng.choice([-1, 1, 0.5])
    return value[::-1] if isinstance(value, (str, list)) else value


def json_twice(rng: random.Random, path: Path) -> None:
    """Repeat a key; json takes the later value."""
    text = path.read_text(encoding="utf-8").rstrip()
    value = json.loads(text)
    if isinstance(value, dict) and value:
        key = rng.choice(list(value))
        path.write_text(f"{text[:-1]}, {json.dumps(key)}: {json.dumps(rng.choice(WEIRD[:24]))}}}", encoding="utf-8")


def odd_tokenizer(rng: random.Random, path: Path) -> None:
    """A valid tokenizer that takes forever, grows a text without end, or crashes the library."""
    value = json.loads(path.read_text(encoding="utf-8"))
    bomb = [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}] * 10
    regex = rng.choice(["(a+)+$", "(a*)*b", "", "(", "a{1,65535}{1,65535}"])
    odd = {
        "normalizer": [
            {"type": "Sequence", "normalizers": bomb},
            {"type": "Replace", "pattern": {"Regex": regex}, "content": "x"},
            {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
            {"type": "Replace", "pattern": {"String": ""}, "content": "x"},
            {"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 40},
            {"type": "Prepend", "prepend": "a" * 9000}],
        "pre_tokenizer": [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
            {"type": "Sequence", "pretokenizers": [value["pre_tokenizer"]] * 30}],
        "decoder": [
            {"type": "Sequence", "decoders": bomb}, {"type": "WordPiece", "prefix": "", "cleanup": True},
            {"type": "Fuse"}],
        "model": [value["model"] | change for change in (
            {"dropout": 0.5}, {"continuing_subword_prefix": "x" * 1000}, {"unk_token": "?"},
            {"merges": [["t", "h"]] * 2}, {"vocab": value["model"]["vocab"] | {"!": 5}}, {"vocab": {}},
            {"type": "WordLevel"})],
        "padding": [{"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_to_multiple_of": None,
                     "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}],
        "added_tokens": [[value["added_tokens"][0] | {"id": 2**32 - 1}], value["added_tokens"] * 3, []],
    }
    name = rng.choice(list(odd))
    path.write_text(json.dumps(value | {name: rng.choice(odd[name])}), encoding="utf-8")


# ---- safetensors with another header


def header(rng: random.Random, path: Path) -> None:
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    entries, body = json.loads(data[8 : 8 + n]), data[8 + n :]
    names = [name for name in entries if name != "__metadata__"]
    length, text = None, None
    name = rng.choice(names)
    change = rng.choice(["length", "shape", "offsets", "dtype", "swap", "gone", "field", "twice", "deep",
                         "spaces", "notes", "value"])
    if change == "length":
        length = rng.choice([*HUGE, 0, 1, n + 1, n - 1, len(data) - 8, len(data)])
    elif change == "shape":
        entries[name]["shape"] = rng.choice([
            [10**12], [2**63], [2**32, 2**32], [], [0], [-1], [1.5], ["3"], None, 3, [1] * 500,
            entries[name]["shape"][::-1], [1, *entries[name]["shape"]]])
    elif change == "offsets":
        first, last = entries[name]["data_offsets"]
        entries[name]["data_offsets"] = rng.choice([
            [last, first], [first, 2**63], [-8, last], [first, last + 4], [0, last - first], [0, 0],
            [first], None, [2**64, 2**64 + 4]])
    elif change == "dtype":
        entries[name]["dtype"] = rng.choice([
            "F16", "F64", "I32", "I64", "U8", "BOOL", "F8_E4M3", "F4", "C64", "", None, 5, "X" * 100])
    elif change == "swap" and len(names) > 1:
        a, b = rng.sample(names, 2)
        entries[a], entries[b] = entries[b], entries[a]
    elif change == "gone":
        del entries[name]
    elif change == "field":
        entries[name].pop(rng.choice(list(entries[name])))
    elif change == "twice":
        text = json.dumps(entries)[:-1] + f", {json.dumps(name)}: {json.dumps(entries[rng.choice(names)])}}}"
    elif change == "deep":
        notes = '{"__metadata__":{"minipeft":"' + "[" * 50_000 + '"}}'
        text = rng.choice(['{"a":' * 50_000, "[" * 50_000, notes])
    elif change == "spaces":
        text = json.dumps(entries) + " " * rng.choice([1, 8, 100_000])
    elif change == "notes":
        entries["__metadata__"] = rng.choice([
            None, [], {"minipeft": "{"}, {"minipeft": "[]"}, {"minipeft": 3}, {"minipeft": "[" * 9000},
            {"minipeft": '{"sha256": null}'}, {"minipeft": '{"base": "a\\nb"}'},
            {"minipeft": '{"config": [1]}'}])
    else:
        entries[rng.choice([name, "", "a\nb", "\ud800", "x" * 10_000])] = rng.choice(WEIRD[:24])
    written = (json.dumps(entries) if text is None else text).encode("utf-8", "surrogatepass")
    length = len(written) if length is None else length
    path.write_bytes(struct.pack("<Q", length) + written + body)


# ---- other tensors, with notes that fit them


def forge(rng: random.Random, path: Path) -> dict[str, Tensor]:
    """Change names, shapes, types or values, and recompute the checksum if there is one."""
    tensors = dict(tensors_of(path))
    name = rng.choice(list(tensors))
    t = tensors[name]
    change = rng.choice(["values", "values", "swap", "rename", "gone", "more", "shape", "dtype", "dtype",
                         "all-dtype", "empty", "nan", "scalar"])
    if change == "values":
        tensors[name] = t + 1 if rng.random() < 0.8 else torch.full_like(t, rng.choice([-1, 39, 40, 2**40]))
    elif change == "swap":
        other = rng.choice(list(tensors))
        tensors[name], tensors[other] = tensors[other], t
    elif change == "rename":
        other = rng.choice([f"{name}x", name.upper(), "", "a\nb", f"transformer.{name}", name.partition(".")[2]])
        tensors[other] = tensors.pop(name)
    elif change == "gone":
        del tensors[name]
    elif change == "more":
        more = ["more", f"transformer.{name}", name.removeprefix("transformer."), "lm_head.weight"]
        tensors[rng.choice(more)] = t.clone()
    elif change == "shape":
        shapes = [t.flatten(), t[None], t[..., None], t[:1], t.flatten()[: t.numel() // 2],
                  torch.cat([t, t]), t.mT if t.dim() > 1 else t]
        tensors[name] = rng.choice(shapes).contiguous()
    elif change in ("dtype", "all-dtype"):
        kinds = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool,
                 torch.complex64, torch.float8_e4m3fn]
        kind = rng.choice(kinds)
        for n in tensors if change == "all-dtype" else [name]:
            tensors[n] = tensors[n].to(kind)
    elif change == "empty":
        tensors = {}
    elif change == "nan":
        tensors[name] = t * math.nan if t.is_floating_point() else t
    else:
        tensors[name] = torch.tensor(3.0)
    if path.suffix == ".bin":
        configs = (path.parent / "adapter_config.json", path.parent / "config.json")
        config = next(p for p in configs if p.exists())
        value = json.loads(config.read_text())
        if "minipeft" in value:
            value["minipeft"]["sha256"] = digest_or_none(tensors)
            config.write_text(json.dumps(value))
        torch.save(tensors, path)
    else:
        data = path.read_bytes()
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
        notes = None
        if "minipeft" in metadata:
            notes = json.loads(metadata["minipeft"]) | {"sha256": digest_or_none(tensors)}
        write_tensors(path, tensors, notes)
    return tensors


def digest_or_none(tensors: dict[str, Tensor]) -> str:
    return digest(tensors) if all(t.dtype != torch.float8_e4m3fn for t in tensors.values()) else ""


# ---- the choice of a mutation


def mutate(rng: random.Random, original: Original, others: list[Original],
           folder: Path) -> tuple[str, dict | None, Original]:
    """Change the copy of `original` in `folder`.

    Returns the mutation's name, the new tensors of its files ({file: {name: tensor}}, or {} if they
    must be refused), and the original in the folder then.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "lock")
    path, choice = rng.choice(files), rng.random()
    if path.suffix == ".json" and original.kind != "data" and choice < 0.75:
        change = rng.choice([json_values, json_values, json_values, json_twice])
        change(rng, path)
        return change.__name__, None, original
    if path.name == "tokenizer.json" and choice < 0.9:
        odd_tokenizer(rng, path)
        return "odd_tokenizer", None, original
    stored = [p for p in files if p.suffix in (".bin", ".safetensors", ".pt")]
    if stored and choice < 0.55:
        path = rng.choice(stored)
        if path.suffix == ".safetensors" and choice < 0.25:
            header(rng, path)
            return "header", None, original
        if path.suffix == ".pt":
            return *forged_state(rng, path), original
        if path.suffix == ".bin" and choice < 0.3:
            evil(rng, path, rng.choice(list(tensors_of(path))))
            return "pickle", {}, original
        held = {path: forge(rng, path)}
        if original.kind == "combination":  # combination.json has checksums of the parts
            combination = folder / "combination.json"
            parts = json.loads(combination.read_text())
            recorded, now = parts["parts"][path.parent.name], digest_or_none(held[path])
            if rng.random() < 0.5:
                return "forge", held if now == recorded else {}, original
            parts["parts"][path.parent.name] = now
            text = json.dumps(parts["parts"], sort_keys=True)
            parts["sha256"] = hashlib.sha256(text.encode()).hexdigest()
            combination.write_text(json.dumps(parts))
        return "forge", held, original
    if original.kind in ("adapter", "base") and choice < 0.6:
        other = rng.choice([o for o in others if o.kind == original.kind])
        shutil.rmtree(folder)
        shutil.copytree(other.folder, folder)
        return "another", None, other
    change = rng.choice(DAMAGE)
    change(rng, path)
    return change.__name__, None, original


def forged_state(rng: random.Random, path: Path) -> tuple[str, dict | None]:
    """A checkpoint whose name has the right checksum."""
    if rng.random() < 0.5:
        evil(rng, path, "trained")
        name, held = "pickle", {}
    else:
        state = torch.load(path, weights_only=True)
        places = [(within, key) for within, key in _places(state)]
        places += [(state, name) for name in ("step", "settings", "best", "random")]
        within, key = rng.choice(places)
        strange = [*WEIRD[:24], torch.ones(3), torch.ones(3, 8, dtype=torch.int64),
                   torch.zeros(5056, dtype=torch.uint8), shared(60, list), {"score": 1.0, "trained": {}}]
        within[key] = rng.choice(strange)
        torch.save(state, path)
        name, held = "state", {path: state["trained"]} if isinstance(state.get("trained"), dict) else {}
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    path.rename(path.with_name(f"{path.name.partition('-')[0]}-{sha256[:16]}.pt"))
    return name, held
