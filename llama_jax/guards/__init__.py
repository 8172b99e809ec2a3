"""What may interrupt a run."""
