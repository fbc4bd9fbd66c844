"""What runs inside the sandbox process, never in the trainer's. Only the standard library is imported here."""
