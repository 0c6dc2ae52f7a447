"""The one door through which anything private leaves: bounded sum, encoder, release."""
