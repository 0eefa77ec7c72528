#!/usr/bin/env python3
"""Write the ledger into docs/explorer.html as JavaScript, and take the page's picture.

python docs/tools/explorer.py                  what stands between the page's two marks
python docs/tools/explorer.py --screenshot     and docs/explorer.png (needs chromium and pillow)

The closed forms are those of minipeft.accounting, run on symbols for every combination of choices that
they read (forms.py). The page holds no formula and no name of a method: a new method in METHODS
appears in it by running this command.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from docs.tools import drawing, forms, open_shapes
from docs.tools.ledger_terms import OF_WHOLE, QUANTITIES, SHORT
from minipeft import METHODS, Error
from minipeft.accounting.shapes import PRESETS
from minipeft.config import GPTConfig
from minipeft.files.atomic import write_text
from minipeft.formulas.symbols import GLOSSARY
from minipeft.runtime import console

PAGE = ROOT / "docs" / "explorer.html"
PICTURE = ROOT / "docs" / "explorer.png"
FIELDS = {"n_layer": "L", "n_embd": "C", "n_head": "nh", "head_size": "hs", "n_kv_head": "nkv", "n_inner": "M",
          "vocab_size": "V", "block_size": "N", "sliding_window": "W", "every": "every"}  # their symbols
AS_TOLD = ("tied", "n_layer", "n_head", "head_size", "n_kv_head", "n_inner", "vocab_size", "block_size",
           "sliding_window", "layer_norm_epsilon", "rope_theta", "rope_local_base_freq")
PLACE = re.compile(r"(/\* data \*/\n).*?(/\* end of data \*/)", re.DOTALL)


def preset(c: GPTConfig) -> dict:
    """A shape as JSON: floats as Python writes them, because the page counts the bytes of config.json."""
    family = open_shapes.family(c)
    flat = {"family": family, **{name: getattr(c, name) for name in AS_TOLD}}
    flat |= {"n_embd": c.n_embd if family in open_shapes.OWN_HEAD_SIZE else None,
             "every": c.sliding_window_pattern or c.no_rope_layer_interval,
             "rope_scaling": c.rope_scaling is not None}
    if c.rope_scaling:
        flat |= {f"rope_scaling_{name}": value for name, value in c.rope_scaling._asdict().items()}
    return {name: f"float:{value!r}" if isinstance(value, float) else value for name, value in flat.items()}


def data() -> dict:
    """{name: value} of the constants that the page's scripts read; formulas as JavaScript text."""
    pool = forms.Pool()
    emitted = {method: forms.method(pool, method) for method in METHODS}
    base, shape = forms.base(pool), forms.shape(pool)
    return {
        "PRESETS": {name: preset(c) for name, c in PRESETS.items()},
        "FAMILIES": {family: open_shapes.choices_of(family) for family in open_shapes.ON_PAGE},
        "CHOICES": open_shapes.CHOSEN, "FIELDS": FIELDS, "SHAPE": shape, "BASE": base, "METHODS": emitted,
        "SHORT": SHORT, "OF_WHOLE": OF_WHOLE, "GLOSSARY": GLOSSARY | QUANTITIES, "COLOURS": drawing.COLOURS,
        "TREES": pool.trees, "FORMULAS": pool.formulas}


def filled(page: str) -> str:
    """The page with everything between its two marks made anew."""
    text = "".join(f"const {name} = {lines(value)};\n" for name, value in data().items())
    page, n = PLACE.subn(lambda m: f"{m[1]}{text}{m[2]}", page)
    assert n == 1, f"{PAGE} has {n} places for the data"
    return page


def lines(value) -> str:
    """The value as JavaScript, one entry a line."""
    def shown(x) -> str:
        return f"[{json.dumps(x.text, ensure_ascii=False)}, (s) => {x.code}]" if isinstance(x, forms.Formula) else (
            json.dumps(x, ensure_ascii=False, separators=(",", ":")))

    if isinstance(value, dict):
        return "{\n" + "".join(f"{json.dumps(name)}: {shown(x)},\n" for name, x in value.items()) + "}"
    return "[\n" + "".join(f"{shown(x)},\n" for x in value) + "]"


def files() -> dict[Path, str]:
    """The file that this tool fills, and its text; the picture is taken with --screenshot."""
    return {PAGE: filled(PAGE.read_text(encoding="utf-8"))}


def chromium() -> str | None:
    """Path of a browser that runs without a window, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def browse(url: str, *flags: str) -> str:
    """Open the page in chromium with these flags; returns its output. Raises Error if that fails."""
    if (program := chromium()) is None:
        raise Error("opening the page needs chromium")
    quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    quiet += "--disable-component-update --disable-sync --hide-scrollbars"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, *quiet.split(), f"--user-data-dir={profile}", *flags, url]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120)
    if done.returncode:
        raise Error(f"{program} failed with exit code {done.returncode}: {done.stderr.strip()[-200:]!r}")
    return done.stdout


def take_picture() -> None:
    """Write docs/explorer.png in 256 colours, a third of the size. Raises Error without chromium or pillow."""
    try:
        from PIL import Image
    except ImportError:
        raise Error("a picture of the page needs: pip install pillow") from None
    browse(PAGE.as_uri(), f"--screenshot={PICTURE}", "--window-size=1280,2070")
    with Image.open(PICTURE) as picture:
        few = picture.convert("RGB").quantize(256)
    few.save(PICTURE, optimize=True)


def main() -> None:
    parser = console.Parser(__doc__)
    parser.add_argument("--screenshot", action="store_true", help="also write docs/explorer.png")
    args = parser.parse_args()
    write_text(PAGE, filled(PAGE.read_text(encoding="utf-8")))
    if args.screenshot:
        take_picture()


if __name__ == "__main__":
    raise SystemExit(console.run("explorer.py", main))
