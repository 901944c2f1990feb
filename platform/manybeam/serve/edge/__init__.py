"""What a request passes before it is looked at: its head, its token, and a place for its body."""
