#!/usr/bin/env python3
"""Write the API reference, docs/reference/, from the docstrings (pip install pdoc).

python docs/tools/reference.py
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

PAGES = ROOT / "docs" / "reference"
MODULES = (
    "minipeft",
    "minipeft.methods",
    "minipeft.adapters",
    "minipeft.training.loop",
)  # public names, and modules that users call


def write(folder: Path) -> None:
    import pdoc

    pdoc.render.configure(
        show_source=False, search=False, template_directory=ROOT / "docs" / "reference_style"
    )
    pdoc.pdoc(*MODULES, output_directory=folder)


if __name__ == "__main__":
    try:
        write(PAGES)
    except ImportError:
        sys.exit("docs/tools/reference.py needs: pip install pdoc")
    print(f"{PAGES}: {len(list(PAGES.rglob('*.html')))} pages")
