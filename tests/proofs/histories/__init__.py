"""Random histories, which must equal a serial order."""
