"""A document as a prefix: the text itself, a shorter prefix fitted to it, or one trained to answer as if it stood there."""
