"""Generation with a key-value cache, and many tasks in one batch."""
