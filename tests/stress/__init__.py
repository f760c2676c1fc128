"""The command ``sharedsession stress``."""
