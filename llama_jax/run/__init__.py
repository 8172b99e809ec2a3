"""What a run leaves behind: passive, without a loop or a thread of its own."""
