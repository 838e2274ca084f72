"""What a run and the verbs do with steps: save, select, resume, inspect, export, convert."""
