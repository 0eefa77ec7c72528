"""Chat template of a Hugging Face folder: jinja, a program in a file, so run in a sandbox."""

import json
import re
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path

from ..checks import Error, shown
from ..files.atomic import file_exists, read_json

ANSWER = "its-answer"
DATE = datetime(2024, 7, 26)  # also the default of Llama 3's templates


class ChatTemplate:
    """The template of chat_template.jinja or tokenizer_config.json, as transformers renders it.

    It is not told today's date (`strftime_now`), which would make every day's prompts different:
    a template that asks whether it is defined takes its own default, any other gets DATE.
    Raises Error where jinja2 is missing, or for a template that is none.
    """

    def __init__(self, path: Path, source: str, tokens: dict[str, str]):
        try:
            from jinja2 import TemplateError
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError:
            raise Error(f"the chat template of {path} needs: pip install jinja2") from None

        def refuse(message):
            raise TemplateError(message)

        self.path, self.tokens = path, tokens
        sandbox = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        sandbox.globals["raise_exception"] = refuse
        if not re.search(r"\bstrftime_now\s+is\s+(not\s+)?defined\b", source):
            sandbox.globals["strftime_now"] = DATE.strftime
        sandbox.filters["tojson"] = partial(json.dumps, ensure_ascii=False)  # jinja's escapes HTML
        # transformers' own tag around an answer, which only marks it for a loss
        source = re.sub(r"({%[-+]?\s*)generation\b", r"\1if true", source)
        source = re.sub(r"({%[-+]?\s*)endgeneration\b", r"\1endif", source)
        try:
            self.template = sandbox.from_string(source)
        except Exception as e:  # of the parser, or the compiler
            raise self._error(e) from None

    @classmethod
    def find(cls, folder: Path) -> "ChatTemplate | None":
        """The folder's template; None if it has none."""
        path, file = folder / "tokenizer_config.json", folder / "chat_template.jinja"
        config = read_json(path) if file_exists(path) else {}
        source = config.get("chat_template")
        if file_exists(file):  # goes first, as in transformers
            path = file
            try:
                source = file.read_bytes().decode("utf-8")
            except (OSError, UnicodeDecodeError) as e:
                raise Error(f"{file} cannot be read ({type(e).__name__})") from None
        if isinstance(source, list):  # several by name
            source = next((t.get("template") for t in source
                           if isinstance(t, dict) and t.get("name") == "default"), None)
        if source is None:
            return None
        if not isinstance(source, str):
            raise Error(f"{path}: chat_template must be a text, not {shown(source)}")
        return cls(path, source, read_special_tokens(folder))

    def prompt(self, turns) -> str:
        """The text of (role, content) turns, up to where the assistant's answer begins."""
        return self._render(turns, add_generation_prompt=True)

    @cached_property
    def opening(self) -> str:
        """The spaces between a prompt and the assistant's answer: " " in Llama 2's, "" in most."""
        prompt = self.prompt([("user", "a")])
        between = self._answered[0].removeprefix(prompt)
        return between if between.isspace() else ""

    @cached_property
    def ending(self) -> str:
        """The text that follows the assistant's answer."""
        return self._answered[2]

    @cached_property
    def _answered(self) -> tuple[str, str, str]:
        """The text up to an answer, the answer, and the text behind it."""
        text = self._render([("user", "a"), ("assistant", ANSWER)], add_generation_prompt=False)
        return text.partition(ANSWER)

    def _render(self, turns, add_generation_prompt: bool) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        try:
            return self.template.render(messages=messages, tools=None, documents=None, **self.tokens,
                                        add_generation_prompt=add_generation_prompt)
        except Exception as e:  # a program may fail in any way
            raise self._error(e, f", given {', '.join(role for role, _ in turns)}") from None

    def _error(self, e: Exception, given: str = "") -> Error:
        reason = " ".join(str(e).split())[:200]
        return Error(f"the chat template of {self.path} fails{given}: {type(e).__name__}: {reason}")


def read_special_tokens(folder: Path) -> dict[str, str]:
    """Special tokens that a folder's files name (bos_token, …), as transformers reads them."""
    config, older = (read_json(path) if file_exists(path) else {} for path in
                     (folder / "tokenizer_config.json", folder / "special_tokens_map.json"))
    tokens = {}
    for file in (config,) if "added_tokens_decoder" in config else (config, older):
        tokens |= {name: t for name, t in file.items() if name.endswith("_token")}
        for name in ("model_specific_special_tokens", "extra_special_tokens"):
            named = file.get(name)
            tokens |= named if isinstance(named, dict) else {}  # else a list, without names
    texts = {name: t.get("content") if isinstance(t, dict) else t for name, t in tokens.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}
