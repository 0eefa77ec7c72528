"""bench.py document."""

import json
from pathlib import Path

import pytest
from folders import real_base

import bench
from minipeft import GPT, Error
from minipeft.bench import document, flags
from minipeft.data import NANO
from minipeft.data.tokenizer import ByteTokenizer
from minipeft.documents import divergence, match
from minipeft.runtime.console import Parser


def parse(module, argv: list[str]):
    p = Parser("")
    module.add_flags(p)
    return flags.parse(p, argv)


def test_the_measurement_has_a_row_for_every_way(tmp_path, capsys):
    words = ("--documents LICENSE --tokens 64 --held-out 32 --compression 1 8 --distil 8 --self-study 8 --epochs 1 "
             "--seeds 2")
    bench.main(["document", *words.split(), "--out", str(tmp_path / "d.json")])
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))
    ways = [row["way"] for row in result["rows"]]
    assert ways == ["none", "text", "match", "first", "last", "attended", "summary", "match", "distil", "distil"]
    by_way = {(row["way"], row["rows"]): row for row in result["rows"]}
    assert abs(by_way["text", 64]["kl"]) < 1e-6 > abs(by_way["match", 64]["kl"])
    assert by_way["match", 8]["bytes"] == 8 * 4 * 4 * (2 * 32 + 1) * 4  # rows, layers, heads, key and value and bias
    assert len({row["kl"] for row in result["rows"] if row["way"] == "distil"}) == 2
    assert [row["way"] for row in result["rows"] if row["study_kl"]] == ["match", "distil", "distil"]
    assert "LICENSE" in printed and "decode ms" in printed
    with pytest.raises(Error, match="too few for --compression 64"):
        bench.main(["document", "--documents", "LICENSE", "--tokens", "40", "--compression", "64"])
    for distil in ("5", "1"):
        with pytest.raises(Error, match=f"--distil {distil} must be of --compression, and above 1"):
            bench.main(["document", "--compression", "1", "8", "--distil", distil])
    with pytest.raises(Error, match="--held-out must be at least 2, not 1"):
        bench.main(["document", "--held-out", "1"])


def test_a_document_that_fills_the_base_leaves_room_for_a_summary(tmp_path):
    words = "document --documents LICENSE --tokens 9999 --held-out 2 --distil --compression"
    bench.main([*words.split(), "64", "--out", str(tmp_path / "d.json")])
    found = json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))["rows"]
    assert [row["rows"] for row in found if row["way"] == "summary"] == [1]  # there is room for no more
    with pytest.raises(Error, match="block size is 512, and 37 stand behind it: too few for --compression 512"):
        bench.main([*words.split(), "512"])


@pytest.mark.slow
def test_documents_of_one_name_and_of_several_seeds_are_told_apart(tmp_path):
    text = (Path(__file__).parent.parent / "LICENSE").read_text(encoding="utf-8")
    for folder, first in (("a", 0), ("b", 300)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.md").write_text(text[first : first + 300], encoding="utf-8")
    paths = [str(tmp_path / folder / "x.md") for folder in "ab"]
    words = "--tokens 256 --held-out 16 --compression 8 --self-study 8 --epochs 1 --seeds 2 --distil 8"
    s = document.settings(parse(document, ["--documents", *paths, *words.split()]))
    base = GPT.from_pretrained(NANO).requires_grad_(False)
    found = list(document.documents(s, base, ByteTokenizer()))
    assert [d.name for d in found] == paths
    ways = document.Ways(s, base, ByteTokenizer(), found[0])
    matched = next(row for row in ways.rows() if row["way"] == "match")
    prefix = match(base, found[0].tokens, len(found[0].tokens) // 8)
    each = [divergence(base, ways.whole, prefix, study.held).kl for study in ways.studies]
    assert len(each) == 2 and each[0] != each[1] and matched["study_kl"] == pytest.approx(sum(each) / 2)


def test_tables_are_documents_whose_questions_are_asked(tmp_path):
    words = "--base lookup --tables 2 --compression 1 4 16 --distil 16 --self-study 8 --epochs 1"
    bench.main(["document", *words.split(), "--out", str(tmp_path / "d.json")])
    found = json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))["rows"]
    assert {row["way"] for row in found} == {"none", "text", "match", "first", "last", "attended", "distil"}
    exact = {(row["document"], row["way"], row["rows"]): row["exact_match"] for row in found}
    for name in ("table 0", "table 1"):
        assert exact[name, "text", 64] == exact[name, "match", 64] > 0.9
        assert exact[name, "none", 0] < 0.3 and exact[name, "first", 4] < 0.5 < exact[name, "match", 16]
    with pytest.raises(Error, match="--tables must be at least 1, not 0"):
        bench.main(["document", "--tables", "0"])
    with pytest.raises(Error, match="a table has 64 tokens: too few for --compression 128"):
        bench.main(["document", "--base", "lookup", "--tables", "1", "--compression", "1", "128"])


def test_tables_are_for_bases_that_read_bytes(tmp_path):
    pytest.importorskip("tokenizers")
    with pytest.raises(Error, match="--tables are for a base that reads bytes, such as lookup"):
        bench.main(["document", "--base", str(real_base(tmp_path / "base")), "--tables", "1"])
