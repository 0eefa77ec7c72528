"""The API reference is made from docstrings, and there is one for everything that the package names."""

import inspect
import re

import pytest

import minipeft
from docs.tools import reference
from minipeft import METHODS, accounting


def test_the_reference_has_a_page_with_a_text_for_everything_public(tmp_path):
    pytest.importorskip("pdoc")
    reference.write(tmp_path)
    for module, page in ((minipeft, "minipeft.html"), (accounting, "minipeft/accounting.html")):
        html = (tmp_path / page).read_text(encoding="utf-8")
        anchors = set(re.findall(r'id="([\w.-]+)"', html))
        for name in module.__all__:
            assert name in anchors or inspect.ismodule(getattr(module, name)), (
                f"{page} has nothing on {name}"
            )
    for method in METHODS.values():
        page = tmp_path / "minipeft" / "methods" / f"{method.__module__.rpartition('.')[2]}.html"
        assert f'id="{method.__name__}"' in page.read_text(encoding="utf-8") and inspect.getdoc(
            method
        )


@pytest.mark.parametrize("module", [minipeft, accounting])
def test_what_is_public_says_what_it_is(module):
    for name in module.__all__:
        thing = getattr(module, name)
        if inspect.isfunction(thing) or (inspect.isclass(thing) and not hasattr(thing, "_fields")):
            assert inspect.getdoc(thing), f"{module.__name__}.{name} has no docstring"
