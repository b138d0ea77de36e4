"""qaray: scientific papers to an evaluated question-answer data set, on Ray."""

__version__ = "0.1.0"
