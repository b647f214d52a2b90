"""Turns weight files of other projects into model directories, without needing those projects to run."""
