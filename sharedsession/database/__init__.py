"""What a session uses of its database: connections, their savepoints, and results.

``connections`` guards a connection.  ``rows`` fetches all rows of a result at once, or
makes it a stream, and ``results`` lets several threads consume one result.
"""
