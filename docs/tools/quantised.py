#!/usr/bin/env python3
"""One real base in bfloat16, int8 and NF4, tuned alike: SmolLM2-135M on restaurant descriptions (E2E NLG).

python docs/tools/quantised.py --base SMOLLM2_FOLDER --e2e FOLDER_WITH_devset.csv_AND_testset_w_refs.csv

Data, wording, template and learning rates are those of docs/tools/e2e.py, with fewer examples. Every method is tuned
once on each base, and by as many seeds as --seeds says on bfloat16, whose scatter the others are held against: the seed
draws the examples and their order. One process a run, so that peak memory is its own. Before them the logits of the
untuned bases are compared with those in float32, on the inputs and references that are reported on.
"""

import argparse
import csv
import sys
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from docs.tools import e2e
from minipeft import GPT
from minipeft.accounting import base_weight_bytes
from minipeft.bench.quality.real import TEMPLATE, WORDING
from minipeft.data.batches import thinned
from minipeft.data.encoding import collate, tokenize
from minipeft.data.files import read_examples
from minipeft.data.template import Template
from minipeft.data.tokenizer import tokenizer_for
from minipeft.files.atomic import write_json
from minipeft.parts.quantised_base import dtype_named
from minipeft.runtime.profiling import card

LIKE, DTYPES = "bfloat16", ("bfloat16", "int8", "nf4")
FLAGS = {  # of each method: its start, and the better learning rate of docs/results/e2e-smollm2.json
    "prefix": ["--init-from-text", WORDING, "--lr", 3e-2],
    "prompt": ["--init-from-text", WORDING, "--lr", 3e-2],
    "lora": ["--lr", 2e-3],
}
COMPARED = 40  # pairs whose logits are compared


def few(path: Path, inputs: int, out: Path) -> None:
    """Write the rows of the first so many inputs, all their references."""
    with open(path, encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    asked = list(dict.fromkeys(row["mr"] for row in rows))[:inputs]
    with open(out, "w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, ["mr", "ref"])
        writer.writeheader()
        writer.writerows(row for row in rows if row["mr"] in asked)


@torch.no_grad()
def logits(folder: str, data: Path) -> dict[str, dict]:
    """By dtype, against float32 at the supervised positions: the mean divergence KL(float32 ‖ dtype) in nats, the share
    of positions with the same most likely token, and the norm of the logits' difference over that of the logits."""
    exact, template = GPT.from_pretrained(folder, torch.float32), Template(TEMPLATE)
    tokenizer = tokenizer_for(exact.config.vocab_size, folder)
    records = [tokenize(e, tokenizer, template) for e in thinned(read_examples(data), COMPARED)]
    batches = [collate([r], tokenizer.end) for r in records]
    wanted, found = [exact(idx)[targets != -100] for idx, targets in batches], {}
    for dtype in DTYPES:
        base, sums = GPT.from_pretrained(folder, dtype_named(dtype)), []
        for (idx, targets), x in zip(batches, wanted, strict=True):
            y = base(idx)[targets != -100].float()
            kl = F.kl_div(y.log_softmax(-1), x.log_softmax(-1), log_target=True, reduction="none").sum(-1)
            error = (y - x).norm(dim=-1) / x.norm(dim=-1)
            sums += zip(kl.tolist(), (x.argmax(-1) == y.argmax(-1)).tolist(), error.tolist(), strict=True)
        kl, same, error = map(fmean, zip(*sums, strict=True))
        found[dtype] = {"kl": kl, "same_token": same, "relative_error": error, "positions": len(sums),
                        "base_bytes": base_weight_bytes(base.config, dtype)}
    return found


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--base", required=True, help="folder of SmolLM2-135M-Instruct, or of another model with ChatML")
    p.add_argument("--e2e", required=True, type=Path, help="folder with devset.csv and testset_w_refs.csv")
    p.add_argument("--examples", type=int, default=200, metavar="N", help="to train on (default: 200)")
    p.add_argument("--epochs", type=int, default=1, metavar="E", help="over them (default: 1)")
    p.add_argument("--answers", type=int, default=40, metavar="N", help="inputs to answer (default: 40)")
    p.add_argument("--seeds", type=int, default=3, metavar="N", help=f"runs on {LIKE} of each method (default: 3)")
    p.add_argument("--out", type=Path, default=ROOT / "runs" / "quantised",
                   help="where runs go; those already there are not run again")
    p.add_argument("--result", type=Path, default=ROOT / "docs" / "results" / "quantised-smollm2.json")
    args = p.parse_args()
    args.out, args.base = args.out.resolve(), str(Path(args.base).resolve())
    e2e.split(args.e2e, args.out / "data")
    test = args.out / "data" / "few.csv"
    few(args.out / "data" / "test.csv", args.answers, test)
    result = {
        "command": "python docs/tools/quantised.py --base SMOLLM2_FOLDER --e2e E2E_FOLDER",
        "card": card(torch.device("cpu")),
        "settings": {name: getattr(args, name) for name in ("examples", "epochs", "answers", "seeds")},
        "logits": logits(args.base, test), "runs": []}
    for dtype in DTYPES:
        for method, flags in FLAGS.items():
            for seed in range(args.seeds if dtype == LIKE else 1):
                name = f"{method}-{dtype}-{seed}"
                scores = e2e.tune(
                    args, name, "--test", test, "--answers", args.answers, "--method", method, *flags,
                    "--base-dtype", dtype, "--limit", args.examples, "--epochs", args.epochs, "--seed", seed)
                result["runs"].append({"base_dtype": dtype, "method": method, "seed": seed, **scores})
    write_json(args.result, result)


if __name__ == "__main__":
    main()
