"""`fedplat report` at the server: made by the command from what the running server answers, signed by its key."""
