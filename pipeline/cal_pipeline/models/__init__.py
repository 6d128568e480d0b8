"""Models of the paper that transformers lacks, in transformers' own conventions."""
