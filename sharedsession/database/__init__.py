"""What a session uses of its database: connections, their savepoints, and results.

``connections`` guards a connection, ``rows`` and ``results`` decide who fetches when.
"""
