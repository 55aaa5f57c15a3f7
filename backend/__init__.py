"""Dom0's side: xenstored and the backends of the split drivers."""
