"""What the exact acceptances of all schemes share."""
