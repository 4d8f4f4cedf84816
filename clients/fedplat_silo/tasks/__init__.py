"""Tasks: what is trained. A task is installed at every silo and found by its entry point, never sent."""
