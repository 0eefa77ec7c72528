"""Exercises of the lessons: a stub to fill in, and tests whose messages say which mistake an answer shows."""
