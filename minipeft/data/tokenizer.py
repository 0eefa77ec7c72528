"""Text as bytes: the tokenizer of the embedded base. No vocabulary file, nothing unknown, 257 ids."""

from ..config import Error


class ByteTokenizer:
    """Ids 0–255 are the bytes of UTF-8, 256 marks the end of an answer."""

    end = 256
    vocab_size = 257

    def encode(self, text: str) -> list[int]:
        """Text -> ids. Raises Error for half a surrogate pair, which is no character."""
        try:
            return list(text.encode("utf-8"))
        except UnicodeEncodeError:
            raise Error(f"{ascii(text[:40])} holds half a surrogate pair, which is no character") from None

    def decode(self, ids) -> str:
        """Ids -> text; the end mark is dropped, and bytes that are no UTF-8 show as the replacement character."""
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")


def tokenizer_for(vocab_size: int, base) -> ByteTokenizer:
    """The tokenizer of a base with this many tokens. Raises Error for any but a byte-level one."""
    if vocab_size != ByteTokenizer.vocab_size:
        raise Error(f"--base {base} has {vocab_size} tokens, but text is read as bytes here: it needs {ByteTokenizer.vocab_size}")
    return ByteTokenizer()
