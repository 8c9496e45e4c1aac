"""Ray, MLflow, command line and reports around the unetpp library; importing this package loads nothing heavy."""
