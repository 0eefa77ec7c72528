"""Text as bytes: the tokenizer of the embedded base. No vocabulary file, nothing unknown, 257 ids."""


class ByteTokenizer:
    """Ids 0–255 are the bytes of UTF-8, 256 marks the end of an answer."""

    end = 256
    vocab_size = 257

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def decode(self, ids) -> str:
        """Ids -> text; the end mark is dropped, and bytes that are no UTF-8 show as the replacement character."""
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")
