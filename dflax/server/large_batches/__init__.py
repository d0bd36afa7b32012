"""Methods whose clients now and then read a large batch, or all of their examples."""
