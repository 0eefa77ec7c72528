"""Files of other programs: the page's tables, some of their rows again, and the mends they led to."""

import json
import pickle
import re
import sys

import pytest
import torch

from docs.tools import compatibility, refresh, tables, writers
from minipeft import GPT, Error, GPTConfig
from minipeft.data.files import read_examples
from minipeft.files.tensors import read_torch

SMALL = GPTConfig(vocab_size=97, block_size=64, n_layer=2, n_head=4, n_embd=32)
AGAIN = {  # text of some lines -> programs they need, and what comes of them
    "GPT2Config() model.double()": (["transformers"], {"opens"}),
    "GPT2Config() save_model": (["transformers", "safetensors"], {"opens"}),
    "GPT2Config(activation_function": (["transformers"], {"opens", "refused"}),
    "PEFT Llama LoraConfig(target_modules=[": (["transformers", "peft"], {"opens", "refused"}),
    "PEFT Llama PrefixTuning": (["transformers", "peft"], {"opens"}),
    "CHATML": (["transformers", "jinja2"], {"opens"}),
    "csv.writer": ([], {"opens", "refused"}),
    "json.dump": ([], {"opens", "refused"}),
}


@pytest.fixture(scope="module")
def again():
    return compatibility.measure([sys.executable], AGAIN)["rows"]


@pytest.mark.slow
@pytest.mark.parametrize("only", AGAIN)
def test_some_rows_again(only, again):
    """With the versions at hand; a row of these versions comes out as in the result file."""
    packages, outcomes = AGAIN[only]
    for package in packages:
        pytest.importorskip(package)
    found = [row for row in again if only in line(row)]
    assert {row["outcome"] for row in found} == outcomes
    before = {key(row): row for row in compatibility.result()["rows"]}
    for row in found:
        known = before.get(key(row), row)
        assert (row["outcome"], row["line"]) == (known["outcome"], known["line"])


def line(row: dict) -> str:
    return " ".join(filter(None, (row[k] for k in ("program", "on", "holds", "saved"))))


def key(row: dict) -> tuple:
    return tuple(row[k] for k in ("program", "version", "on", "holds", "saved", "ending"))


def test_the_result_file_is_of_several_versions_and_has_no_fault():
    result = compatibility.result()
    versions = {}
    for row in result["rows"]:
        versions.setdefault(row["program"], set()).add(row["version"])
        assert row["outcome"] in ("opens", "refused") and bool(row["line"]) >= (row["outcome"] == "refused")
        assert row.get("difference", 0) <= compatibility.TOLERANCE
        assert not re.search(r"Traceback|/tmp|/home", row["line"])
    assert len(result["rows"]) >= 60
    assert len(versions["PEFT"]) >= 3 and len(versions["transformers"]) >= 2 and len(versions["pandas"]) >= 2
    assert {"torch", "safetensors", "gguf", "Python"} <= set(versions)


def test_every_row_is_in_one_table_of_the_page():
    rows = compatibility.result()["rows"]
    for row in rows:
        assert sum(of(row) for of in compatibility.GROUPS.values()) == 1, row
    page = (refresh.ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    assert set(compatibility.BLOCKS) == {m[2] for m in tables.PLACE.finditer(page)}
    lines = [compatibility.group(name) for name in compatibility.GROUPS]
    for row in rows:
        assert any(compatibility.code(row["saved"]) in text for text in lines) or row["saved"] == writers.SAVE


def test_a_wrong_number_and_another_error_are_faults(tmp_path):
    GPT(SMALL).save_pretrained(tmp_path / "base")
    row = {"program": "torch", "on": "", "ending": "", "path": "base"}
    logits = GPT.from_pretrained(tmp_path / "base")(compatibility.IDS).detach()
    for expected, outcome in ((logits, "opens"), (logits * 1.001, "wrong"), (logits * torch.nan, "wrong")):
        torch.save({"logits": expected}, tmp_path / "base.expected")
        assert compatibility.tried(row, tmp_path)["outcome"] == outcome
    torch.save({"logits": logits[:, :, :50]}, tmp_path / "base.expected")
    assert compatibility.tried(row, tmp_path)["line"].startswith("RuntimeError")


@pytest.mark.parametrize("name", ["lm_head.weight", "transformer.wte.weight"])
def test_tied_weights_open_under_either_name(name, tmp_path):
    base = GPT(SMALL)
    base.save_pretrained(tmp_path, safe_serialization=False)
    tensors = read_torch(tmp_path / "pytorch_model.bin")
    tensors[name] = tensors.pop("transformer.wte.weight")
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["minipeft"]  # the checksum, which another program does not write
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert torch.equal(GPT.from_pretrained(tmp_path)(compatibility.IDS), base(compatibility.IDS))


def test_files_of_other_kinds_are_named(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    for path in (tmp_path, tmp_path / "model.gguf"):
        with pytest.raises(Error, match="GGUF is not read: take the Hugging Face folder"):
            GPT.from_pretrained(path)
    torch.save({"a": torch.ones(2)}, tmp_path / "a.bin", pickle_protocol=pickle.HIGHEST_PROTOCOL)
    with pytest.raises(Error, match=f"pickle_protocol {pickle.HIGHEST_PROTOCOL}: save it again with 2"):
        read_torch(tmp_path / "a.bin")
    for name in ("a.tsv", "a.json"):
        (tmp_path / name).write_text("input\ttarget\n", encoding="utf-16")
        with pytest.raises(Error, match="not UTF-8 text .*, but UTF-16: save it as UTF-8"):
            read_examples(tmp_path / name)
    (tmp_path / "a.tsv").write_text('"input"\t"target"\n"a"\t"b"\n', encoding="utf-8")
    with pytest.raises(Error, match="line 1 holds .*input.*, quoted as in a CSV: a TSV has no quoting"):
        read_examples(tmp_path / "a.tsv")
