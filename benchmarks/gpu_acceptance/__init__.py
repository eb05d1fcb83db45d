"""What whoever has a GPU for half an hour runs first: every part that a CPU could not vouch for, in one command."""
