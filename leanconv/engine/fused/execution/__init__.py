"""Programs, memory plans and sessions: how a lowered graph runs."""
