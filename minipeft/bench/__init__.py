"""Measurements, one file each: add_flags, settings, run, table. bench.py parses and prints."""
