"""Flags of hyper-parameters: made from what the methods declare, each in its method's group."""

import re
import typing
from typing import Any, Literal

import pytest
import torch

import bench
import train
from minipeft import METHODS, Error
from minipeft.bench.params import SIZE_FLAGS
from minipeft.formulas.terms import Hyperparameter
from minipeft.methods.base import Method, Start, Text, Tokens
from minipeft.runtime.console import Parser
from minipeft.training import flags


def groups(page: str) -> dict[str, str]:
    """The groups of a help page by their titles."""
    found: dict[str, str] = {}
    title = ""
    for line in page.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            title = line[:-1]
        found[title] = found.get(title, "") + line + "\n"
    return found


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_help_page_has_a_group_with_every_hyperparameter(name, capsys):
    with pytest.raises(SystemExit):
        train.main(["--help", name])
    page = groups(capsys.readouterr().out)
    expected = {flags.as_flag(flag) for flag in flags.METHOD_FLAGS[name]}
    assert set(re.findall(r"^  (--[a-z-]+)", page.get(name, ""), re.MULTILINE)) == expected
    named = {flag.argument for flag in flags.METHOD_FLAGS[name].values()}
    hints = typing.get_type_hints(METHODS[name].__init__, include_extras=True)
    assert named == {key for key in METHODS[name].arguments() if hints[key] not in (Text, Text | None)}
    for key, flag in flags.METHOD_FLAGS[name].items():
        if key == flag.argument:
            assert METHODS[name].hyperparameters[key].help.split(" (")[0] in " ".join(page[name].split())


def test_the_page_of_several_methods_has_the_group_of_each(capsys):
    with pytest.raises(SystemExit):
        train.main(["--method", "lora+prefix", "--help"])
    page = groups(capsys.readouterr().out)
    assert "--r R" in page["lora"] and "--num-virtual-tokens P" in page["prefix"]


@pytest.mark.parametrize("name", METHODS)
def test_a_flag_goes_with_its_own_methods_alone(name):
    for flag, how in flags.ALL_FLAGS.items():
        value = how.settings.get("choices", ["1"])[0] if how.settings.get("action") is None else None
        argv = ["--method", name, flags.as_flag(flag), *([] if value is None else [str(value)]), "--overwrite"]
        if flag in flags.METHOD_FLAGS[name]:
            assert getattr(train.arguments(argv), flag) is not None
        else:
            with pytest.raises(Error, match=f"^{flags.as_flag(flag)} does not go with --method {name}$"):
                train.arguments(argv)


def test_bench_params_has_a_flag_for_every_size(capsys):
    with pytest.raises(SystemExit):
        bench.main(["params", "--help"])
    page = groups(capsys.readouterr().out)
    for size, methods in SIZE_FLAGS.items():
        assert f"{flags.as_flag(size)} " in page[", ".join(methods)]
    sizes = {size for method in METHODS.values() for size in method.sizes()}
    assert set(SIZE_FLAGS) == sizes & set(flags.ALL_FLAGS) and len(SIZE_FLAGS) >= 11


def method_with(name: str, hint: Any, default: Any = None) -> type[Method]:
    """A method with one hyper-parameter, of this type."""

    namespace = {"default": default}
    exec(f"def __init__(self, base, {name}=default): ...", namespace)
    namespace["__init__"].__annotations__ = {name: hint} if hint else {}
    own = {"name": "other", "hyperparameters": {name: Hyperparameter("its help")}, "__init__": namespace["__init__"]}
    return type("Other", (Method,), own, registered=False)


@pytest.mark.parametrize("hint, default, argv, value", [
    (int, 3, ["7"], 7), (int | None, None, ["7"], 7), (float, 0.5, ["2"], 2.0), (str, "a", ["b"], "b"),
    (str | None, None, ["b"], "b"), (bool, False, [], True), (Literal["a", "b"], "a", ["b"], "b"),
    (Literal["a", "b"] | None, None, ["b"], "b"), (bool | None, None, [], True),
    (list[str], None, ["a", "b"], ["a", "b"]), (str | list[str] | tuple[str, ...] | None, None, ["a"], ["a"]),
])
def test_every_type_that_a_flag_can_have(hint, default, argv, value):
    p = Parser("")
    flags.add_method_flags(p, flags.flags_from(method_with("some_size", hint, default)))
    assert p.parse_args(["--some-size", *argv]).some_size == value
    assert p.parse_args([]).some_size is None  # adapt() has the default
    assert "its help" in p.format_help()


@pytest.mark.parametrize("hint, default", [
    (dict, None), (torch.Tensor, None), (tuple[float, float], None), (list[int], None), (int | str, 1), (bool, True),
    (None, 1),
])
def test_a_type_that_no_flag_can_have_is_one_line(hint, default):
    line = "^no flag can set some_size of 'other': its type must be int, float, str, list.str., a Literal, Start, "
    with pytest.raises(Error, match=line) as e:
        flags.flags_from(method_with("some_size", hint, default))
    assert "\n" not in str(e.value)


def test_starts_and_tokens_have_flags_of_their_own():
    assert set(flags.flags_from(method_with("init", Start, "random"))) == {"init", *flags.STARTS}
    for hint in (Tokens, Tokens | None):
        assert set(flags.flags_from(method_with("tokens", hint))) == set(flags.CHOSEN)


def test_one_flag_for_two_types_is_one_line_that_names_both_methods():
    other = {"other": flags.flags_from(method_with("r", float, 0.5))}
    with pytest.raises(Error, match="^--r takes another type of value for 'lora' than for 'other': one of the"):
        flags.merge_flags(flags.METHOD_FLAGS | other)
    same = {"other": flags.flags_from(method_with("r", int, 256))}
    assert flags.merge_flags(flags.METHOD_FLAGS | same) == flags.ALL_FLAGS


@pytest.mark.parametrize("name", ["steps", "method", "out", "help", "base_dtype"])
def test_a_flag_that_train_has_itself_is_one_line_that_names_it_and_the_method(name, monkeypatch):
    more = flags.flags_from(method_with(name, int, 1))
    monkeypatch.setitem(flags.METHOD_FLAGS, "other", more)
    monkeypatch.setattr(train, "ALL_FLAGS", flags.ALL_FLAGS | more)
    line = f"^{flags.as_flag(name)} is a flag of the script itself: the hyper-parameter {name} of other needs another"
    with pytest.raises(Error, match=line):
        train.main([])
