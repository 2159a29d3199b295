"""What several methods compute alike."""
