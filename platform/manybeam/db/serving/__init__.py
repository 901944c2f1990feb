"""What the service keeps in the database: sessions of instruments, and versions under traffic."""
