"""Large things in blocks that are known by their hashes, and how peers fetch them from each other."""
