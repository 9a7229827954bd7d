"""What pipes and resources are made of, and nobody's API."""
