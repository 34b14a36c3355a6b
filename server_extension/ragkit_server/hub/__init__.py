"""Who is connected, and what passes between them; no I/O."""
