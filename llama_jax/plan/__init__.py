"""Will a run fit a slice, and how fast would it be? Answers without the slice."""
