#!/usr/bin/env python3
"""Every method on a real model and real data: SmolLM2-135M writes restaurant descriptions (E2E NLG)
after 500 examples.

python docs/tools/e2e.py --base SMOLLM2_FOLDER --e2e FOLDER_WITH_devset.csv_AND_testset_w_refs.csv

E2E (Novikova et al. 2017, 1706.09254) is the task on which prefix tuning was introduced (Li &
Liang 2021, table 1). Low data: 500 pairs to train on and 100 to choose by, both from devset.csv;
the report is on 200 meaning representations of testset_w_refs.csv with all their references. The
order of things:

    1. hard prompts: the wordings below, the best by its loss on the dev pairs
    2. every trained method at two learning rates, one epoch each, the better by its loss on the
    dev pairs
    3. every trained method at that rate, --epochs over the 500 pairs, answers to the 200 scored by
    BLEU and chrF

Prompt and prefix start from the hard prompt (the ladder), the others from the bare base. One
process a run, so that peak memory is its own.
"""

import argparse
import csv
import json
import shlex
import subprocess
import sys
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from minipeft.bench.quality.real import TEMPLATE, WORDING, fifth
from minipeft.files.atomic import write_json

WORDINGS = [
    "<|im_start|>user\nWrite one sentence about this restaurant: ",
    "<|im_start|>user\nTurn these facts into one natural sentence and leave none of them out: ",
    "<|im_start|>user\nDescribe the restaurant in a single sentence, using all of these "
    "attributes: ",
    "<|im_start|>user\nPut the following data about a place to eat into words: ",
    WORDING,  # shows one example
]
RATES = {
    "prompt": (3e-3, 3e-2),
    "prefix": (3e-3, 3e-2),
    "lora": (5e-4, 2e-3),
    "adapter": (5e-4, 2e-3),
    "full": (2e-5, 1e-4),
}


def split(e2e: Path, out: Path) -> None:
    """Write train.csv (500 pairs), dev.csv (100 pairs) and test.csv (200 inputs, all their references).

    No meaning representation is in two of them.
    """

    def rows(name: str) -> list[dict]:
        with open(e2e / name, encoding="utf-8", newline="") as f:
            return list(csv.DictReader(f))

    def write(name: str, chosen: list[dict]) -> None:
        with open(out / name, "w", encoding="utf-8", newline="") as f:
            writer = csv.DictWriter(f, ["mr", "ref"])
            writer.writeheader()
            writer.writerows(chosen)

    out.mkdir(parents=True, exist_ok=True)
    rng = Random(0)
    known, unseen = rows("devset.csv"), rows("testset_w_refs.csv")
    for_dev = fifth((row["mr"] for row in known), rng)
    write("train.csv", rng.sample([row for row in known if row["mr"] not in for_dev], 500))
    write("dev.csv", rng.sample([row for row in known if row["mr"] in for_dev], 100))
    asked = set(rng.sample(list(dict.fromkeys(row["mr"] for row in unseen)), 200))
    write("test.csv", [row for row in unseen if row["mr"] in asked])


def tune(args, name: str, *flags) -> dict:
    """One run of train.py, unless its folder has one; returns its scores.json, without local paths."""
    data, out = args.out / "data", args.out / name
    flags = [
        "--base",
        args.base,
        "--data",
        data / "train.csv",
        "--dev",
        data / "dev.csv",
        *flags,
        "--out",
        out,
        "--template",
        TEMPLATE,
    ]
    command = ["train.py", *map(str, flags)]
    scores = out / "scores.json"
    made_by = json.loads(scores.read_text(encoding="utf-8"))["command"] if scores.exists() else ""
    if made_by.removesuffix(" --overwrite") != shlex.join(["python", *command]):
        print(f"\n{name}", flush=True)
        again = ["--overwrite"] if scores.exists() else []
        subprocess.run([sys.executable, *command, *again], cwd=ROOT, check=True)
    text = scores.read_text(encoding="utf-8")
    for path, shown in ((str(args.out), "runs/e2e"), (str(args.base), "SMOLLM2_FOLDER")):
        text = text.replace(json.dumps(path)[1:-1], shown)
    return json.loads(text)


def samples(out: Path) -> list[dict]:
    """The first three answers of a run."""
    with open(out / "answers.jsonl", encoding="utf-8") as f:
        return [
            {key: row[key] for key in ("input", "answer")} for row in map(json.loads, list(f)[:3])
        ]


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--base",
        required=True,
        help="folder of SmolLM2-135M-Instruct, or of another model with ChatML marks",
    )
    p.add_argument(
        "--e2e", required=True, type=Path, help="folder with devset.csv and testset_w_refs.csv"
    )
    p.add_argument("--epochs", type=int, default=3, help="over the 500 pairs (default: 3)")
    p.add_argument(
        "--out",
        type=Path,
        default=ROOT / "runs" / "e2e",
        help="where runs go; those already there are not run again",
    )
    p.add_argument("--result", type=Path, default=ROOT / "docs" / "results" / "e2e-smollm2.json")
    args = p.parse_args()
    args.out = args.out.resolve()
    args.base = Path(args.base).resolve() if Path(args.base).is_dir() else args.base
    split(args.e2e, args.out / "data")

    report = ["--test", args.out / "data" / "test.csv", "--answers", 200]
    frozen = ["--base-dtype", "bfloat16"]
    results = {
        "hard-prompt": tune(
            args,
            "hard-prompt",
            "--method",
            "hard-prompt",
            *frozen,
            "--wordings",
            *WORDINGS,
            *report,
        )
    }
    probes = {}
    for method, rates in RATES.items():
        flags = ["--method", method, *(["--dtype", "bfloat16"] if method == "full" else frozen)]
        if method in ("prompt", "prefix"):
            flags += ["--init-from", args.out / "hard-prompt"]
        probes[method] = {
            lr: tune(args, f"{method}-{lr:g}", *flags, "--lr", lr, "--epochs", 1)["dev_loss"]
            for lr in rates
        }
        best = min(probes[method], key=probes[method].get)
        results[method] = tune(args, method, *flags, "--lr", best, "--epochs", args.epochs, *report)
    result = {
        "command": "python docs/tools/e2e.py --base SMOLLM2_FOLDER --e2e E2E_FOLDER",
        "epochs": args.epochs,
        "wordings": WORDINGS,
        "template": TEMPLATE,
        "card": results["full"]["card"],
        "probes": probes,
        "runs": results,
        "samples": {method: samples(args.out / method) for method in results},
    }
    write_json(args.result, result)


if __name__ == "__main__":
    main()
