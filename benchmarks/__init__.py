"""What the library costs and what it brings: ``python -m benchmarks``.

Every figure is a comparison.  The contestants take turns, round by round, so that what
slows the machine down slows all of them; a row shows the median of the rounds' ratios.

Guarding one session changes the mapped classes of the whole process, so the plain
Session and the hand-rolled lock, which are compared against, run in a process of their
own that never makes a shared session.  Only one of the two works at any time.  Several
pairs of processes take part, since where the interpreter happens to put things makes a
difference to the cost of a single attribute, the same one for the life of a process.
"""
