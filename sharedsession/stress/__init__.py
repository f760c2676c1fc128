"""The command ``sharedsession stress``: a proof on the user's own database.

``cli`` is the command.  ``ledger`` defines the work, ``threads`` and ``tasks`` do it,
each run in a process of its own (``process``), over a ``tripwire`` that notes
overlapping calls of the driver.
"""
