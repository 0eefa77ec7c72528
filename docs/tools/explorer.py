#!/usr/bin/env python3
"""Write presets, defaults and names into docs/explorer.html, so that none is typed twice, and take
its picture.

python docs/tools/explorer.py                  the data between the page's two marks
python docs/tools/explorer.py --screenshot     and docs/explorer.png (needs chromium and pillow)
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, fields, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from docs.tools import drawing
from minipeft import METHODS
from minipeft.accounting import depends_on
from minipeft.accounting.parameters import with_defaults
from minipeft.accounting.shapes import PRESETS
from minipeft.config import CHOICES, LLAMA, Error, GPTConfig
from minipeft.files.atomic import write_text
from minipeft.files.huggingface import (
    CONFIG_FIELDS,
    architecture,
    block_tensors,
    config_to_json,
    outer_tensors,
    stored_name,
)
from minipeft.runtime import console

PAGE = ROOT / "docs" / "explorer.html"
PICTURE = ROOT / "docs" / "explorer.png"
PLACE = re.compile(r"(/\* data \*/\n).*?(/\* end of data \*/)", re.DOTALL)
CHOSEN = {  # the architecture choices that a folder of each model_type allows; the last takes all others
    "gpt2": {name: choices[0] for name, choices in CHOICES.items()},
    "llama": LLAMA,
    "qwen2": LLAMA | {"bias": "qkv"},
    "minipeft": {},
}


def floats(value):
    """The value for JSON, with each float as Python writes it, because the page counts the bytes of config.json."""
    if isinstance(value, float):
        return f"float:{value!r}"
    if isinstance(value, dict):
        return {name: floats(v) for name, v in value.items()}
    return [floats(v) for v in value] if isinstance(value, (list, tuple)) else value


def preset(c: GPTConfig) -> dict:
    """A preset as JSON; rope_scaling in the form of each kind of config.json."""
    stretch = c.rope_scaling and {
        "list": list(c.rope_scaling),
        "folder": config_to_json(replace(c, **LLAMA))["rope_scaling"],
    }
    return floats(asdict(c) | {"rope_scaling": stretch})


def kind(model_type: str) -> dict:
    """Choices, tensor names and config.json of a model_type.

    {i} stands for the block, {"shape": name} for a value that depends on the shape.
    """
    c = next(c for c in PRESETS.values() if architecture(c) == model_type)
    ours = CONFIG_FIELDS.get(model_type, {f.name: f.name for f in fields(GPTConfig)})
    ours = ours | {"rope_scaling": "rope_scaling", "tie_word_embeddings": "tied"}
    config = {
        key: {"shape": ours[key]} if key in ours else value
        for key, value in config_to_json(c).items()
    }
    shapes = [
        GPTConfig(
            tied=False, **LLAMA | {"bias": "qkv" if model_type in ("llama", "qwen2") else "all"}
        )
    ]
    if model_type in ("gpt2", "minipeft"):
        shapes.append(PRESETS["gpt2"])  # between them every tensor there is
    names = {name for shape in shapes for name in outer_tensors(shape)}
    names |= {f"h.{{i}}.{name}" for shape in shapes for name in block_tensors(shape)}
    return {
        "choices": CHOSEN[model_type],
        "names": {name: stored_name(name, model_type) for name in sorted(names)},
        "config": config,
    }


def defaults(method: str) -> dict:
    """A method's hyper-parameters; None for those that follow the shape."""
    one, other = (with_defaults(PRESETS[name], method, {}) for name in ("nano", "llama-7b"))
    return {name: one[name] if one[name] == other[name] else None for name in depends_on(method)}


def data() -> dict:
    return {
        "presets": {name: preset(c) for name, c in PRESETS.items()},
        "choices": CHOICES,
        "kinds": {name: kind(name) for name in CHOSEN},
        "methods": {method: defaults(method) for method in METHODS},
        "colours": drawing.COLOURS,
        "frozen": drawing.BASE,
    }


def filled(page: str) -> str:
    """The page with everything between its two marks made anew."""
    text = ",\n".join(f"{json.dumps(name)}: {json.dumps(part)}" for name, part in data().items())
    page, n = PLACE.subn(lambda m: f"{m[1]}const DATA = {{\n{text}\n}};\n{m[2]}", page)
    assert n == 1, f"{PAGE} has {n} places for the data"
    return page


def files() -> dict[Path, str]:
    """The file that this tool fills, and its text; the picture is taken with --screenshot."""
    return {PAGE: filled(PAGE.read_text(encoding="utf-8"))}


def chromium() -> str | None:
    """Path of a browser that runs without a window, or None."""
    return next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )


def browse(url: str, *flags: str) -> str:
    """Open the page in chromium with these flags; returns its output. Raises Error if that fails."""
    if (program := chromium()) is None:
        raise Error("opening the page needs chromium")
    quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    quiet += "--disable-component-update --disable-sync --hide-scrollbars"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, *quiet.split(), f"--user-data-dir={profile}", *flags, url]
        done = subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", timeout=120
        )
    if done.returncode:
        raise Error(
            f"{program} failed with exit code {done.returncode}: {done.stderr.strip()[-200:]!r}"
        )
    return done.stdout


def take_picture() -> None:
    """Write docs/explorer.png in 256 colours, a third of the size. Raises Error without chromium or pillow."""
    try:
        from PIL import Image
    except ImportError:
        raise Error("a picture of the page needs: pip install pillow") from None
    browse(PAGE.as_uri(), f"--screenshot={PICTURE}", "--window-size=1280,1930")
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
