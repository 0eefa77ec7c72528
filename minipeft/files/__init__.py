"""Files: written whole or not at all, read with checks; dictionaries of tensors and the config."""
