"""What the stages of a run do, one module for each kind: only what it is handed decides the outcome."""
