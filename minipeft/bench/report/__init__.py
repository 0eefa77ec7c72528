"""python bench.py report: tables, figures and pages from the lines of `python bench.py quality`.

    python bench.py report                                                  runs/quality.jsonl -> runs/comparison/
    python bench.py report --lines docs/results/quality.jsonl --folder docs/results

Writes comparison.md, comparison.html (one file that needs nothing else), and figures/quality-STUDY.png and .svg. A study of which there is
no line yet is named with the command that runs it. Needs matplotlib.
"""
