"""`python -m foveate`, which launchers of several processes need."""

from foveate.cli import main

if __name__ == "__main__":
    main()
