"""Measurements, one file each; bench.py parses flags and prints."""
