"""What is installed here, what it means for dither, and what to do about each gap."""
