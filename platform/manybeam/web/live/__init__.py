"""Live pages: what an instrument sends, and what the service answers."""
