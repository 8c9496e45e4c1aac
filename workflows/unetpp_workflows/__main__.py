"""Lets `python -m unetpp_workflows` be the command `unetpp`, for environments whose scripts are not on the path."""

from unetpp_workflows.cli import main

main()
