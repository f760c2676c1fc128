"""The session, its transactions, units of work, and what is lost in it."""
