"""How an example is put to a base: a text with {input} in it, or a chat."""

from ..config import Error
from .tasks import Example
from .tokenizer import Tokenizer

DEFAULT = "{input} -> "
CHAT = "<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n"  # ChatML, as SmolLM2 and Qwen2.5 use it


class Template:
    """Template("Say it: {input}\\n") or Template("chat"). Braces other than {input} are text. Raises Error unless {input} is there once.

    Earlier turns of a conversation go before it: as ChatML in a chat, as `role: content` lines otherwise.
    """

    def __init__(self, text: str = DEFAULT):
        self.text = text
        if text != "chat" and text.count("{input}") != 1:
            raise Error(f'a template is "chat" or a text with {{input}} in it once, not {text.count("{input}")} times: {ascii(text[:80])}')
        self.turn = "<|im_start|>{role}\n{content}<|im_end|>\n" if text == "chat" else "{role}: {content}\n"
        self.before, _, self.after = (CHAT if text == "chat" else text).partition("{input}")

    def fill(self, example: Example) -> str:
        """What is asked, up to where the answer starts: the turns, and the input in its frame."""
        said = "".join(self.turn.format(role=role, content=content) for role, content in example.turns)
        return said + self.before + example.input + self.after

    def check(self, tokenizer: Tokenizer) -> None:
        """Raise Error for a chat with a tokenizer that has no chat marks: the base would read them as letters."""
        if self.text == "chat" and any(len(tokenizer.encode(mark)) != 1 for mark in ("<|im_start|>", "<|im_end|>")):
            raise Error("the chat template needs a base whose tokenizer has <|im_start|> and <|im_end|>; here give a text with {input}")


ARROW = Template()  # what the embedded base learnt
