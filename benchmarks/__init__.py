"""What the library costs and what it brings: ``python -m benchmarks``.

Every figure is a comparison.  The contestants take turns, round by round, so that what
slows the machine down slows all of them; a row shows the median of the rounds' ratios.

Guarding one session changes the mapped classes of the whole process, so the plain
Session and the hand-rolled lock, which are compared against, run in a process of their
own that never makes a shared session.  Both processes are forks of one, where forks
are to be had, and only one of the two works at any time.
"""
