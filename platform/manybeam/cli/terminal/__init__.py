"""What the commands share: rows and progress on a terminal, pictures, checked targets."""
