"""Starting the processes of a run: on this machine, or by what a cluster reads."""
