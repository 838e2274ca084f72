"""What a run is: compared between its processes before it starts, and with its checkpoint when it resumes."""
