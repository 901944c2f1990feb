"""The prediction service, and the instruments that ask it."""
