"""The terminal chat. Nothing here yet: `stem-local run` is the chat until it lands."""
