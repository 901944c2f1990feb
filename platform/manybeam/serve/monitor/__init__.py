"""The monitor of live sessions: drift, alerts, doubtful frames."""
