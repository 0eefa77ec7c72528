"""bench.py quality --again: a line is compared exactly on the same kind of machine, by a tolerance on another."""

import json
from dataclasses import replace

import pytest
import torch
from tiny_cell import TINY

from minipeft.bench import measure
from minipeft.bench.quality import again, real
from minipeft.runtime import profiling


def test_of_two_machines_it_names_what_rounds_differently():
    card = {"device": "AMD EPYC", "device_type": "cpu", "threads": 1, "cores": 2, "platform": "P", "python": "3",
            "torch": "2", "commit": "c"}
    avx2, avx512 = card | {"instructions": "AVX2"}, card | {"instructions": "AVX512"}
    line, variables = measure.card_line(avx2), "ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2"
    assert again.machines(avx2, avx2) == f"then on {line}; now on {line}" and "AMD EPYC with AVX2" in line
    for then, its in ((card, "not recorded"), (avx2, "AVX2")):  # lines from before it was noted do not say
        assert again.machines(then, avx512).endswith(
            f"; other vector instructions: {its} then, AVX512 now, `{variables}` in front of the command takes AVX2")
    # a CPU without AVX512 cannot use it
    assert again.machines(avx512, avx2).endswith("; other vector instructions: AVX512 then, AVX2 now")
    onednn = avx512 | {"matmul": "oneDNN"}
    assert again.machines(avx512, onednn).endswith("; other matmul library: torch then, oneDNN now, "
                                                   "`MINIPEFT_MATMUL=torch` in front of the command takes torch's")
    assert again.machines(avx2, onednn).endswith(f"`{variables}` in front of the command takes AVX2")  # and torch's
    assert "AVX512, float32 products by oneDNN" in measure.card_line(onednn)
    intel = avx2 | {"device": "Virtual CPU", "vendor": "Intel"}
    assert again.machines(avx2, intel).endswith("commit c; other CPU vendor: AMD then, Intel now")
    assert "Virtual CPU (Intel) with AVX2" in measure.card_line(intel)
    assert "ATEN" not in again.machines(avx2, intel | {"instructions": "AVX512"})  # it would not help
    assert again.machines(avx2, avx2 | {"torch": "3"}).endswith("; other torch: 2 then, 3 now")
    gpu = card | {"device": "G", "device_type": "cuda"}
    assert again.machines(avx2, gpu).endswith("; other device: AMD EPYC then, G now")
    assert again.machines(gpu, gpu | {"device": "H"}).endswith("; other device: G then, H now")


@pytest.mark.parametrize("system, cpuinfo, processor, expected", [
    ("Linux", "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n", "",
     ("AMD EPYC", "AMD", "family 25, model 17")),
    ("Linux", "vendor_id\t: GenuineIntel\nmodel name\t: Virtual: CPU\n", "", ("Virtual: CPU", "Intel", "")),
    ("Linux", "CPU implementer\t: 0x41\n", "", ("aarch64", "0x41", "")),
    ("Windows", None, "Intel64 Family 6, GenuineIntel", ("Intel64 Family 6, GenuineIntel", "Intel", "")),
    ("macOS", None, "arm", ("arm", "Apple", "")),
])
def test_the_card_names_vendor_and_generation_of_the_cpu(system, cpuinfo, processor, expected, monkeypatch):
    def read_text(path, **_):
        if cpuinfo is None:
            raise FileNotFoundError(path)
        return cpuinfo

    monkeypatch.setattr(profiling.Path, "read_text", read_text)
    monkeypatch.setattr(profiling.platform, "processor", lambda: processor)
    monkeypatch.setattr(profiling.platform, "machine", lambda: "aarch64")
    card = profiling.card(torch.device("cpu"))
    assert (card["device"], card["vendor"], card["generation"]) == expected
    assert card["instructions"] == torch.backends.cpu.get_cpu_capability()


def test_scores_of_another_kind_of_cpu_are_compared_by_a_tolerance(tmp_path, monkeypatch):
    card = {"device": "C", "device_type": "cpu", "vendor": "A", "instructions": "I", "torch": "2", "threads": 1,
            "cores": 2, "platform": "P", "python": "3", "commit": "c"}
    line = {"cell": json.loads(TINY.key), "score": 0.5, "loss": 1.0, "trained": 8, "card": card}
    path, other = tmp_path / "lines.jsonl", {"card": card | {"vendor": "B"}}
    path.write_text(json.dumps(line) + "\n", encoding="utf-8")
    for change, same, close, verdict in (
        ({}, True, False, ": the same"),
        ({"known": {"off": [1.0, 0.0]}}, True, False, ": the same"),  # which older lines lack
        ({"wording": "another"}, False, False, ": not the same (wording;"),
        ({"score": 0.52}, False, False, ": not the same (score; then on"),  # exactly, on the same kind
        (other, True, True, ": the same"),
        (other | {"score": 0.55, "loss": 1.5}, False, True, "now: score within 0.05, but not the same (score, loss;"),
        (other | {"score": 0.56}, False, False, "now: not the same (score;"),
        (other | {"trained": 9}, False, False, "now: not the same (trained;"),  # no rounding does that
    ):
        monkeypatch.setattr(again, "run_cell", lambda *_, change=change: line | change)
        result = again.run(path, 1, {}, "cpu")
        assert (result["same"], result["close"]) == (same, close) and verdict in again.table(result)


def test_what_a_real_model_forgets_is_compared_on_the_text_of_one_python(tmp_path, monkeypatch):
    of = replace(real.cell("prompt", 8, "topics"), lr=0.1)
    line = {"cell": json.loads(of.key), "score": 0.5, "loss": 1.0, "known": {"before": [1.0, 0.1]},
            "card": {"device": "AMD X", "device_type": "cpu", "torch": "2", "python": "3.11.7"}}
    (tmp_path / "lines.jsonl").write_text(json.dumps(line) + "\n")
    for python, same in (("3.11.7", False), ("3.12.1", True)):
        now = line | {"known": {"before": [2.0, 0.1]}, "card": line["card"] | {"python": python}}
        monkeypatch.setattr(again, "run_cell", lambda *_, now=now: now)
        assert again.run(tmp_path / "lines.jsonl", 1, {}, "cpu")["same"] == same
