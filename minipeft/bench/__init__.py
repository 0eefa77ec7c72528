"""Measurements, one file each: add_flags, settings, run, table. bench.py parses, calls and prints."""
