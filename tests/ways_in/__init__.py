"""Every way into a session, in one table, tried while another owner is inside."""
