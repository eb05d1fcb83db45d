"""What the programs share: clocks and turns, records, the environment, command lines, documents."""
