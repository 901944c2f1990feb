"""The monitor: drift of each session, notifications, doubtful frames, and what live pages show."""
