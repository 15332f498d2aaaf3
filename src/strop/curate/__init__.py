"""From a raw pool to a set that a small model can learn from: stages over rows, each with a reason for every row it drops."""
