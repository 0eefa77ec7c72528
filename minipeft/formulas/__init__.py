"""Closed forms: the terms in which a method declares its cost, and symbols to print them."""
