"""From the text of a corpus to global batch n of a run."""
