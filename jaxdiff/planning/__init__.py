"""What a program will cost on a machine that is not there: counted from its jaxpr and its compiled text."""
