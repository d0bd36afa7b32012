"""MoDeST: sampling by hashes, views, and aggregators that move from round to round."""
