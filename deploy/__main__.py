"""`python -m miniguest.deploy` is the `miniguest` command."""
from miniguest.deploy.cli import main

main()
