"""Forward and reverse: losses of texts in both directions, their files, reports, and data selected by the difference."""
