"""What the tool asks of the operating system: the processes of a job."""
