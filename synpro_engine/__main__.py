"""`python -m synpro_engine`, also under torchrun."""

from synpro_engine.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
