"""The text of a prompt: a template with {input} in it, or a chat."""

from ..checks import Error
from .tasks import Example
from .tokenizer import Tokenizer

DEFAULT = "{input} -> "
CHAT_TURN = "<|im_start|>{role}\n{content}<|im_end|>\n"  # ChatML, as in SmolLM2 and Qwen2.5
CHAT = CHAT_TURN.format(role="user", content="{input}") + "<|im_start|>assistant\n"


class Template:
    """Template("Say it: {input}\\n") or Template("chat"). Braces other than {input} are plain text.

    Earlier turns of a conversation come first: as ChatML in a chat, else as `role: content` lines.
    Raises Error unless {input} occurs exactly once.
    """

    def __init__(self, text: str = DEFAULT):
        self.text = text
        if text != "chat" and text.count("{input}") != 1:
            raise Error('a template is "chat" or a text with {input} in it once, '
                        f"not {text.count('{input}')} times: {ascii(text[:80])}")
        self.turn = CHAT_TURN if text == "chat" else "{role}: {content}\n"
        self.before, _, self.after = (CHAT if text == "chat" else text).partition("{input}")

    def fill(self, example: Example) -> str:
        """The text of the prompt: earlier turns, then the input in its frame."""
        turns = [self.turn.format(role=role, content=content) for role, content in example.turns]
        return "".join(turns) + self.before + example.input + self.after

    def check(self, tokenizer: Tokenizer) -> None:
        """Raise Error for a chat with a tokenizer that would split the chat marks into letters."""
        marks = ("<|im_start|>", "<|im_end|>")
        if self.text == "chat" and any(len(tokenizer.encode(mark)) != 1 for mark in marks):
            raise Error("the chat template needs a base whose tokenizer has <|im_start|> and "
                        "<|im_end|>; here give a text with {input}")


ARROW = Template()  # of the embedded base's pretraining
