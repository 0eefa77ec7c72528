#!/usr/bin/env python3
"""Write nano's weights, and a prompt and a prefix tuned on reverse, into docs/live-attention.html.

python docs/tools/live_attention.py                  half a minute: it trains the two
python docs/tools/live_attention.py --screenshot     and docs/live-attention.png (needs chromium and pillow)

Tensors are stored in 16 bits with a scale for each row, 2.2 MB as text. The page computes attention
from them; tests/test_live_attention.py holds it against the package.
"""

import base64
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import torch
from torch import Tensor

from docs.tools import explorer
from minipeft import GPT, Error, adapt
from minipeft.data import NANO
from minipeft.data.batches import TaskData
from minipeft.data.encoding import collate
from minipeft.data.tasks import find_task
from minipeft.data.tokenizer import ByteTokenizer
from minipeft.files.atomic import write_text
from minipeft.methods.prefix_tuning import PrefixTuning
from minipeft.methods.prompt_tuning import PromptTuning
from minipeft.runtime import console
from minipeft.training.loop import train

PAGE = ROOT / "docs" / "live-attention.html"
PICTURE = ROOT / "docs" / "live-attention.png"
PLACE = re.compile(r"(/\* data \*/\n).*?(/\* end of data \*/)", re.DOTALL)
ADAPTERS = {method.name: {"num_virtual_tokens": 8} for method in (PromptTuning, PrefixTuning)}
STEPS = 150


def packed(x: Tensor) -> dict:
    """A tensor as int16 codes times a scale for each row, both in base64; a vector is one row."""
    rows = x.detach().reshape(len(x) if x.dim() > 1 else 1, -1).float()
    scale = (rows.abs().amax(dim=1, keepdim=True) / 32767).clamp_min(1e-20)
    codes = (rows / scale).round().to(torch.int16)
    text = {name: base64.b64encode(part.numpy().tobytes()).decode()
            for name, part in (("scale", scale), ("codes", codes))}
    return {"shape": list(x.shape), **text}


def unpacked(tensor: dict) -> Tensor:
    """The tensor that the page reads."""
    scale, codes = (torch.frombuffer(bytearray(base64.b64decode(tensor[name])), dtype=dtype)
                    for name, dtype in (("scale", torch.float32), ("codes", torch.int16)))
    return (codes.view(len(scale), -1).float() * scale[:, None]).view(tensor["shape"])


def tuned(base: GPT) -> dict[str, Tensor]:
    """The rows of each of ADAPTERS, (P, C) or (P, 2·L·C), trained on reverse."""
    tokenizer, found = ByteTokenizer(), {}
    for method, h in ADAPTERS.items():
        torch.manual_seed(0)
        model, data = adapt(base, method, **h), TaskData(find_task("reverse"), tokenizer, seed=0, batch_size=16)
        train(model, lambda step, data=data: collate(data.batch(step), tokenizer.end), STEPS)
        found[method] = model.method.prompt_embeddings.detach().clone()
        model.detach()
    return found


def constants(page: str) -> dict:
    """The constants that stand in the page."""
    found = re.findall(r"^const (\w+) = (.*);$", PLACE.search(page)[0], re.MULTILINE)
    return {name: json.loads(value) for name, value in found}


def filled(page: str, base: GPT, adapters: dict[str, Tensor]) -> str:
    """The page with everything between its two marks made anew."""
    c = base.config
    data = {"SIZES": {"L": c.n_layer, "nh": c.n_head, "C": c.n_embd, "V": c.vocab_size, "END": ByteTokenizer.end},
            "WEIGHTS": {name: packed(p) for name, p in base.named_parameters()},
            "ADAPTERS": {name: packed(x) for name, x in adapters.items()}}
    text = "".join(f"const {name} = {json.dumps(value, separators=(',', ':'))};\n" for name, value in data.items())
    page, n = PLACE.subn(lambda m: f"{m[1]}{text}{m[2]}", page)
    assert n == 1, f"{PAGE} has {n} places for the data"
    return page


def take_picture() -> None:
    """Write docs/live-attention.png. Raises Error without chromium or pillow."""
    try:
        from PIL import Image
    except ImportError:
        raise Error("a picture of the page needs: pip install pillow") from None
    explorer.browse(PAGE.as_uri(), f"--screenshot={PICTURE}", "--window-size=1000,1500")
    with Image.open(PICTURE) as picture:
        few = picture.convert("RGB").quantize(256)
    few.save(PICTURE, optimize=True)


def main() -> None:
    parser = console.Parser(__doc__)
    parser.add_argument("--screenshot", action="store_true", help="also write docs/live-attention.png")
    args = parser.parse_args()
    base = GPT.from_pretrained(NANO)
    write_text(PAGE, filled(PAGE.read_text(encoding="utf-8"), base, tuned(base)))
    if args.screenshot:
        take_picture()


if __name__ == "__main__":
    raise SystemExit(console.run("live_attention.py", main))
