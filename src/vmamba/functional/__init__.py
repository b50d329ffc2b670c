"""What the layers compute besides the scan, as functions that choose the fastest kernel for a call."""
