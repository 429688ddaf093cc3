"""From a bundle's stored bytes to verified bytes on a slot."""
