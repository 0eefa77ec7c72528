"""The text of a prompt: a template with {input} in it, or a chat."""

from ..checks import Error
from .chat import ChatTemplate
from .tasks import DEFAULT, Example
from .tokenizer import Tokenizer

CHAT_TURN = "<|im_start|>{role}\n{content}<|im_end|>\n"  # ChatML, as in SmolLM2 and Qwen2.5
CHAT = CHAT_TURN.format(role="user", content="{input}") + "<|im_start|>assistant\n"
CHAT_MARKS = {"<|im_start|>", "<|im_end|>"}


class Template:
    """Template("Say it: {input}\\n") or Template("chat"). Braces but {input} and {soft} are text.

    Earlier turns of a conversation come first: in a chat by the folder's chat template, or ChatML
    if it has none; otherwise as `role: content` lines. {soft}, at most once and not in a chat, is
    the place of num_soft virtual tokens. Raises Error unless {input} occurs exactly once.
    """

    def __init__(self, text: str = DEFAULT, num_soft: int = 0):
        self.text, self.num_soft, self.has_soft = text, num_soft, "{soft}" in text
        if text != "chat" and text.count("{input}") != 1:
            raise Error('a template is "chat" or a text with {input} in it once, '
                        f"not {text.count('{input}')} times: {ascii(text[:80])}")
        if text.count("{soft}") > 1:
            raise Error(f"a template has {{soft}} in it once at most: {ascii(text[:80])}")
        self.turn = CHAT_TURN if text == "chat" else "{role}: {content}\n"
        self.before, _, self.after = (CHAT if text == "chat" else text).partition("{input}")

    def chat(self, tokenizer: Tokenizer) -> ChatTemplate | None:
        """The folder's own chat template, if this is a chat and the folder has one."""
        return tokenizer.chat if self.text == "chat" else None

    def fill(self, example: Example, chat: ChatTemplate | None = None) -> str:
        """The text of the prompt: earlier turns, then the input in its frame."""
        return "".join(self.pieces(example, chat))

    def pieces(self, example: Example, chat: ChatTemplate | None = None) -> list[str]:
        """The text of the prompt: whole, or the two pieces before and behind {soft}."""
        if chat is not None:
            return [chat.prompt([*example.turns, ("user", example.input)])]
        turns = "".join(self.turn.format(role=role, content=content) for role, content in example.turns)
        if "{soft}" in self.before:
            first, _, second = self.before.partition("{soft}")
            return [turns + first, second + example.input + self.after]
        first, *second = self.after.split("{soft}")
        return [turns + self.before + example.input + first, *second]

    def opening(self, tokenizer: Tokenizer) -> str:
        """Spaces that the chat template writes before an answer; "" if the tokenizer adds none."""
        chat = self.chat(tokenizer)
        return chat.opening if chat is not None and tokenizer.adds_prefix else ""

    def stops(self, tokenizer: Tokenizer) -> list[int]:
        """All ids that end an answer; the first is learnt, in a chat the mark that ends a turn.

        Raises Error for a chat with a tokenizer that has neither a template nor ChatML's marks.
        """
        if self.text != "chat":
            return tokenizer.stops
        if tokenizer.chat is not None:
            ending = tokenizer.chat.ending.strip()
        elif CHAT_MARKS.issubset(tokenizer.marks.values()):
            ending = "<|im_end|>"
        else:
            raise Error("the chat template needs a base whose tokenizer has <|im_start|> and "
                        "<|im_end|>, or whose folder has a chat_template; here give a text with "
                        "{input}")
        end = [i for i in tokenizer.encode(ending)[:1] if i in tokenizer.marks]
        return end + [i for i in tokenizer.stops if i not in end]


ARROW = Template()  # of the embedded base's pretraining
