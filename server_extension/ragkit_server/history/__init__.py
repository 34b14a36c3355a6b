"""What was broadcast: the log, its archive, publishers' numbers."""
