"""Independent readers of every format that is written, and what they prove."""
