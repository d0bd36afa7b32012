"""What all studies share: the command line, saving, tables, figures."""
