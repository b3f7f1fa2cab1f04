"""What a researcher would use instead, each in its own environment: a process that runs a repetition when told to."""
