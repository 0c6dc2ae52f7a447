"""What a message tells those who see it: one file a protection."""
