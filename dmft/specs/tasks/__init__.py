"""Data of a problem: given as arrays, or drawn from a source on the machine; a format of files is one file."""
