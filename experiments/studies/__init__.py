"""The studies: a file each, by family. Files that begin with "_" are parts of one."""
