"""python bench.py quality: what every method reaches, one question at a time, on equal terms.

A cell is one run: a method of a certain size, on a base, on a task, with a learning rate and a seed. A study is the cells that answer
one question. What is compared differs in one thing; of a seed, all methods see the same examples in the same order.

    1. the rates  every method, on every base and task a study puts it to, is trained once at each of three learning rates, with a seed of
                  its own, and scored on dev examples: the lowest loss names the rate
    2. the cells  every cell is trained at that rate over seeds 0 … 4 and scored on held-out examples

Every cell becomes one JSON line, written when it is done, with all it takes to run it again (--again) and the machine it ran on. A
stopped run goes on where it was: cells whose lines are there are not run again. `python bench.py report` draws everything from the lines.

    python bench.py quality --quick                      the main table, small, in at most 10 minutes on 2 cores
    python bench.py quality                              all studies that need nothing but this package: hours
    python bench.py quality --study length               one question
    python bench.py quality --study real --smollm2 FOLDER --e2e FOLDER     on a real model and real data
    python bench.py quality --again 17                   run the 17th line of --lines again: is the score the same?
"""
